"""The order of the pairs: which lane reads which rows, and in which order, as a function of (seed, epoch) alone.

A lane is a logical shard: a part of the rows that one process reads by itself. Their number is fixed for a run,
whatever the number of processes, and each process serves some consecutive lanes. In each of its epochs a lane goes
through its pieces in an order drawn from (seed, epoch, lane), reads them in blocks, and shuffles each block by a
draw of its own. `datasets`' shuffle buffer is not used: it loses and repeats samples on resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from .errors import DataError

# More lanes serve more processes, but each has a file open and a block of its own.
MAX_DEFAULT_LANES = 32
# With few pairs of each lane in a batch, two of the same lane would meet too rarely.
MIN_PAIRS_OF_LANE = 4


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `last` of a shard, read by one lane. `last` is None where the shard's length is not known."""

    source: int
    shard: int
    first: int
    last: int | None

    @property
    def num_rows(self) -> int:
        """Of a piece whose length is known."""
        assert self.last is not None
        return self.last - self.first


@dataclass(frozen=True)
class Pass:
    """One reading of a piece. `index` counts the passes through its source, from 0."""

    piece: Piece
    index: int


@dataclass(frozen=True, order=True)
class LanePosition:
    """How far a lane is: before pair `offset` of a block that begins at row `row` of the epoch's piece `piece`."""

    epoch: int = 0
    block: int = 0
    piece: int = 0
    row: int = 0
    offset: int = 0


def choose_lanes(batch_size: int, num_rows: int | None, num_shards: int | None) -> int:
    """The number of lanes by default: a divisor of `batch_size` that many numbers of processes divide.

    Args:
        batch_size: pairs of a step.
        num_rows: of the data, where known. One lane makes the most of less than two batches.
        num_shards: the fewest that a source has which cannot be split by rows.
    """
    limit = max(min(MAX_DEFAULT_LANES, batch_size // MIN_PAIRS_OF_LANE, num_shards or MAX_DEFAULT_LANES), 1)
    if num_rows is not None and num_rows < 2 * batch_size:
        limit = 1
    candidates = _divisors(batch_size, limit)
    return max(candidates, key=lambda lanes: (len(_divisors(lanes, lanes)), lanes))


def require_lanes(lanes: int, batch_size: int, world_size: int) -> None:
    """Raises DataError where lanes cannot share a batch, or processes the lanes."""
    if batch_size % world_size:
        raise DataError(
            f"batch_size={batch_size} cannot be divided among {world_size} processes: "
            f"set it to {max(batch_size // world_size, 1) * world_size}."
        )
    if batch_size % lanes:
        raise DataError(
            f"batch_size={batch_size} cannot be divided among data.lanes={lanes}: set data.lanes to one of "
            f"{', '.join(map(str, _divisors(batch_size, 64)))}."
        )
    if lanes % world_size:
        fitting = [divisor for divisor in _divisors(batch_size, batch_size) if divisor % world_size == 0]
        raise DataError(
            f"data.lanes={lanes} cannot be divided among {world_size} processes: start "
            f"{' or '.join(map(str, _divisors(lanes, lanes)))}, or set data.lanes to a multiple of {world_size} such "
            f"as {fitting[0]} (which makes another order)."
        )


def _divisors(number: int, limit: int) -> list[int]:
    return [divisor for divisor in range(1, limit + 1) if number % divisor == 0]


def deal(sources: Sequence[Sequence[int | None]], lanes: int) -> list[list[list[Piece]]]:
    """The pieces of each lane, by source. `sources` has the number of rows of each shard of each source.

    Rows of known number are cut into equal parts, one a lane; shards of unknown length are dealt in turn.
    """
    return [[_pieces(source, shards, lane, lanes) for source, shards in enumerate(sources)] for lane in range(lanes)]


def _pieces(source: int, shards: Sequence[int | None], lane: int, lanes: int) -> list[Piece]:
    lengths = [rows for rows in shards if rows is not None]
    if len(lengths) < len(shards):
        return [Piece(source, shard, 0, None) for shard in range(lane, len(shards), lanes)]
    total, start, pieces = sum(lengths), 0, []
    first, last = lane * total // lanes, (lane + 1) * total // lanes
    for shard, rows in enumerate(lengths):
        begin, end = max(first - start, 0), min(last - start, rows)
        if begin < end:
            pieces.append(Piece(source, shard, begin, end))
        start += rows
    return pieces


def passes_in_epoch(weight: float, epoch: int) -> range:
    """The indices of the passes through a source of this weight that belong to an epoch.

    A weight of 2 passes through it twice an epoch, of 0.5 in every other epoch, the first one included.
    """
    exact = Fraction(str(weight))
    return range(ceil(exact * epoch), ceil(exact * (epoch + 1)))


def order_of_epoch(pieces: Sequence[Sequence[Piece]], weights: Sequence[float], key: Sequence[int]) -> list[Pass]:
    """What a lane reads in an epoch, in order. `pieces` are its own by source, `key` is (seed, epoch, lane)."""
    passes = [
        Pass(piece, index)
        for pieces_of_source, weight in zip(pieces, weights, strict=True)
        for index in passes_in_epoch(weight, key[1])
        for piece in pieces_of_source
    ]
    return [passes[index] for index in np.random.default_rng(key).permutation(len(passes))]


def order_of_block(size: int, key: Sequence[int], block: int) -> np.ndarray:
    """The order in which the rows of a block come; `key` as for `order_of_epoch`."""
    # numpy takes [a, b, c] and [a, b, c, 0] for one seed.
    return np.random.default_rng([*key, block + 1]).permutation(size)
