"""Small data files of every kind that `open_source` takes, and what comes out of them."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_clip.sources import SourceError, iterate_samples, open_source

CAPTIONS = ["a red square", "NA", 'two lines\nand "quotes", commas', "null", "größe 日本"]


IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def image_bytes(index: int, suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 10 * index % 256, np.uint8)).save(stream, suffix)
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_images(folder: Path, count: int = len(CAPTIONS)) -> list[str]:
    return [write(folder / f"{i}.png", image_bytes(i)).name for i in range(count)]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def write_pairs(path: Path, texts=CAPTIONS, row_group_size=2, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in range(len(texts))]
    table = pa.table({"image": pa.array(images, IMAGE_TYPE), "caption": pa.array(texts, pa.string()), **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(sample) -> bytes:
    return sample.image["bytes"] or Path(sample.image["path"]).read_bytes()


def samples(data, **options):
    return list(iterate_samples(open_source(data, **options)))


def error_of(data, **options) -> str:
    with pytest.raises(SourceError) as raised:
        for _ in iterate_samples(open_source(data, **options)):
            pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def dataset_of(captions=CAPTIONS, **columns):
    images = [{"bytes": image_bytes(i), "path": None} for i in range(len(captions))]
    made = datasets.Dataset.from_dict({"image": images, "caption": captions, **columns})
    return made.cast_column("image", datasets.Image())
