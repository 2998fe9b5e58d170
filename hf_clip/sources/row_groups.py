"""The row groups of parquet files with images inside: an index of their lengths, and readers made when asked for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import datasets
import numpy as np
import pyarrow as pa

from .columns import Columns
from .errors import different_columns
from .parquet_files import fetch_row_group_ahead, open_row_group, read_footer
from .readers import read_row_group
from .shards import Keep, Part, as_source_error

# A footer takes part of a millisecond to parse, and on a network far longer to come.
READERS_OF_FOOTERS = 16


@dataclass(frozen=True, eq=False)
class ParquetIndex:
    """What the footers of parquet files say. Of a million row groups it is 8 MB.

    Attributes:
        files: their paths.
        features: of the columns, in the words of `datasets`.
        first_groups: (files + 1,) the first row group of each file, counted over all; the last is how many there are.
        starts: (groups + 1,) the first row of each row group, counted over all; the last is how many there are.
    """

    files: tuple[str, ...]
    features: datasets.Features
    first_groups: np.ndarray
    starts: np.ndarray

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    @property
    def file_starts(self) -> tuple[tuple[str, int], ...]:
        """Each file with the index of its first row, counted over all."""
        return tuple(zip(self.files, self.starts[self.first_groups[:-1]].tolist(), strict=True))

    def place(self, group: int) -> tuple[str, int, int]:
        """The file of a row group, its number there, and the index of its first row there."""
        file = int(np.searchsorted(self.first_groups, group, side="right")) - 1
        first = int(self.first_groups[file])
        return self.files[file], group - first, int(self.starts[group] - self.starts[first])


def index_parquet(files: Sequence[str]) -> ParquetIndex:
    """The index of `files`, by their footers alone.

    Raises:
        SourceError: one cannot be read. UnlikeColumnsError: they differ in their columns.
    """
    with ThreadPoolExecutor(min(READERS_OF_FOOTERS, len(files))) as readers:
        names, lengths = zip(*readers.map(_columns_and_lengths, files), strict=True)
    for file, found in zip(files, names, strict=True):
        if set(found) != set(names[0]):
            raise different_columns(files[0], names[0], file, found)
    first_groups = np.cumsum([0, *map(len, lengths)])
    starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
    return ParquetIndex(
        tuple(files), _features_of(read_footer(files[0]).schema.to_arrow_schema()), first_groups, starts
    )


def _columns_and_lengths(file: str) -> tuple[list[str], np.ndarray]:
    """The names of a file's columns, the rows of each of its row groups."""
    footer = read_footer(file)
    rows = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    return footer.schema.to_arrow_schema().names, np.fromiter(rows, np.int64, footer.num_row_groups)


def _features_of(schema: pa.Schema) -> datasets.Features:
    """Types of the columns that `datasets` has a type for: one of maps, which nothing reads, refuses no file."""
    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, NotImplementedError, TypeError):
        pass
    for field in list(schema):
        try:
            datasets.Features.from_arrow_schema(pa.schema([field]))
        except (ValueError, NotImplementedError, TypeError):
            schema = schema.remove(schema.get_field_index(field.name))
    return datasets.Features.from_arrow_schema(schema)


class RowGroups(Sequence[Part]):
    """The row groups that have rows as parts of a source, each made when it is asked for."""

    def __init__(self, index: ParquetIndex, columns: Columns):
        lengths = np.diff(index.starts)
        self._index, self._columns = index, columns
        self._groups = np.flatnonzero(lengths)
        self.lengths = lengths[self._groups]

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: int) -> Part:  # type: ignore[override]
        file, group, start = self._index.place(int(self._groups[number]))
        length = int(self.lengths[number])
        return _part(file, group, start, range(length), self._columns)


def find_row_groups(index: ParquetIndex, columns: Columns, keep: Keep | None) -> Sequence[Part]:
    """Parts of parquet files with images inside: their row groups. With `keep`, each is looked through."""
    if keep is None:
        return RowGroups(index, columns)
    found = []
    for file, first, end in zip(index.files, index.first_groups[:-1], index.first_groups[1:], strict=True):
        for group in range(end - first):
            with as_source_error(file), open_row_group(file, group, columns.where) as parquet:
                table = parquet.read_row_group(group, columns=list(columns.where))
            kept = [number for number, row in enumerate(table.to_pylist()) if keep(row)]
            start = int(index.starts[first + group] - index.starts[first])
            if kept:
                found.append(_part(file, group, start, kept, columns))
    return found


def _part(file: str, group: int, start: int, kept: Sequence[int], columns: Columns) -> Part:
    rows = partial(_read, file, group, start, columns, kept)
    return Part(
        f"{file} row group {group}", len(kept), rows, partial(fetch_row_group_ahead, file, group, columns.read)
    )


def _read(file: str, group: int, start: int, columns: Columns, kept: Sequence[int], first: int):
    return read_row_group(file, group, start, columns, kept[first:])
