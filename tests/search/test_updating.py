"""An index keeps in step with its folder: what is new, changed, moved, copied, gone, back or broken."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_clip.search import Index, SearchError
from hf_clip.search.photos import taken_at
from hf_clip.search.store import EMBEDDING, as_matrix
from tests.helpers.counts import soak_count
from tests.helpers.phone_photos import HEIC, write_dng
from tests.helpers.search_toys import GrayEncoder, write_gray

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for value in range(8):
        write_gray(folder / f"{value % 2}/{value}.png", value)
    return folder


@pytest.fixture
def model():
    return GrayEncoder()


@pytest.fixture
def index(photos, model):
    made = Index.open(photos, model=model, processor=model.processor)
    made.update()
    return made


def encodes(model, index, **options):
    """The report of an update, and how many images it encoded by the model's own count."""
    before = model.encoded
    report = index.update(**options)
    assert model.encoded - before == report.encoded
    return report


def rows_of(index) -> dict[str, tuple]:
    entry = index._entry()
    content = index._store.columns(entry, ["path", "hash", "missing", EMBEDDING], "error IS NULL")
    vectors = as_matrix(content[EMBEDDING])
    keys = zip(content["path"].to_pylist(), content["hash"].to_pylist(), content["missing"].to_pylist(), strict=True)
    return {path: (digest, missing, tuple(one)) for (path, digest, missing), one in zip(keys, vectors, strict=True)}


def test_rows_hold_the_embeddings_of_their_images(index, model):
    unit = model.image_embeds / model.image_embeds.norm(dim=1, keepdim=True)
    rows = rows_of(index)
    assert set(rows) == {f"{value % 2}/{value}.png" for value in range(8)}
    for path, (_, missing, vector) in rows.items():
        assert not missing and np.allclose(vector, unit[int(path[2:-4])].detach(), atol=1e-3)


def test_what_did_not_change_is_not_read(index, photos, model, monkeypatch):
    monkeypatch.setattr("hf_clip.search.updating.read_photo", None)
    report = encodes(model, index)
    assert report.total == 8 and report.writes == 0


def test_new_changed_and_touched_files(index, photos, model):
    write_gray(photos / "new.png", 100)
    write_gray(photos / "0/0.png", 101)
    os.utime(photos / "1/1.png", ns=(5, 5))
    report = encodes(model, index)
    assert (report.added, report.changed, report.touched, report.encoded, report.total) == (1, 1, 1, 2, 9)
    assert index.near("new.png", top_k=1)[0].path != "new.png"
    assert encodes(model, index).writes == 0


def test_moved_copied_and_renamed_files_cost_no_encode(photos, model):
    count = soak_count(50, 10_000)
    for number in range(count):
        file = write_gray(photos / f"many/{number}.png", number % 256)
        # One content each: what stands behind a PNG's end is none of its pixels.
        file.write_bytes(file.read_bytes() + str(number).encode())
    index = Index.open(photos, model=model, processor=model.processor)
    index.update()
    before = {digest: vector for digest, _, vector in rows_of(index).values()}
    (photos / "many").rename(photos / "elsewhere")
    (photos / "0/0.png").rename(photos / "0/zero.png")
    shutil.copy(photos / "1/1.png", photos / "copy.png")
    report = encodes(model, index)
    assert (report.encoded, report.moved, report.copied, report.missing) == (0, count + 1, 1, 0)
    rows = rows_of(index)
    assert set(rows) >= {"elsewhere/0.png", "0/zero.png", "copy.png", "1/1.png"} and "0/0.png" not in rows
    assert all(before[digest] == vector for digest, _, vector in rows.values())


def test_a_folder_mounted_elsewhere_brings_its_index(index, photos, model, tmp_path):
    shutil.copytree(photos, tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").rglob("*.png"):
        os.utime(file, ns=(7, 7))
    moved = Index.open(tmp_path / "elsewhere", model=model, processor=model.processor)
    report = encodes(model, moved)
    assert (report.touched, report.encoded, report.total) == (8, 0, 8)


def test_files_that_are_gone_are_kept_unseen_until_they_are_pruned(index, photos, model, tmp_path):
    (photos / "1").rename(tmp_path / "unmounted")
    report = encodes(model, index)
    assert (report.total, report.missing) == (4, 4)
    assert {hit.path for hit in index.search("gray 1")} == {f"0/{value}.png" for value in (0, 2, 4, 6)}
    (tmp_path / "unmounted").rename(photos / "1")
    report = encodes(model, index)
    assert (report.total, report.returned, report.encoded, report.missing) == (8, 4, 0, 0)
    shutil.rmtree(photos / "1")
    assert encodes(model, index, prune=True).pruned == 4
    assert len(rows_of(index)) == 4


@pytest.mark.parametrize("prune", [False, True])
def test_an_empty_or_lost_root_forgets_nothing(photos, model, tmp_path, prune):
    index = Index.open(photos, model=model, processor=model.processor, index=tmp_path / "index")
    index.update()
    photos.rename(tmp_path / "away")
    with pytest.raises(SearchError, match="is it mounted"):
        index.update(prune=prune)
    photos.mkdir()
    report = index.update(prune=prune)
    assert report.is_root_empty and report.total == 8 and len(index) == 8


def test_a_folder_that_cannot_be_read_is_named_and_keeps_its_rows(index, photos, model, monkeypatch):
    scandir = os.scandir

    def refused(folder):
        if str(folder).endswith("/1"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    report = encodes(model, index, prune=True)
    assert report.total == 8 and report.missing == 0 and "Permission denied" in report.folders["1"]


def test_broken_files_are_listed_and_not_tried_again_until_they_change(index, photos, model, monkeypatch):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    (photos / "empty.png").write_bytes(b"")
    report = encodes(model, index)
    assert set(report.errors) == {"broken.jpg", "empty.png"} == set(index.errors())
    assert "0 bytes" in report.errors["empty.png"] and report.unreadable == 2 and report.total == 8
    assert "broken.jpg" not in {hit.path for hit in index.search("gray 1")}
    with monkeypatch.context() as patch:
        patch.setattr("hf_clip.search.updating.read_photo", None)
        assert encodes(model, index).errors == {}
    write_gray(photos / "broken.jpg", 50)
    report = encodes(model, index)
    assert (report.changed, report.encoded, report.unreadable, report.total) == (1, 1, 1, 9)


def test_broken_files_are_tried_again_with_another_decoder(index, photos, model, monkeypatch):
    (photos / "one.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert index.update().unreadable == 1
    monkeypatch.setattr("hf_clip.search.index.decoders", lambda: "another")
    monkeypatch.setattr("hf_clip.search.photos.decode_image", lambda *_, **__: write_and_open(photos))
    report = index.update()
    assert (report.unreadable, report.changed + report.touched, report.total) == (0, 1, 9)


def write_and_open(photos: Path):
    from PIL import Image

    return Image.new("RGB", (8, 8), (9, 9, 9))


def test_photos_of_phones_and_cameras_are_indexed(index, photos, model):
    pytest.importorskip("pi_heif")
    pytest.importorskip("rawpy")
    shutil.copy(HEIC, photos / "phone.HEIC")
    write_dng(photos / "camera.dng")
    report = index.update()
    assert (report.added, report.unreadable, dict(report.others)) == (2, 0, {})
    content = index._store.columns(index._entry(), ["path", "width", "height", "taken"], "taken IS NOT NULL")
    assert sorted(content.to_pylist(), key=lambda row: row["path"]) == [
        {"path": "camera.dng", "width": 64, "height": 48, "taken": "2023-02-03T04:05:06"},
        {"path": "phone.HEIC", "width": 32, "height": 48, "taken": "2024-05-01T12:30:00"},
    ]
    assert index.image("camera.dng").size == (64, 48)


def test_files_of_other_kinds_are_counted_and_named(index, photos, model, monkeypatch):
    monkeypatch.setattr("hf_clip.search.walking.can_read_raw", lambda: False)
    for name in ("film.mp4", "film.MOV", "text.txt", "raw.nef", ".hidden.png"):
        (photos / name).write_bytes(b"x")
    report = encodes(model, index)
    assert report.others == {".mp4": 1, ".mov": 1, ".txt": 1, ".nef": 1}


def test_links_that_go_round_and_names_that_are_no_text(index, photos, model):
    (photos / "loop").symlink_to(photos)
    (photos / "nowhere.png").symlink_to(photos / "gone.png")
    name = os.fsdecode(b"caf\xe9.png")
    write_gray(photos / "x.png", 33).rename(photos / name)
    report = encodes(model, index)
    assert (report.added, report.total, report.others["links to nothing"]) == (1, 9, 1)
    assert "caf\\xe9.png" in rows_of(index)
    assert encodes(model, index).writes == 0


def test_rows_know_size_and_when_a_photograph_was_taken(index, photos, model):
    from PIL import Image

    exif = Image.Exif()
    exif[0x8769] = {0x9003: "2024:05:01 12:30:00"}
    # Lying on its side: 20 wide and 10 high when upright.
    exif[0x0112] = 6
    Image.new("RGB", (10, 20), (77, 77, 77)).save(photos / "phone.jpg", exif=exif)
    index.update()
    [hit] = index.search("gray 77", where="taken > '2024-01-01' AND width = 20")
    assert (hit.path, hit.width, hit.height, hit.taken) == ("phone.jpg", 20, 10, "2024-05-01T12:30:00")
    assert not len(index.search("gray 77", where="taken > '2025-01-01'"))
    assert taken_at(b"no image") is None


def test_two_models_stand_side_by_side_and_the_new_one_takes_over_when_it_is_whole(index, photos, model):
    other = GrayEncoder(seed=1)
    second = Index.open(photos, model=other, processor=other.processor)
    failing = lambda *_: (_ for _ in ()).throw(RuntimeError("stopped"))  # noqa: E731
    entry_before = index._store.entries()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_clip.search.models.LazyModel.embed_pixels", failing)
        with pytest.raises(RuntimeError, match="stopped"):
            second.update()
    assert Index.open(photos)._entry().id == entry_before.id
    report = second.update()
    assert report.encoded == 8 and Index.open(photos)._entry().id == other_id(other)
    assert [one["rows"] for one in second.status()["models"]] == [8, 8]
    # Both have the same source here; each is found by its state.
    assert index.search("gray 3", top_k=1)[0].path == second.search("gray 3", top_k=1)[0].path == "1/3.png"
    second.drop(entry_before.id)
    assert [one["id"] for one in second.status()["models"]] == [other_id(other)]


def other_id(model) -> str:
    from hf_clip.search.models import LazyModel

    return LazyModel(model, model.processor).key()


def test_a_second_writer_is_one_line_and_readers_go_on(index, photos, model):
    write_gray(photos / "new.png", 100)
    other = Index.open(photos, model=model, processor=model.processor)
    with index._store.locked():
        with pytest.raises(SearchError, match="being updated by another process"):
            other.update()
        assert len(other.search("gray 3", top_k=5)) == 5
    assert other.update().added == 1


@pytest.mark.parametrize("problem", ["full", "read-only"])
def test_what_the_disk_refuses_is_one_line_and_loses_nothing(index, photos, model, monkeypatch, problem):
    texts = {"full": "LanceError(IO): No space left on device (os error 28)", "read-only": "Read-only file system"}
    before = rows_of(index)
    write_gray(photos / "new.png", 100)
    with monkeypatch.context() as patch:

        def refused(*_):
            raise OSError(texts[problem])

        patch.setattr("hf_clip.search.store.add_rows", refused)
        with pytest.raises(SearchError, match="disk is full" if problem == "full" else "cannot be written to") as told:
            index.update()
    assert "\n" not in str(told.value) and rows_of(index) == before
    assert index.update().added == 1


def test_an_index_needs_a_model_and_a_folder(tmp_path):
    write_gray(tmp_path / "a.png", 1)
    with pytest.raises(SearchError, match="`model`"):
        Index.open(tmp_path).update()
    with pytest.raises(SearchError, match="no index"):
        Index.open(tmp_path).search("a dog")
    assert not (tmp_path / ".hf-clip.lance").exists()


@pytest.mark.slow
def test_rounds_of_adding_and_deleting_leave_no_more_than_a_fresh_table(index, photos, model):
    reader = Index.open(photos, model=model, processor=model.processor)
    folder = Path(index.place)
    fresh = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    for number in range(soak_count(4, 1000)):
        for one in range(100):
            write_gray(photos / f"round/{one}.png", 9 + one).touch()
        assert index.update().total == 108
        shutil.rmtree(photos / "round")
        assert index.update(prune=True).total == 8
        if number % 5 == 0:
            assert reader.search("gray 3", top_k=1)[0].path == "1/3.png"
    after = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert after <= 1.5 * fresh
