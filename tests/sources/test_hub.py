"""Data sets of the Hub, and caches that cannot be written to."""

import errno
import io
import os
import subprocess
from pathlib import Path

import datasets
import pytest

from tests.helpers.data_files import (
    contents,
    dataset_of,
    error_of,
    image_bytes,
    samples,
    write,
    write_images,
    write_pairs,
    write_tar,
)
from tests.helpers.warm_python import warm_python


def test_a_hub_id_goes_to_load_dataset_as_a_stream(tmp_path, monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.IterableDatasetDict(
            {name: dataset_of(["a", "b"]).to_iterable_dataset() for name in ("train", "test")}
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [s.captions for s in samples("owner/name:config", split="test")] == [["a"], ["b"]]
    assert calls == [(("owner/name", "config"), {"streaming": True})]
    assert "has the splits train, test" in error_of("owner/name")
    assert "no split 'dev'" in error_of("owner/name", split="dev")


def test_a_hub_stream_without_features(tmp_path, monkeypatch):
    def rows():
        yield {"image": {"bytes": image_bytes(1), "path": None}, "caption": "a"}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"train": stream})
    assert [(s.captions, contents(s)) for s in samples("owner/name")] == [(["a"], image_bytes(1))]


def test_images_at_hub_addresses_are_fetched(tmp_path, monkeypatch):
    def rows():
        yield {"image": {"bytes": None, "path": "hf://datasets/o/n/0.png"}, "caption": "a"}
        yield {"image": {"bytes": None, "path": "hf://datasets/o/n/gone.png"}, "caption": "b"}

    def open_address(path, mode):
        if "gone" in path:
            raise FileNotFoundError(path)
        return io.BytesIO(image_bytes(1))

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"train": stream})
    monkeypatch.setattr("fsspec.open", open_address)
    assert [s.image["bytes"] for s in samples("owner/name")] == [image_bytes(1), None]


@pytest.mark.slow
def test_an_offline_hub_is_one_line(tmp_path):
    code = (
        "from hf_clip.sources import open_source, SourceError\n"
        "try:\n    open_source('owner/name')\nexcept SourceError as error:\n    print(error)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*warm_python("libraries"), "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "'owner/name' is no file or folder" in done.stdout and "HF_HUB_OFFLINE" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("home", ["a file", "nowhere"])
def test_local_data_need_no_cache(tmp_path, home):
    """HF_HOME below a file cannot be made nor written to, as on a read-only or a full disk."""
    write_pairs(tmp_path / "x.parquet")
    write_images(tmp_path / "classes/a")
    write_images(tmp_path / "classes/b")
    write(tmp_path / "x.csv", "image,caption\nclasses/a/0.png,one\n")
    write_tar(tmp_path / "x.tar", {"0.png": image_bytes(0), "0.txt": "a"})
    write(tmp_path / "file", "x")
    dataset_of(label=[0] * 5).save_to_disk(tmp_path / "saved")
    code = (
        "from hf_clip.sources import iterate_samples, list_shards, open_source\n"
        "for data in ('x.parquet', 'x.csv', 'x.tar', 'classes', 'saved'):\n"
        "    source = open_source(data)\n"
        "    print(len(list(iterate_samples(source))))\n"
        "    print(sum(len(list(shard.read())) for shard in list_shards(source)))\n"
    )
    place = str(tmp_path / "file/hub") if home == "a file" else "/proc/nowhere"
    env = os.environ | {"HF_HOME": place, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        env.pop(name, None)
    done = subprocess.run(
        [*warm_python("libraries"), "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["5", "5", "1", "1", "1", "1", "10", "10", "5", "5"], done.stderr


def test_a_cache_that_cannot_be_written_to_is_named_where_the_hub_needs_it(tmp_path, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", "/cache/hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "Set HF_HOME to a folder that can be written to" in error_of("owner/name")
