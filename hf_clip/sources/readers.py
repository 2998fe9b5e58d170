"""Rows of every local format, in the shape that `Source.dataset` has: texts, lists of captions, undecoded images.

Each reader stays because the stock one of `datasets` would lose or refuse rows that users have:

- image folder: once one file has "train" or "test" in its name, it keeps only those that do;
- CSV and TSV (pandas): the captions "NA" and "null" become missing, and one broken row ends the file;
- JSON lines (pyarrow): a key that is a number in one row and a text in a later one ends the file, and so does a
  broken line;
- WebDataset tars: shards are refused whose samples differ in their members;
- parquet with images: every shard's worker holds a whole row group, and an image's relative path is looked for in the
  working folder;
- every stream: it ends at the first image that cannot be decoded, and none can go on from the row that it had reached
  without reading those before it again. `Mark` is what does that here.

What a Hub id or a saved data set holds is read by `datasets` itself. The generators run in workers: what they need
comes as arguments that pickle, and the lists among them are the shards. None of them writes to a cache.
"""

import csv
import os
import tarfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from .columns import Columns
from .errors import SourceError, one_line, report_row
from .marks import PROBLEM, Mark, MarkedRows
from .parquet_files import open_row_group, read_footer
from .remote import folder_of, suffix_of
from .sample import ROW_KEY, image_of, single_text, texts_of
from .tables import read_csv, read_json, read_parquet, require_utf8_units
from .tars import read_tar

# Rows of a parquet file with images inside that are converted to Python at a time.
IMAGES_AT_A_TIME = 64

_READERS: dict[str, Callable[[str, Mark | None], MarkedRows]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".tar": read_tar,
    ".parquet": read_parquet,
}


def read_rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, row) of each row of a table or tar, the key as in `Sample`."""
    for _, key, row in read_marked_rows(file):
        yield key, row


def read_marked_rows(file: str, start: Mark | None = None) -> MarkedRows:
    """(mark, key, row) of each row of a table or tar, from a mark that an earlier pass gave, or from the first.

    A row that cannot be read has its problem under `PROBLEM`.

    Raises:
        SourceError: the file cannot be read any further.
    """
    read = _READERS.get(suffix_of(file), read_json)
    try:
        if read in (read_csv, read_json):
            require_utf8_units(file)
        yield from read(file, start)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file!r} is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}). "
            "Convert it, such as with iconv -f latin1 -t utf-8."
        ) from error
    except (csv.Error, tarfile.TarError, EOFError, OSError, pa.ArrowException) as error:
        raise SourceError(
            f"{file!r} cannot be read to its end ({one_line(error)}). Write or fetch it again."
        ) from error


def generate_rows(files: list[str], columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of tables of image paths and of tars."""
    for file in files:
        for key, row in read_rows(file):
            yield key, arrange_row(file, key, row, columns)


def arrange_row(file: str, key: str, row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The columns that are read of a row of a table or tar, captions as lists, the image as bytes or path."""
    if PROBLEM in row:
        report_row(key, row[PROBLEM], file)
    arranged: dict[str, Any] = {ROW_KEY: key}
    for column in set(columns.read) - set(columns.images):
        value = row.get(column)
        if column not in columns.lists:
            arranged[column] = single_text(value, column, key, file)
        elif column in (*columns.captions, *columns.keywords):
            arranged[column] = texts_of(value, column, key, file)
        else:
            items = value if isinstance(value, list) else [value]
            arranged[column] = [single_text(item, column, key, file) for item in items]
    for column in columns.images:
        arranged[column] = image_of(row.get(column), folder_of(file), key, file)
    return arranged


def generate_images(shards: list[tuple[str, ...]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a folder with one folder a class."""
    for shard in shards:
        for path in shard:
            yield path, {"image": {"bytes": None, "path": path}, "label": Path(path).parent.name, ROW_KEY: path}


def generate_row_groups(files: list[str], columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of parquet files with images inside, one row group after the other."""
    for file in files:
        footer, start = read_footer(file), 0
        for group in range(footer.num_row_groups):
            yield from read_row_group(file, group, start, columns)
            start += footer.row_group(group).num_rows


def read_row_group(
    file: str, group: int, start: int, columns: Columns, kept: Sequence[int] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, row) of a row group of a parquet file with images inside, `start` being the index of its first row.

    `kept`: in rising order, the rows of the group to read; all by default.
    """
    folder, stop = folder_of(file), 0
    with open_row_group(file, group, columns.read) as parquet:
        for batch in parquet.iter_batches(IMAGES_AT_A_TIME, row_groups=[group], columns=columns.read):
            first, stop = stop, stop + len(batch)
            chosen: Sequence[int] = range(first, stop)
            if kept is not None:
                chosen = kept[bisect_left(kept, first) : bisect_left(kept, stop)]
                if not chosen:
                    continue
                batch = batch.take(pa.array([index - first for index in chosen], pa.int64()))
            for index, row in zip(chosen, batch.to_pylist(), strict=True):
                key = f"{file} row {start + index}"
                image = image_of(row[columns.image], folder, key, file)
                if image is not None and image["path"]:
                    key += f" ({image['path']})"
                    # By its own name, datasets would take another file of that name in the working folder instead.
                    image["path"] = f"{file}/{image['path']}" if image["bytes"] is not None else image["path"]
                masks = {column: image_of(row[column], folder, key, file) for column in columns.images[1:]}
                yield key, {**row, columns.image: image, **masks, ROW_KEY: key}


def require_files(table: str, images: Sequence[dict[str, Any] | None]) -> None:
    """Raises SourceError where none of the images that the first rows of a table name exists."""
    named = [image for image in images if image is not None]
    if not any(image["bytes"] or "://" in image["path"] or os.path.isfile(image["path"]) for image in named):
        what = f"such as {named[0]['path']!r}" if named else "for the fields are empty"
        raise SourceError(
            f"none of the first {len(images)} images named in {table!r} exists, {what}. "
            "Paths are read relative to the table's folder. Set `image_column` to the column that has them."
        )
