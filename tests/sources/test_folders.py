"""Folders, splits and paths: which files are data, and which images there are."""

from pathlib import Path

import datasets
import pytest

from hf_clip.sources import SourceError, find_images, iterate_samples, open_source
from tests.helpers.data_files import dataset_of, error_of, image_bytes, samples, write, write_images, write_pairs


def test_class_folders(tmp_path):
    for name in ("vehicle/train_01.png", "vehicle/2.JPG", "cat/test.png"):
        write(tmp_path / name, image_bytes(1))
    source = open_source(tmp_path)
    assert source.label_names == ("cat", "vehicle") and source.num_rows == 3 and source.caption_columns == ()
    assert [s.label for s in iterate_samples(source)] == ["cat", "vehicle", "vehicle"]
    assert [s.label for s in samples(tmp_path, where={"label": "cat"})] == ["cat"]
    source.require_label()
    with pytest.raises(SourceError, match="no column that looks like a caption. Columns: image, label"):
        source.require_captions()


def test_where_takes_a_number_for_a_name_where_names_are_numbers(tmp_path):
    for name in ("1", "2", "3", "cat", "dog"):
        write(tmp_path / ("words" if name.isalpha() else "numbers") / name / "0.png", image_bytes(1))
    for wanted, kept in ((1, ["1"]), ("2", ["2"]), (3, ["3"]), ("001", ["1"]), ([1, 3.0], ["1", "3"])):
        assert [s.label for s in samples(tmp_path / "numbers", where={"label": wanted})] == kept
    assert "has label=0. Values there, among others: label: 1, 2, 3" in error_of(
        tmp_path / "numbers", where={"label": 0}
    )
    assert [s.label for s in samples(tmp_path / "words", where={"label": 1})] == ["dog"]
    assert [s.label for s in samples(tmp_path / "words", where={"label": ["cat", "1"]})] == ["cat", "dog"]


def test_class_folders_in_split_folders(tmp_path):
    for name in ("train/cat/0.png", "train/dog/1.png", "test/dog/2.png", "test/cat/3.png", "test/cat/4.png"):
        write(tmp_path / name, image_bytes(1))
    assert [s.label for s in samples(tmp_path, split="test")] == ["cat", "cat", "dog"]
    assert "splits test, train" in error_of(tmp_path)


def test_splits_by_file_name(tmp_path):
    write_pairs(tmp_path / "train-00000-of-00001.parquet", ["a"])
    write_pairs(tmp_path / "val.parquet", ["b"])
    write_pairs(tmp_path / "test/0.parquet", ["c"])
    assert [samples(tmp_path, split=s)[0].captions for s in ("train", "validation", "val", "test")] == [
        ["a"], ["b"], ["b"], ["c"]
    ]  # fmt: skip
    assert "has the splits" in error_of(tmp_path) and "Set `split`" in error_of(tmp_path)
    message = error_of(tmp_path, split="tset")
    assert "no split 'tset'" in message and "train" in message and "validation" in message
    write_pairs(tmp_path / "train_station.parquet", ["d"])
    assert "files of no split: train_station.parquet" in error_of(tmp_path)
    assert [s.captions for s in samples(tmp_path / "val.parquet")] == [["b"]]
    assert "no split 'train'; there is validation" in error_of(tmp_path / "val.parquet", split="train")


def test_data_without_splits_is_train(tmp_path):
    path = write_pairs(tmp_path / "x.parquet", ["a"], split=["test"])
    assert len(samples(path, split="train")) == len(samples(tmp_path)) == 1
    assert "set `where` to COLUMN=test" in error_of(path, split="test")


def test_splits_of_a_saved_data_set(tmp_path):
    both = datasets.DatasetDict({"train": dataset_of(["a"]), "test": dataset_of(["b"])})
    both.save_to_disk(tmp_path)
    assert samples(tmp_path, split="test")[0].captions == ["b"]
    assert "has the splits train, test" in error_of(tmp_path)
    (tmp_path / "train/state.json").write_text("{")
    assert "not a complete save_to_disk folder" in error_of(tmp_path, split="train")


def test_folders_without_data(tmp_path):
    assert "is empty" in error_of(tmp_path)
    write(tmp_path / "notes.txt", "x")
    write(tmp_path / ".hidden/x.parquet", "x")
    assert "holds only notes.txt" in error_of(tmp_path)
    write_images(tmp_path, 2)
    assert "without captions or classes. Add a metadata.csv" in error_of(tmp_path)
    write(tmp_path / "cat/x.png", image_bytes(0))
    write(tmp_path / "dog/y.png", image_bytes(0))
    assert "different depths (0.png, 1.png)" in error_of(tmp_path)
    assert "without captions or classes" in error_of(tmp_path / "0.png")
    assert "empty list" in error_of([])


def test_paths_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the Hub for a path"))
    write_pairs(tmp_path / "data/pairs.parquet")
    assert "did you mean 'pairs.parquet'" in error_of("data/pair.parquet")
    assert "holds data" in error_of("./nothing")
    assert "does not exist either" in error_of("/no/such/folder/x")
    assert "holds pairs.parquet" in error_of("data/emoji")
    assert "matches no file" in error_of("data/*.csv")
    assert "no such file" in error_of(Path("owner/name"))


def test_class_folders_named_by_indices_are_in_the_order_of_these(tmp_path):
    for index in range(12):
        write(tmp_path / f"plain/{index}/x.png", image_bytes(index))
        write(tmp_path / f"padded/{index:03d}/x.png", image_bytes(index))
    assert open_source(tmp_path / "plain").label_names == tuple(map(str, range(12)))
    assert open_source(tmp_path / "padded").label_names == tuple(f"{index:03d}" for index in range(12))


def test_the_image_that_is_no_member_of_a_class_folder_is_named(tmp_path):
    for name in ("cat/0.png", "dog/1.png", "dog/sub/2.png"):
        write(tmp_path / name, image_bytes(1))
    assert "different depths (dog/sub/2.png)" in error_of(tmp_path)


def test_images_of_every_name_are_found_by_their_bytes(tmp_path):
    """What no opener reads is a row too, and counted when it is decoded; what is no image is none."""
    for name in ("cat/a.jpg", "cat/b", "dog/c.download", "dog/d.heic"):
        write(tmp_path / name, image_bytes(1))
    write(tmp_path / "dog/notes.rtf", "a text")
    write(tmp_path / "dog/list.txt", image_bytes(1))
    assert [Path(s.image["path"]).name for s in samples(tmp_path)] == ["a.jpg", "b", "c.download", "d.heic"]
    assert [Path(name).name for name in find_images(tmp_path)] == ["a.jpg", "b", "c.download", "d.heic"]


def test_images_that_the_metadata_does_not_name_are_counted_and_named(tmp_path, caplog):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", 2)
    write(tmp_path / "train/metadata.csv", "file_name,caption\n0.png,zero\n./2.png,two\ngone.png,gone\n")
    write(tmp_path / "test/metadata.jsonl", '{"file_name": "0.png", "caption": "a"}\n{"file_name": "1.png"}\n')
    assert len(samples(tmp_path, split="train")) == 3
    assert "3 of 5 images are skipped, for no row of metadata.csv names them: 1.png, 3.png, 4.png." in caplog.text
    caplog.clear()
    assert len(samples(tmp_path, split="test")) == 2
    assert caplog.text == ""


def test_find_images_takes_files_folders_and_patterns(tmp_path, monkeypatch):
    for name in ("photos/10.png", "photos/2.png", "photos/deep/1.PNG", "photos/.hidden.png", "photos/.git/x.png"):
        write(tmp_path / name, image_bytes(1))
    write(tmp_path / "photos/about.txt", "x")
    write(tmp_path / "odd[1].bin", "a file that is named is taken as it is")
    monkeypatch.chdir(tmp_path)
    assert find_images("photos") == ["photos/2.png", "photos/10.png", "photos/deep/1.PNG"]
    assert find_images(["odd[1].bin", Path("photos/10.png"), "photos"]) == [
        "odd[1].bin", "photos/10.png", "photos/2.png", "photos/deep/1.PNG"
    ]  # fmt: skip
    assert find_images("photos/*.png") == ["photos/2.png", "photos/10.png"]
    assert find_images("pho*") == find_images("photos")
    for missing in ("", "photos/*.gif", "nothing", [""]):
        with pytest.raises(SourceError, match="no image|no such image"):
            find_images(missing)


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "store/a.png", image_bytes(1))
    write(tmp_path / "data/cat/b.png", image_bytes(2))
    (tmp_path / "data/dog").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "data")
    names = [Path(name).relative_to(tmp_path / "data").as_posix() for name in find_images(tmp_path / "data")]
    assert names == ["cat/b.png", "dog/a.png"]
    (tmp_path / "store/loop").unlink()
    assert [s.label for s in samples(tmp_path / "data")] == ["cat", "dog"]
