"""The parts of a source that are read on their own, from any row on where the format allows it.

Training deals them to processes. A row group of a parquet file, some rows of a table or a tar, some rows of a
`save_to_disk` folder are parts of known length that open at any row. What can only be read from its beginning (a shard
on the Hub, a tar that is compressed or one of very many) is a part of unknown length.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .cache import fetch_ahead
from .columns import Columns
from .errors import SourceError, one_line
from .marks import Mark
from .readers import arrange_row, read_marked_rows
from .remote import is_address, suffix_of
from .sample import ROW_KEY, Sample, Source, to_sample
from .tars import marks_of_tar

ROWS_PER_SHARD = 256
# To find the samples of a tar takes half a second for ten thousand of them: more tars than these are not looked into.
MAX_TARS_TO_INDEX = 64
# The indices of rows of shards of unknown length are given as if none had more.
MAX_UNKNOWN_ROWS = 2**32

Rows = Callable[[int], Iterator[tuple[str | None, Mapping[str, Any]]]]
Keep = Callable[[Mapping[str, Any]], bool]


class Part(NamedTuple):
    """What a shard of any source has: its name, its length where that is known, (key, row) of each row from the given
    one on, and what brings it to this machine before it is read."""

    name: str
    num_rows: int | None
    rows: Rows
    fetch_ahead: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a source.

    Attributes:
        source: whose rows they are.
        name: for messages.
        first_index: the `Sample.index` of its first row; those of the others follow it.
        num_rows: how many there are; None where only reading to the end would tell.
        rows: (key, row) of each row from the given one on.
        fetch_ahead: begins to bring it to this machine, where it is not.
    """

    source: Source
    name: str
    first_index: int
    num_rows: int | None
    rows: Rows
    fetch_ahead: Callable[[], None] = lambda: None

    def read(self, first: int = 0) -> Iterator[Sample]:
        """The samples from row `first` on, images undecoded. Without `num_rows`, those before it are read over.

        Raises:
            SourceError: the file itself cannot be read any further.
        """
        with as_source_error(self.name):
            left = None if self.num_rows is None else max(self.num_rows - first, 0)
            for index, (key, row) in enumerate(islice(self.rows(first), left), start=first):
                yield to_sample(self.source, row, self.first_index + index, key)


class Shards(Sequence[Shard]):
    """The shards of a source, each made when it is asked for: of a million, numbers alone are kept.

    Attributes:
        lengths: (shards,) int64, the rows of each; -1 where only reading to the end would tell.
    """

    def __init__(self, source: Source, parts: Sequence[Part]):
        self._source, self._parts = source, parts
        lengths = getattr(parts, "lengths", None)
        if lengths is None:
            lengths = np.array([-1 if part.num_rows is None else part.num_rows for part in parts], np.int64)
        self.lengths: np.ndarray = lengths
        indices = np.where(lengths < 0, MAX_UNKNOWN_ROWS, lengths)
        self._first_indices = np.cumsum(indices) - indices

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Shard:  # type: ignore[override]
        part = self._parts[number]
        first = int(self._first_indices[number])
        return Shard(self._source, part.name, first, part.num_rows, part.rows, part.fetch_ahead)


def list_shards(source: Source) -> Shards:
    """All shards of `source`, in the order of its rows; together they hold each row once."""
    if source.find_rows is not None:
        return Shards(source, source.find_rows())
    if hasattr(source.dataset, "__len__"):
        return Shards(source, find_indexed_rows(source.dataset))
    count = source.dataset.num_shards
    names = [f"{source.name} shard {number}" for number in range(count)]
    parts = [Part(name, None, _stream(source, count, number)) for number, name in enumerate(names)]
    return Shards(source, parts)


def find_indexed_rows(rows: Any, keep: Keep | None = None) -> list[Part]:
    """Shards of what has a length and rows by index: a list, a `datasets.Dataset`."""
    kept = range(len(rows)) if keep is None else [index for index in range(len(rows)) if keep(rows[index])]

    def part(indices: Sequence[int]) -> Rows:
        return lambda first: ((None, rows[index]) for index in indices[first:])

    parts = [kept[start : start + ROWS_PER_SHARD] for start in range(0, len(kept), ROWS_PER_SHARD)]
    return [Part(f"row {indices[0]} on", len(indices), part(indices)) for indices in parts]


def find_marked_rows(files: Sequence[str], columns: Columns, keep: Keep | None) -> list[Part]:
    """Shards of tables of image paths and of tars."""
    found: list[Part] = []
    reads_tars = suffix_of(files[0]) == ".tar"
    for file in files:
        if not reads_tars:
            marks = _marks_by_reading(file, columns, keep)
        elif len(files) > MAX_TARS_TO_INDEX or is_address(file):
            marks = None
        elif (marks := marks_of_tar(file)) is not None and keep is not None:
            marks = _marks_by_reading(file, columns, keep)
        if marks is None:
            found.append(Part(file, None, _marked(file, None, columns, keep), partial(fetch_ahead, file)))
            continue
        for start in range(0, len(marks), ROWS_PER_SHARD):
            part = marks[start : start + ROWS_PER_SHARD]
            name = f"{file} row {part[0].number} on"
            found.append(Part(name, len(part), _marked(file, part[0], columns, keep)))
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
def as_source_error(name: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(
            f"{name}: the data cannot be read from here on ({one_line(error)}). Fetch the file again."
        ) from error
