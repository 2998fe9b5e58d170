"""Opens what users have (parquet, image folders, CSV, JSON lines, tars, Hub ids) as one kind of stream.

Every format becomes a `datasets.IterableDataset` whose images are undecoded: a broken one costs its own
row, never the stream. Parquet, `save_to_disk` folders and Hub data sets go through the readers of `datasets`;
the other formats through generators of this package (`readers.py` says why).
"""

from .errors import SourceError
from .image_files import find_images
from .opening import open_source
from .sample import ROW_KEY, Sample, Source, clean_captions, iterate_samples, to_sample
from .shards import Shard, list_shards
from .spec import DataSpec
from .values import ValueKindError, as_text, class_index, spellings

__all__ = [
    "DataSpec",
    "ROW_KEY",
    "Sample",
    "Shard",
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
