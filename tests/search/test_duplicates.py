"""Duplicates: four kinds kept apart, groups around the best image, and no image that is merely alike among them."""

import importlib
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_clip import DuplicatePlan, Index, SearchError, find_duplicates
from hf_clip.search.duplicates.candidates import near_pairs
from hf_clip.search.duplicates.check import compare
from hf_clip.search.duplicates.grouping import make_groups
from hf_clip.search.duplicates.looks import read_look
from tests.helpers.search_toys import ThumbnailEncoder, scene
from tests.helpers.squares import encode, write_parquet

SCENES = [scene(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def bench():
    """The benchmark, whose edits and look-alikes these are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("bench_dedup")


def content(image: Image.Image) -> bytes:
    return encode(np.asarray(image))


def find(folder: Path, against: Path | None = None, **options) -> DuplicatePlan:
    model = ThumbnailEncoder()
    index = Index.open(folder, model=model, processor=model.processor)
    return find_duplicates(index, against, show_progress=False, **options)


def found(plan: DuplicatePlan) -> dict[str, dict[str, str]]:
    """The kinds of the members of each group, by their paths."""
    return {group.best.path: {one.path: one.kind for one in group.members} for group in plan.groups}


# The pixel check.


EDITS = ["JPEG 30", "JPEG 60", "WebP", "x0.5", "x2", "crop 5 %", "crop 10 %"]
EDITS += ["border 5 %", "gamma 0.8", "gamma 1.25", "blur", "small text"]


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_image_is_the_same_image(bench, name):
    assert list(bench.EDITS) == EDITS
    for seed, image in enumerate(SCENES):
        edited = bench.EDITS[name](image, np.random.default_rng(seed))
        looks = read_look(content(image)), read_look(edited)
        for first, second in (looks, looks[::-1]):
            verdict = compare(first, second)
            assert verdict.is_same, (seed, verdict)


def test_the_verdict_says_how_the_second_was_edited(bench):
    image = scene(4, (256, 200))
    draw = np.random.default_rng(0)
    said = {
        name: compare(read_look(content(image)), read_look(bench.EDITS[name](image, draw))).reason for name in EDITS
    }
    assert said["x0.5"] == "scaled to 50%" and said["x2"] == "scaled to 200%"
    assert said["crop 10 %"].startswith("cropped to 90% of the width and 90% of the height")
    assert said["border 5 %"].startswith("uncropped or bordered")
    assert said["gamma 0.8"] == "other tones" and said["JPEG 60"] == "encoded again"
    assert "small" in said["small text"]


def test_look_alikes_are_not_the_same_image(bench):
    draw = np.random.default_rng(0)
    for seed, image in enumerate(SCENES):
        turned = bench.recolored(image, draw)
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pairs = [(image, turned), (image, mirrored), (image, scene(seed + 10))]
        pairs += [tuple(bench.frames(image, draw)) for _ in range(6)]
        for number, (first, second) in enumerate(pairs):
            verdict = compare(read_look(content(first)), read_look(content(second)))
            assert not verdict.is_same, (seed, number, verdict)


def test_blank_images_of_other_tones_are_no_edits():
    blank = [read_look(content(Image.new("RGB", (64, 64), (value,) * 3))) for value in (255, 250, 0)]
    assert not compare(blank[0], blank[1]).is_same and not compare(blank[0], blank[2]).is_same


def drawn_on_nothing(seed: int) -> Image.Image:
    """White shapes on transparent white: nothing of it shows over white."""
    alpha = scene(seed).convert("L").point(lambda value: 255 if value < 128 else 0)
    image = Image.new("RGBA", alpha.size, "white")
    image.putalpha(alpha)
    return image


def test_what_is_white_on_transparent_is_compared_too(tmp_path):
    for seed in (0, 1):
        drawn_on_nothing(seed).save(tmp_path / f"{seed}.png")
    drawn_on_nothing(0).save(tmp_path / "0.webp", lossless=True, exact=True)
    assert found(find(tmp_path)) in ({"0.png": {"0.webp": "same_pixels"}}, {"0.webp": {"0.png": "same_pixels"}})


# Pairs and groups.


@pytest.mark.parametrize(("rows_at_once", "crowded"), [(7, 8), (64, 8), (20, 0)])
def test_near_pairs_are_those_of_a_product_of_all(monkeypatch, rows_at_once, crowded):
    from hf_clip.search.duplicates import candidates

    monkeypatch.setattr(candidates, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(candidates, "PAIRS_AT_ONCE", 50)
    monkeypatch.setattr(candidates, "CROWDED", crowded)
    draw = np.random.default_rng(0)
    embeds = draw.standard_normal((60, 4)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    scores = embeds @ embeds.T
    np.fill_diagonal(scores, -1)
    nearest = np.argsort(-scores, axis=1)[:, :3]
    wanted = {
        (min(at, other), max(at, other))
        for at in range(60)
        for other in nearest[at].tolist()
        if scores[at, other] >= 0.5
    }
    rows, columns, similarity = near_pairs(embeds, least=0.5, top_k=3)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == wanted and len(rows) == len(wanted)
    assert np.allclose(similarity, scores[rows, columns])
    rows, columns, _ = near_pairs(embeds[:20], embeds[20:], least=0.5, top_k=2)
    across = scores[:20, 20:]
    wanted = {
        (at, other) for at in range(20) for other in np.argsort(-across[at])[:2].tolist() if across[at, other] >= 0.5
    }
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == wanted


def test_no_member_is_joined_through_another():
    # 0 - 1 - 2 - 3, a chain; then 4 is the best of 5 and 6, which do not match one another.
    same = {frozenset(pair) for pair in ((0, 1), (1, 2), (2, 3), (4, 5), (4, 6))}
    neighbors = {n: [other for other in range(7) if other != n] for n in range(7)}
    asked = []

    def compared(one, other):
        asked.append((one, other))
        return True if frozenset((one, other)) in same else None

    groups = make_groups([0, 1, 2, 3, 5, 4, 6], neighbors, compared, choose=lambda among: min(among))
    assert groups == [(0, {1: True}), (2, {3: True}), (4, {5: True, 6: True})]
    assert all(frozenset((best, member)) in same for best, members in groups for member in members)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """One photograph in many files, another one that is like it, and things that cannot be read."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "old").mkdir()
    photo = scene(7, (240, 200))
    photo.save(folder / "photo.png")
    (folder / "old/renamed.png").write_bytes((folder / "photo.png").read_bytes())
    photo.save(folder / "photo.bmp")
    turned = Image.Exif()
    turned[0x0112] = 8
    photo.transpose(Image.Transpose.ROTATE_270).save(folder / "turned.png", exif=turned)
    photo.save(folder / "small.jpg", quality=40)
    photo.resize((480, 400), Image.Resampling.BICUBIC).save(folder / "blown_up.png")
    photo.crop((0, 10, 225, 200)).save(folder / "cropped.webp", quality=90)
    Image.fromarray(np.asarray(photo)[..., ::-1]).save(folder / "recolored.png")
    (folder / "broken.jpg").write_bytes((folder / "small.jpg").read_bytes()[:400])
    (folder / "empty.png").write_bytes(b"")
    bomb = bytearray((folder / "photo.png").read_bytes())
    bomb[16:24] = 2 * (40_000).to_bytes(4, "big")
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb)
    return folder


@pytest.fixture(scope="module")
def plan_of_album(album):
    return find(album, similar_above=0.5)


def test_the_four_kinds_are_kept_apart(plan_of_album):
    [(best, members)] = found(plan_of_album).items()
    # Its metadata makes the turned one the best of those with the same pixels.
    assert best == "turned.png"
    assert members == {
        "photo.png": "same_pixels",
        "old/renamed.png": "same_pixels",
        "photo.bmp": "same_pixels",
        "small.jpg": "edited",
        "blown_up.png": "edited",
        "cropped.webp": "edited",
    }
    assert {"recolored.png"} == {one for pair in plan_of_album.similar for one in (pair["first"], pair["second"])} - {
        best,
        *members,
    }


def test_reasons_are_given(plan_of_album):
    [group] = plan_of_album.groups
    assert "the most detail" in group.why and "240 x 200" in group.why
    why = {one.path: one.why for one in group.members}
    assert "less metadata" in why["photo.png"]
    assert "no more detail in 480 x 400 than in 240 x 200 pixels" in why["blown_up.png"]
    assert "encoded with loss" in why["small.jpg"]
    assert "fewer pixels (225 x 190, not 240 x 200)" in why["cropped.webp"]


def test_what_cannot_be_read_is_listed_and_moved_nowhere(plan_of_album):
    assert set(plan_of_album.unreadable) == {"broken.jpg", "empty.png", "bomb.png"}
    assert "1600000000 pixels" in plan_of_album.unreadable["bomb.png"]
    assert not set(plan_of_album.unreadable) & {one.path for _, one in plan_of_album.members()}


def test_a_plan_is_read_as_it_was_written(plan_of_album, tmp_path):
    plan_of_album.save(tmp_path / "plan.json")
    assert DuplicatePlan.load(tmp_path / "plan.json") == plan_of_album
    assert '\n      "best": {' in (tmp_path / "plan.json").read_text(encoding="utf-8")


def test_one_file_under_several_names_is_no_duplicate(tmp_path):
    for seed in range(3):
        scene(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "0_linked.png").symlink_to("0.png")
    os.link(tmp_path / "1.png", tmp_path / "1_linked.png")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    plan = find(tmp_path)
    assert not plan.groups and set(plan.names) == {"0.png", "1.png"}
    # A file that a link leads to stays, also as a worse copy.
    scene(0).resize((192, 160), Image.Resampling.LANCZOS).save(tmp_path / "0_again.jpg", quality=30)
    scene(0).resize((48, 40)).save(tmp_path / "0_small.png")
    [group] = find(tmp_path).groups
    stay = {one.path: one.action for one in group.members}
    assert set(stay) | {group.best.path} == {"0.png", "0_again.jpg", "0_small.png"}
    assert stay["0_small.png"] == "move" and stay.get("0.png", "keep") == "keep"


def test_animations_of_one_first_frame_are_no_duplicates(tmp_path):
    for name, rest in (("a", 1), ("b", 2)):
        others = [scene(rest), scene(rest + 5)]
        scene(0).save(tmp_path / f"{name}.gif", save_all=True, append_images=others)
    (tmp_path / "c.gif").write_bytes((tmp_path / "a.gif").read_bytes())
    scene(0).save(tmp_path / "still.png")
    assert found(find(tmp_path)) in ({"a.gif": {"c.gif": "same_bytes"}}, {"c.gif": {"a.gif": "same_bytes"}})


def test_transparency_makes_the_better_copy(tmp_path):
    image = scene(3).convert("RGBA")
    image.putalpha(scene(4).convert("L").point(lambda value: 255 if value > 90 else 0))
    image.save(tmp_path / "logo.png")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    flat.save(tmp_path / "flat.bmp")
    assert found(find(tmp_path)) == {"logo.png": {"flat.bmp": "edited"}}


# Two folders; what is new.


def test_images_of_one_folder_that_are_in_another(tmp_path):
    for folder, seeds in (("test", (0, 1, 2)), ("train", (1, 2, 3))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            scene(seed, (128, 100)).save(tmp_path / folder / f"{folder}{seed}.png")
    # A better copy in the other folder is said, and stays where it is.
    scene(1, (128, 100)).save(tmp_path / "train/train1.png", compress_level=0)
    scene(2, (128, 100)).resize((64, 50)).save(tmp_path / "train/train2.png")
    scene(1, (128, 100)).save(tmp_path / "train/twice.png", compress_level=0)
    plan = find(tmp_path / "test", tmp_path / "train")
    assert found(plan) in (
        {"train1.png": {"test1.png": "same_pixels"}, "train2.png": {"test2.png": "edited"}},
        {"twice.png": {"test1.png": "same_pixels"}, "train2.png": {"test2.png": "edited"}},
    )
    why = {one.path: one.why for _, one in plan.members()}
    assert why["test2.png"].startswith("better than the one that stays (128 x 100 pixels")
    assert plan.best_root == str(tmp_path / "train") and plan.root == str(tmp_path / "test")
    with pytest.raises(SearchError, match="share files"):
        find(tmp_path / "test", tmp_path)


def test_another_model_of_the_other_folder_stays_its_own(tmp_path):
    for folder in ("test", "train"):
        (tmp_path / folder).mkdir()
        scene(1).save(tmp_path / folder / "1.png")
    own = ThumbnailEncoder(seed=1)
    Index.open(tmp_path / "train", model=own, processor=own.processor).update()
    [before] = Index.open(tmp_path / "train").status()["models"]
    assert found(find(tmp_path / "test", tmp_path / "train")) == {"1.png": {"1.png": "same_bytes"}}
    current = [one["id"] for one in Index.open(tmp_path / "train").status()["models"] if one["is_current"]]
    assert current == [before["id"]]


def test_tables_are_compared_and_nothing_of_them_moves(tmp_path):
    images = {"test": [content(scene(seed)) for seed in (0, 1)], "train": [content(scene(1).resize((48, 40)))]}
    for name, some in images.items():
        write_parquet(
            tmp_path / f"{name}.parquet", [{"image": {"bytes": one, "path": None}, "caption": name} for one in some]
        )
    plan = find(tmp_path / "test.parquet", tmp_path / "train.parquet")
    assert found(plan) == {"train.parquet#0": {"test.parquet#1": "edited"}}
    [(_, member)] = plan.members()
    assert (member.action, member.why) == ("keep", "a row of a table")


def test_only_new_images_are_compared_and_moved(tmp_path):
    scene(0).save(tmp_path / "old.png")
    scene(0).resize((48, 40)).save(tmp_path / "old_small.png")
    assert found(find(tmp_path)) == {"old.png": {"old_small.png": "edited"}}
    assert not find(tmp_path, only_new=True).groups
    scene(5).save(tmp_path / "other.png")
    scene(0).save(tmp_path / "new.jpg", quality=90)
    scene(0).resize((192, 160)).save(tmp_path / "larger.png")
    (tmp_path / "other_again.png").write_bytes((tmp_path / "other.png").read_bytes())
    plan = find(tmp_path, only_new=True)
    groups = found(plan)
    assert groups.pop("old.png") == {"new.jpg": "edited", "larger.png": "edited"}
    assert groups in (
        {"other.png": {"other_again.png": "same_bytes"}},
        {"other_again.png": {"other.png": "same_bytes"}},
    )
    assert not find(tmp_path, only_new=True).groups
