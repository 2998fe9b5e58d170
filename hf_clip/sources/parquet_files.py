"""Parquet files, here or at an address: their footers, and single row groups of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from . import cache, remote
from .errors import SourceError, one_line

# The last bytes of a file, in which most footers lie: one request instead of two.
TAIL = 2**16
MAGIC = b"PAR1"


def read_footer(file: str) -> pq.FileMetaData:
    """What a parquet file says of itself. Raises SourceError where it is none."""
    try:
        return _remote_footer(file) if remote.is_address(file) else pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{file!r} is no readable parquet file ({one_line(error)}). Fetch it again.") from error


# Lanes read row groups of some files at a time.
@lru_cache(256)
def _remote_footer(address: str) -> pq.FileMetaData:
    size = remote.size_of(address)
    tail = remote.read_bytes(address, max(size - TAIL, 0), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != MAGIC or length > size:
        raise pa.ArrowInvalid("there is no footer at its end")
    if length > len(tail):
        tail = remote.read_bytes(address, size - length, size)
    return pq.read_metadata(pa.BufferReader(tail[-length:]))


@contextmanager
def open_row_group(file: str, group: int, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    """A parquet file of which some columns of one row group are going to be read."""
    # Unbuffered, pyarrow would hold the whole group for each of those who read in it.
    options = {"pre_buffer": False, "buffer_size": 2**20}
    if not remote.is_address(file):
        with pq.ParquetFile(file, **options) as parquet:
            yield parquet
        return
    footer = read_footer(file)
    with cache.open_part(file, *_bytes_of(footer, group, columns)) as stream:
        with pq.ParquetFile(stream, metadata=footer, **options) as parquet:
            yield parquet


def fetch_row_group_ahead(file: str, group: int, columns: Sequence[str]) -> None:
    """Begins to bring columns of a row group here that are going to be read soon, where the file is at an address."""
    if remote.is_address(file):
        cache.cache.in_background(lambda: cache.fetch_ahead(file, *_bytes_of(read_footer(file), group, columns)))


def _bytes_of(footer: pq.FileMetaData, group: int, columns: Sequence[str]) -> tuple[int, int]:
    """Where the columns of a row group begin and end in their file."""
    of_group = footer.row_group(group)
    chunks = [of_group.column(number) for number in range(of_group.num_columns)]
    first, last = [], []
    for chunk in chunks:
        if chunk.path_in_schema.partition(".")[0] in columns:
            first.append(min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))))
            last.append(first[-1] + chunk.total_compressed_size)
    return min(first), max(last)
