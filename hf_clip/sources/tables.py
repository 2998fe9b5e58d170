"""Rows of CSV, TSV, JSON lines, JSON lists and parquet files of image paths.

pandas would read the captions "NA" and "null" as missing. A row that cannot be read is one row: it comes with its
problem instead of its columns, and the rows after it come too.
"""

import csv
import io
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from .errors import SourceError, one_line
from .marks import PROBLEM, Mark, MarkedRows

# Rows converted to Python at a time.
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
# What Python makes of a byte that is no UTF-8.
_NO_UTF8 = re.compile("[\udc80-\udcff]")


def require_utf8_units(file: str) -> None:
    """Raises SourceError for UTF-16 and UTF-32, which spreadsheets write as "Unicode text"."""
    with open(file, "rb") as stream:
        beginning = stream.read(4)
    wide = next((name for mark, name in _WIDE_BEGINNINGS.items() if beginning.startswith(mark)), None)
    if wide is None and b"\0" in beginning[:2]:
        wide = "utf-16be" if beginning[:1] == b"\0" else "utf-16le"
    if wide is not None:
        raise SourceError(f"{file!r} is {wide.upper()}, not UTF-8. Convert it, such as with iconv -f {wide} -t utf-8.")


class _Lines:
    """Lines of a UTF-8 file, ends kept, from byte `offset` on; then `offset` is where the next one begins.

    `bad_byte` is the last byte that was no UTF-8, for whoever reads to look at and to reset.
    """

    def __init__(self, file: str, offset: int = 0):
        binary = open(file, "rb")
        # Spreadsheets begin a file with a byte order mark; plain UTF-8 would take it for part of the first name.
        self.offset = offset or 3 * (binary.read(3) == b"\xef\xbb\xbf")
        self.bad_byte: int | None = None
        binary.seek(self.offset)
        self._stream = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="")

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.offset += len(line.encode(errors="surrogateescape"))
        if not line.isascii() and (found := _NO_UTF8.search(line)):
            self.bad_byte = ord(found[0]) - 0xDC00
        return line

    def take_problem(self) -> str | None:
        """What is wrong with the encoding of the lines since the last call."""
        byte, self.bad_byte = self.bad_byte, None
        if byte is None:
            return None
        return f"is not UTF-8 (byte 0x{byte:02x}). Convert the file, such as with iconv -f latin1 -t utf-8."

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()


class _Layout(NamedTuple):
    """How a CSV or TSV file is to be read, its header, and where its rows begin."""

    delimiter: str
    quoting: Any
    header: list[str]
    start: Mark

    def reader(self, lines: _Lines):
        # Strict, or a quote that is never closed would be taken for one that is.
        return csv.reader(lines, delimiter=self.delimiter, quoting=self.quoting, strict=True)


def csv_header(file: str) -> list[str]:
    """The names of the columns of a CSV or TSV file."""
    return _layout(file).header


def _layout(file: str) -> _Layout:
    # The whole process's: raised by whoever reads, never by an import, nor below what somebody chose.
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    try:
        status = os.stat(file)
    except OSError as error:
        raise SourceError(f"{file!r} cannot be read ({error.strerror}). Check the path and its rights.") from error
    return _layout_of_version(file, status.st_mtime_ns, status.st_size)


# Shards of one file all ask, and the answer for a TSV file with quotes takes a pass through it.
@lru_cache(maxsize=256)
def _layout_of_version(file: str, _time: int, _size: int) -> _Layout:
    with _Lines(file) as lines:
        first = next(lines, "")
    delimiter = "\t" if file.lower().endswith(".tsv") else max(",;\t", key=first.count)
    quoting = csv.QUOTE_MINIMAL
    if delimiter == "\t" and not _all_quotes_close(file):
        quoting = csv.QUOTE_NONE
    with _Lines(file) as lines:
        layout = _Layout(delimiter, quoting, [], Mark(0, 1))
        reader = layout.reader(lines)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise SourceError(
                f"{file!r} line 1 is no header ({error}). Write the names of the columns there."
            ) from error
        if problem := lines.take_problem():
            raise SourceError(f"{file!r} line 1 {problem}")
        if len(set(header)) < len(header):
            raise SourceError(f"{file!r} has a column name twice: {', '.join(header)}. Rename one.")
        return layout._replace(header=header, start=Mark(lines.offset, reader.line_num + 1))


def _all_quotes_close(file: str) -> bool:
    """Whether each field of a TSV file that begins with a quote ends with one, as CSV has it.

    TSV as such has no quoting: captions that begin with a quote are common, and must not swallow the lines after them.
    """
    with open(file, "rb") as stream:
        if not any(line.startswith(b'"') or b'\t"' in line for line in stream):
            return True
    with _Lines(file) as lines:
        reader = csv.reader(lines, delimiter="\t", strict=True)
        try:
            header, line = len(next(reader, [])), reader.line_num
            for values in reader:
                # A field over several lines that leaves its row with other columns was not meant as one.
                if reader.line_num > line + 1 and len(values) != header:
                    return False
                line = reader.line_num
        except csv.Error:
            return False
    return True


def read_csv(file: str, start: Mark | None) -> MarkedRows:
    """Rows of a CSV or TSV file."""
    layout = _layout(file)
    header, mark = layout.header, start or layout.start
    first = mark.number
    with _Lines(file, mark.offset) as lines:
        reader = layout.reader(lines)
        while True:
            values: list[str] = []
            problem = None
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = _problem_of_quotes(file, mark, error)
            problem = lines.take_problem() or problem
            if problem is None and values and len(values) != len(header):
                problem = (
                    f"has {len(values)} field{'s' * (len(values) != 1)}, the header has {len(header)}. "
                    "Put captions that hold a separator or a line break into double quotes."
                )
            if problem is not None:
                yield mark, f"{file} line {mark.number}", {PROBLEM: problem}
            elif values:
                yield mark, f"{file} line {mark.number}", dict(zip(header, values, strict=True))
            mark = Mark(lines.offset, first + reader.line_num)


def _problem_of_quotes(file: str, mark: Mark, error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text or "field limit" in text or "field larger" in text:
        raise SourceError(
            f"{file!r} cannot be read from line {mark.number} on ({text}). Close the double quote that a field of it "
            "opens, or shorten the field."
        ) from error
    return f'is no CSV ({text}). Double the quotes within a quoted field, as in "a ""red"" cat".'


def read_json(file: str, start: Mark | None) -> MarkedRows:
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
                problem = lines.take_problem()
                row = {PROBLEM: problem} if problem else _json_object(line)
                yield mark, f"{file} line {mark.number}", row
            mark = Mark(lines.offset, mark.number + 1)


def _json_list(file: str, text: str, start: Mark | None) -> MarkedRows:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file!r} is no JSON ({one_line(error)}). Fix it, or write one object a line.") from error
    for index in range(start.number if start else 0, len(items)):
        item = items[index]
        row = item if isinstance(item, dict) else {PROBLEM: _no_object(item)}
        yield Mark(index, index), f"{file} row {index}", row


def _json_object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {PROBLEM: f"is no JSON ({one_line(error)}). Write one object a line."}
    return row if isinstance(row, dict) else {PROBLEM: _no_object(row)}


def _no_object(value: Any) -> str:
    return f"is no JSON object: {json.dumps(value)[:40]!r}. Write one object a row, with the columns as its keys."


def read_parquet(file: str, start: Mark | None) -> MarkedRows:
    """Rows of a parquet file."""
    index, first = 0, start.number if start else 0
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if index + rows <= first:
                index += rows
                continue
            for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS, row_groups=[group]):
                for row in batch.to_pylist():
                    if index >= first:
                        yield Mark(index, index), f"{file} row {index}", row
                    index += 1


def looks_like_a_row(header: list[str], suffixes: frozenset[str]) -> bool:
    """Whether the first line of a table has the name or the address of an image, as no header has."""
    return any("://" in name or Path(name).suffix.lower() in suffixes for name in header)
