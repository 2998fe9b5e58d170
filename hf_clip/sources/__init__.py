"""Opens what users have (parquet, image folders, CSV, JSON lines, tars, Hub ids) as one kind of stream.

Every format becomes a `datasets.IterableDataset` whose images are undecoded: a broken one costs its own
row, never the stream. `save_to_disk` folders and Hub data sets go through the readers of `datasets`; the other
formats through generators of this package (`readers.py` says why).

Names are imported on first use: `find_images` needs none of the packages that data sets need.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import SourceError
    from .image_files import find_images
    from .joined_captions import CaptionTable
    from .opening import open_source
    from .sample import ROW_KEY, Sample, Source, clean_captions, iterate_samples, to_sample
    from .shards import Shard, Shards, list_shards
    from .spec import DataSpec
    from .values import ValueKindError, as_text, class_index, spellings

_HOME = {
    "CaptionTable": "joined_captions",
    "DataSpec": "spec",
    "ROW_KEY": "sample",
    "Sample": "sample",
    "Shard": "shards",
    "Shards": "shards",
    "Source": "sample",
    "SourceError": "errors",
    "ValueKindError": "values",
    "as_text": "values",
    "class_index": "values",
    "clean_captions": "sample",
    "find_images": "image_files",
    "iterate_samples": "sample",
    "list_shards": "shards",
    "open_source": "opening",
    "spellings": "values",
    "to_sample": "sample",
}

__all__ = [
    "CaptionTable",
    "DataSpec",
    "ROW_KEY",
    "Sample",
    "Shard",
    "Shards",
    "Source",
    "SourceError",
    "ValueKindError",
    "as_text",
    "class_index",
    "clean_captions",
    "find_images",
    "iterate_samples",
    "list_shards",
    "open_source",
    "spellings",
    "to_sample",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_clip.sources' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
