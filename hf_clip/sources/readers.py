"""Readers of image tables, tars and class folders, for what the stock ones would lose.

pandas reads the captions "NA" and "null" as missing; the stock image folder keeps only the files that have
"train" or "test" in their names once a single one has; the stock tar reader refuses shards whose samples
differ in their members. The generators run in workers: what they need comes as arguments that pickle, and the
lists among them are the shards.
"""

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hf_clip.model.image_decoding_hf_clip import IMAGE_SUFFIXES

from .columns import Columns
from .errors import SourceError, how_to_set, one_line
from .sample import ROW_KEY, as_text, clean_captions

# Rows converted to Python at a time, and rows looked at to learn which columns a table without a schema has.
PARQUET_BATCH_ROWS = 256

# Captions may be articles. A quote that is never closed, though, must not read a whole large file into one field.
LARGEST_FIELD = 2**24

# How a text file begins that is written in other units than bytes, by a mark or by the zeros of its first letter.
_WIDE_BEGINNINGS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


class Mark(NamedTuple):
    """A row's place in its file: `offset` bytes (rows, for formats without lines), and the number in its key."""

    offset: int
    number: int


def generate_rows(files: list[str], columns: Columns) -> Iterator[dict[str, Any]]:
    for file in files:
        for key, row in read_rows(file):
            yield arrange_row(file, key, row, columns)


def arrange_row(file: str, key: str, row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The columns that are read of a row of a table or tar, captions as lists, the image as bytes or path."""
    texts = {column: as_text(row.get(column)) for column in columns.read}
    captions = {column: clean_captions(row.get(column)) for column in columns.captions}
    image = row.get(columns.image)
    if not isinstance(image, dict):
        path = locate(image, Path(file))
        image = {"bytes": None, "path": path} if path else None
    return {**texts, **captions, columns.image: image, ROW_KEY: key}


def generate_images(shards: list[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for path in shard:
            yield {"image": {"bytes": None, "path": path}, "label": Path(path).parent.name, ROW_KEY: path}


def read_rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, row) of each row of a table or tar, the key as in `Sample`."""
    for _, key, row in read_marked_rows(file):
        yield key, row


def read_marked_rows(file: str, start: Mark | None = None) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    """(mark, key, row) of each row of a table or tar, from a mark that an earlier pass gave, or from the first."""
    suffix = Path(file).suffix.lower()
    read = {".csv": _read_csv, ".tsv": _read_csv, ".tar": _read_tar, ".parquet": _read_parquet}.get(suffix, _read_json)
    try:
        if read in (_read_csv, _read_json):
            _require_bytes(file)
        yield from read(file, start)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file!r} is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}). "
            "Convert it, such as with iconv -f latin1 -t utf-8."
        ) from error
    except csv.Error as error:
        if "field limit" not in str(error):
            mend = "Write or fetch it again."
        else:
            mend = "Close the double quote that was opened last, or shorten the field."
        raise SourceError(f"{file!r} cannot be read to its end ({one_line(error)}). {mend}") from error
    except (tarfile.TarError, EOFError, OSError, pa.ArrowException) as error:
        raise SourceError(
            f"{file!r} cannot be read to its end ({one_line(error)}). Write or fetch it again."
        ) from error


def _require_bytes(file: str) -> None:
    """Raises for UTF-16 and UTF-32, which spreadsheets write as "Unicode text"."""
    with open(file, "rb") as stream:
        beginning = stream.read(4)
    wide = next((name for mark, name in _WIDE_BEGINNINGS.items() if beginning.startswith(mark)), None)
    if wide is None and b"\0" in beginning[:2]:
        wide = "utf-16be" if beginning[:1] == b"\0" else "utf-16le"
    if wide is not None:
        raise SourceError(f"{file!r} is {wide.upper()}, not UTF-8. Convert it, such as with iconv -f {wide} -t utf-8.")


def csv_header(file: Path) -> list[str]:
    return next((list(row) for _, row in read_rows(str(file))), [])


class _Lines:
    """Lines of a UTF-8 file, ends kept, from byte `offset` on; then `offset` is where the next one begins."""

    def __init__(self, file: str, offset: int = 0):
        binary = open(file, "rb")
        # Spreadsheets begin a file with a byte order mark; plain UTF-8 would take it for part of the first name.
        self.offset = offset or 3 * (binary.read(3) == b"\xef\xbb\xbf")
        binary.seek(self.offset)
        self._stream = io.TextIOWrapper(binary, encoding="utf-8", newline="")

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.offset += len(line.encode())
        return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()


def _read_csv(file: str, start: Mark | None) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    # The whole process's: raised by whoever reads, never by an import, nor below what somebody chose.
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    with _Lines(file) as lines:
        first = next(lines, "")
    delimiter = "\t" if file.lower().endswith(".tsv") else max(",;\t", key=first.count)
    with _Lines(file) as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise SourceError(f"{file!r} has a column name twice: {', '.join(header)}. Rename one.")
        start = start or Mark(lines.offset, reader.line_num + 1)
    with _Lines(file, start.offset) as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        mark = start
        for values in reader:
            if values and len(values) != len(header):
                raise SourceError(
                    f"{file!r} line {mark.number} has {len(values)} fields, the header has {len(header)}. "
                    "Put captions that hold a separator or a line break into double quotes."
                )
            if values:
                yield mark, f"{file} line {mark.number}", dict(zip(header, values, strict=True))
            mark = Mark(lines.offset, start.number + reader.line_num)


def _read_json(file: str, start: Mark | None) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    """Rows of JSON lines, or of one JSON list."""
    if file.lower().endswith(".json"):
        with open(file, encoding="utf-8-sig") as stream:
            if stream.read(1) == "[":
                stream.seek(0)
                yield from _json_list(file, stream.read(), start)
                return
    start = start or Mark(0, 1)
    with _Lines(file, start.offset) as lines:
        mark = start._replace(offset=lines.offset)
        for line in lines:
            if line.strip():
                yield mark, f"{file} line {mark.number}", _json_object(line, f"{file!r} line {mark.number}")
            mark = Mark(lines.offset, mark.number + 1)


def _json_list(file: str, text: str, start: Mark | None) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{file!r} is no JSON ({one_line(error)}). Mend it, or write one object a line.") from error
    for number in range(start.number if start else 0, len(items)):
        item = items[number]
        if not isinstance(item, dict):
            raise SourceError(f"{file!r} item {number} is no JSON object: {str(item)[:40]!r}. Write one object a row.")
        yield Mark(number, number), f"{file} row {number}", item


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


def _read_parquet(file: str, start: Mark | None) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    number, first = 0, start.number if start else 0
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if number + rows <= first:
                number += rows
                continue
            for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS, row_groups=[group]):
                for row in batch.to_pylist():
                    if number >= first:
                        yield Mark(number, number), f"{file} row {number}", row
                    number += 1


def _read_tar(file: str, start: Mark | None) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    """Samples of a WebDataset tar: members in a row whose paths are equal up to the file name's first dot."""
    mark, current, row = start or Mark(0, 0), None, {}
    first = mark.offset
    with open(file, "rb") as stream:
        stream.seek(first)
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                key, suffix = _sample_of_member(member)
                if key is None:
                    continue
                if key != current and current is not None:
                    yield mark, f"{file} sample {current}", row
                    mark, row = Mark(first + member.offset, mark.number + 1), {}
                current = key
                _add_member(row, suffix, archive.extractfile(member).read(), f"{file}/{member.name}")
            _require_end(file, archive, stream, first)
    if current is not None:
        yield mark, f"{file} sample {current}", row


def _require_end(file: str, archive: tarfile.TarFile, stream: io.BufferedReader, first: int = 0) -> None:
    """Raises where no end mark follows the last member: tarfile takes a damaged header for the end."""
    # What is compressed as a whole has a checksum and an end of its own.
    if getattr(archive.fileobj, "comptype", "tar") == "tar":
        stream.seek(first + archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise SourceError(
                f"{file!r} is cut or damaged at byte {first + archive.offset}: no header and no end of the archive is "
                "there. Write or fetch it again."
            )


def marks_of_tar(file: str) -> list[Mark] | None:
    """The mark of each sample, by the tar's headers alone; None for a tar that is compressed as a whole.

    Raises:
        SourceError: the tar is cut or damaged.
    """
    try:
        archive = tarfile.open(file, "r:")
    except tarfile.ReadError:
        return None
    marks, current = [], None
    with archive:
        try:
            for member in archive:
                key, _ = _sample_of_member(member)
                if key is not None and key != current:
                    marks.append(Mark(member.offset, len(marks)))
                    current = key
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SourceError(f"{file!r} is cut or damaged ({one_line(error)}). Write or fetch it again.") from error
        _require_end(file, archive, archive.fileobj)
    return marks


def _sample_of_member(member: tarfile.TarInfo) -> tuple[str | None, str]:
    """(the sample's key, the rest of the name) of a tar's member; no key where it belongs to none."""
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not member.isfile() or not stem:
        return None, ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _add_member(row: dict[str, Any], suffix: str, content: bytes, path: str) -> None:
    """Put a tar's member into its row: the image as `image`, the fields of a JSON object by their names."""
    if "." + suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
        image = {"bytes": content, "path": path}
        # One shard may hold jpg, png and webp side by side, so these are one column; `left.jpg` is its own.
        row.setdefault("image" if "." not in suffix else suffix, image)
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
    """The path of an image named in `table`, relative to the table's folder; None if there is no name."""
    if not isinstance(value, str) or not value.strip():
        return None
    path = value.strip()
    return path if "://" in path else str(table.absolute().parent / path)


def check_paths(table: Path, paths: list[str | None]) -> None:
    named = [path for path in paths if path]
    if not any("://" in path or os.path.isfile(path) for path in named):
        what = f"such as {named[0]!r}" if named else "for the fields are empty"
        raise SourceError(
            f"none of the first {len(paths)} images named in {str(table)!r} exists, {what}. "
            f"Paths are read relative to the table's folder. {how_to_set('image_column')}."
        )
