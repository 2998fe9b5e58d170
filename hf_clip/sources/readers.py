"""Readers of picture tables, tars and class folders, for what the stock ones would lose.

pandas reads the captions "NA" and "null" as missing; the stock picture folder keeps only the files that have
"train" or "test" in their names once a single one has; the stock tar reader refuses shards whose samples
differ in their members. The generators run in workers: what they need comes as arguments that pickle, and the
lists among them are the shards.
"""

import csv
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .columns import Columns
from .errors import SourceError, how_to_set, one_line
from .files import PICTURE_SUFFIXES
from .sample import ROW_KEY, as_text, clean_captions

# Rows converted to Python at a time, and rows looked at to learn which columns a table without a schema has.
PARQUET_BATCH_ROWS = 256


def generate_rows(files: list[str], columns: Columns) -> Iterator[dict[str, Any]]:
    for file in files:
        for key, row in read_rows(file):
            texts = {column: as_text(row.get(column)) for column in columns.read}
            captions = {column: clean_captions(row.get(column)) for column in columns.captions}
            image = row.get(columns.image)
            if not isinstance(image, dict):
                path = locate(image, Path(file))
                image = {"bytes": None, "path": path} if path else None
            yield {**texts, **captions, columns.image: image, ROW_KEY: key}


def generate_pictures(shards: list[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for path in shard:
            yield {"image": {"bytes": None, "path": path}, "label": Path(path).parent.name, ROW_KEY: path}


def read_rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, row) of each row of a table or tar, the key as in `Sample`."""
    suffix = Path(file).suffix.lower()
    read = {".csv": _read_csv, ".tsv": _read_csv, ".tar": _read_tar, ".parquet": _read_parquet}.get(suffix, _read_json)
    try:
        yield from read(file)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file!r} is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}). "
            "Convert it, such as with iconv -f latin1 -t utf-8."
        ) from error
    except (csv.Error, tarfile.TarError, EOFError, OSError, pa.ArrowException) as error:
        raise SourceError(
            f"{file!r} cannot be read to its end ({one_line(error)}). Write or fetch it again."
        ) from error


def csv_header(file: Path) -> list[str]:
    return next((list(row) for _, row in read_rows(str(file))), [])


def _read_csv(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Spreadsheets begin a file with a byte order mark; plain UTF-8 would take it for part of the first name.
    with open(file, encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        delimiter = "\t" if file.lower().endswith(".tsv") else max(",;\t", key=first.count)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise SourceError(f"{file!r} has a column name twice: {', '.join(header)}. Rename one.")
        line = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                raise SourceError(
                    f"{file!r} line {line} has {len(values)} fields, the header has {len(header)}. "
                    "Put captions that hold a separator or a line break into double quotes."
                )
            if values:
                yield f"{file} line {line}", dict(zip(header, values, strict=True))
            line = reader.line_num + 1


def _read_json(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of JSON lines, or of one JSON list."""
    with open(file, encoding="utf-8-sig") as stream:
        is_list = file.lower().endswith(".json") and stream.read(1) == "["
        stream.seek(0)
        if is_list:
            yield from _json_list(file, stream.read())
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{file} line {number}", _json_object(line, f"{file!r} line {number}")


def _json_list(file: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{file!r} is no JSON ({one_line(error)}). Mend it, or write one object a line.") from error
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise SourceError(f"{file!r} item {number} is no JSON object: {str(item)[:40]!r}. Write one object a row.")
        yield f"{file} row {number}", item


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is no JSON ({one_line(error)}). Write one object a line.") from error
    if not isinstance(row, dict):
        raise SourceError(
            f"{place} is no JSON object: {line.strip()[:40]!r}. Write one object with the columns a line."
        )
    return row


def _read_parquet(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for row in batch.to_pylist():
                yield f"{file} row {number}", row
                number += 1


def _read_tar(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Samples of a WebDataset tar: members in a row whose paths are equal up to the file name's first dot."""
    current, row = None, {}
    with tarfile.open(file, "r|*") as archive:
        for member in archive:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if not member.isfile() or not stem:
                continue
            key = f"{folder}/{stem}" if folder else stem
            if key != current and row:
                yield f"{file} sample {current}", row
                row = {}
            current = key
            _add_member(row, suffix.lower(), archive.extractfile(member).read(), f"{file}/{member.name}")
    if row:
        yield f"{file} sample {current}", row


def _add_member(row: dict[str, Any], suffix: str, content: bytes, path: str) -> None:
    """Put a tar's member into its row: the picture as `image`, the fields of a JSON object by their names."""
    if "." + suffix.rpartition(".")[2] in PICTURE_SUFFIXES:
        picture = {"bytes": content, "path": path}
        # One shard may hold jpg, png and webp side by side, so these are one column; `left.jpg` is its own.
        row.setdefault("image" if "." not in suffix else suffix, picture)
    elif suffix == "json":
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            return
        for column, value in fields.items() if isinstance(fields, dict) else ():
            row.setdefault(column, value)
    else:
        row[suffix] = content.decode("utf-8", errors="surrogateescape").strip()


def locate(value: Any, table: Path) -> str | None:
    """The path of a picture named in `table`, relative to the table's folder; None if there is no name."""
    if not isinstance(value, str) or not value.strip():
        return None
    path = value.strip()
    return path if "://" in path else str(table.absolute().parent / path)


def check_paths(table: Path, paths: list[str | None]) -> None:
    named = [path for path in paths if path]
    if not any("://" in path or os.path.isfile(path) for path in named):
        what = f"such as {named[0]!r}" if named else "for the fields are empty"
        raise SourceError(
            f"none of the first {len(paths)} pictures named in {str(table)!r} exists, {what}. "
            f"Paths are read relative to the table's folder. {how_to_set('image_column')}."
        )
