"""The parts of a source that are read on their own, from any row on where the format allows it.

Training deals them to processes. A row group of a parquet file, some rows of a table or a tar, some rows of a
`save_to_disk` folder are parts of known length that open at any row. What can only be read from its beginning (a shard
on the Hub, a tar that is compressed or one of very many) is a part of unknown length.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .columns import Columns
from .errors import SourceError, one_line
from .marks import Mark
from .readers import arrange_row, read_marked_rows, read_row_group
from .sample import ROW_KEY, Sample, Source, to_sample
from .tars import marks_of_tar

ROWS_PER_SHARD = 256
# To find the samples of a tar takes half a second for ten thousand of them: more tars than these are not looked into.
MAX_TARS_TO_INDEX = 64
# The indices of rows of shards of unknown length are given as if none had more.
MAX_UNKNOWN_ROWS = 2**32

Rows = Callable[[int], Iterator[tuple[str | None, Mapping[str, Any]]]]
Keep = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a source.

    Attributes:
        source: whose rows they are.
        name: for messages.
        first_index: the `Sample.index` of its first row; those of the others follow it.
        num_rows: how many there are; None where only reading to the end would tell.
        rows: (key, row) of each row from the given one on.
    """

    source: Source
    name: str
    first_index: int
    num_rows: int | None
    rows: Rows

    def read(self, first: int = 0) -> Iterator[Sample]:
        """The samples from row `first` on, images undecoded. Without `num_rows`, those before it are read over.

        Raises:
            SourceError: the file itself cannot be read any further.
        """
        with _as_source_error(self.name):
            left = None if self.num_rows is None else max(self.num_rows - first, 0)
            for index, (key, row) in enumerate(islice(self.rows(first), left), start=first):
                yield to_sample(self.source, row, self.first_index + index, key)


def list_shards(source: Source) -> list[Shard]:
    """All shards of `source`, in the order of its rows; together they hold each row once."""
    if source.find_rows is not None:
        return _numbered(source, source.find_rows())
    if hasattr(source.dataset, "__len__"):
        return _numbered(source, find_indexed_rows(source.dataset))
    count = source.dataset.num_shards
    return [
        Shard(source, f"{source.name} shard {index}", index * MAX_UNKNOWN_ROWS, None, _stream(source, count, index))
        for index in range(count)
    ]


def _numbered(source: Source, found: Sequence[tuple[str, int | None, Rows]]) -> list[Shard]:
    shards, index = [], 0
    for name, num_rows, rows in found:
        shards.append(Shard(source, name, index, num_rows, rows))
        index += MAX_UNKNOWN_ROWS if num_rows is None else num_rows
    return shards


def find_indexed_rows(rows: Any, keep: Keep | None = None) -> list[tuple[str, int, Rows]]:
    """Shards of what has a length and rows by index: a list, a `datasets.Dataset`."""
    kept = range(len(rows)) if keep is None else [index for index in range(len(rows)) if keep(rows[index])]

    def part(indices: Sequence[int]) -> Rows:
        return lambda first: ((None, rows[index]) for index in indices[first:])

    parts = [kept[start : start + ROWS_PER_SHARD] for start in range(0, len(kept), ROWS_PER_SHARD)]
    return [(f"row {indices[0]} on", len(indices), part(indices)) for indices in parts]


def find_row_groups(files: Sequence[Path], columns: Columns, keep: Keep | None) -> list[tuple[str, int, Rows]]:
    """Shards of parquet files with images inside: their row groups."""
    found = []
    for file in files:
        with _as_source_error(str(file)), pq.ParquetFile(file) as parquet:
            start = 0
            for group in range(parquet.num_row_groups):
                kept: Sequence[int] = range(parquet.metadata.row_group(group).num_rows)
                stop = start + len(kept)
                if keep is not None:
                    table = parquet.read_row_group(group, columns=list(columns.where))
                    kept = [index for index, row in enumerate(table.to_pylist()) if keep(row)]
                rows = _row_group(file, group, start, kept, columns)
                found.append((f"{file} row group {group}", len(kept), rows))
                start = stop
    return [part for part in found if part[1]]


def _row_group(file: Path, group: int, start: int, kept: Sequence[int], columns: Columns) -> Rows:
    return lambda first: read_row_group(str(file), group, start, columns, kept[first:])


def find_marked_rows(files: Sequence[Path], columns: Columns, keep: Keep | None) -> list[tuple[str, int | None, Rows]]:
    """Shards of tables of image paths and of tars."""
    found: list[tuple[str, int | None, Rows]] = []
    reads_tars = files[0].suffix.lower() == ".tar"
    for file in map(str, files):
        if not reads_tars:
            marks = _marks_by_reading(file, columns, keep)
        elif len(files) > MAX_TARS_TO_INDEX:
            marks = None
        elif (marks := marks_of_tar(file)) is not None and keep is not None:
            marks = _marks_by_reading(file, columns, keep)
        if marks is None:
            found.append((file, None, _marked(file, None, columns, keep)))
            continue
        for start in range(0, len(marks), ROWS_PER_SHARD):
            part = marks[start : start + ROWS_PER_SHARD]
            found.append((f"{file} row {part[0].number} on", len(part), _marked(file, part[0], columns, keep)))
    return found


def _marks_by_reading(file: str, columns: Columns, keep: Keep | None) -> list[Mark]:
    rows = read_marked_rows(file)
    return [mark for mark, key, row in rows if keep is None or keep(arrange_row(file, key, row, columns))]


def _marked(file: str, mark: Mark | None, columns: Columns, keep: Keep | None) -> Rows:
    def rows(first: int) -> Iterator[tuple[str, dict[str, Any]]]:
        arranged = (arrange_row(file, key, row, columns) for _, key, row in read_marked_rows(file, mark))
        kept = arranged if keep is None else filter(keep, arranged)
        return ((row[ROW_KEY], row) for row in islice(kept, first, None))

    return rows


def _stream(source: Source, count: int, index: int) -> Rows:
    def rows(first: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        shard = source.dataset.shard(num_shards=count, index=index)
        for position, row in enumerate(shard.skip(first), start=first):
            yield row.get(ROW_KEY) or f"{source.name} shard {index} row {position}", row

    return rows


@contextmanager
def _as_source_error(name: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(
            f"{name}: the data cannot be read from here on ({one_line(error)}). Fetch the file again."
        ) from error
