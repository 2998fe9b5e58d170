"""The order of the pairs: which lane reads which rows, and in which order, as a function of (seed, epoch) alone.

A lane is a logical shard: a part of the rows that one process reads by itself. Their number is fixed for a run,
whatever the number of processes, and each process serves some consecutive lanes. In each of its epochs a lane goes
through its pieces in an order drawn from (seed, epoch, lane), reads them in blocks, and shuffles each block by a
draw of its own. `datasets`' shuffle buffer is not used: it loses and repeats samples on resume.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from .errors import DataError

# More lanes serve more processes, but each has a file open and a block of its own.
MAX_DEFAULT_LANES = 32
# So many times as many processes as a run began with can go on with it.
DEFAULT_GROWTH = 4
# Pairs that wait to be shuffled by default: so many in all, and so many of each lane.
DEFAULT_SHUFFLE_BLOCK = 8192
MIN_BLOCK_OF_LANE = 256
# With few pairs of each lane in a batch, two of the same lane would meet too rarely.
MIN_PAIRS_OF_LANE = 4


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `last` of a shard, read by one lane. `last` is None where the shard's length is not known."""

    source: int
    shard: int
    first: int
    last: int | None


class Pieces(Sequence[Piece]):
    """The pieces of a lane in one source, each made when it is asked for: a lane may have millions.

    Attributes:
        shards: (pieces,) int64.
        firsts, lasts: (pieces,) int64, as of a `Piece`; no `lasts` where the lengths of the shards are not known.
    """

    def __init__(self, source: int, shards: np.ndarray, firsts: np.ndarray, lasts: np.ndarray | None):
        self._source, self.shards, self.firsts, self.lasts = source, shards, firsts, lasts

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Piece:  # type: ignore[override]
        last = None if self.lasts is None else int(self.lasts[number])
        return Piece(self._source, int(self.shards[number]), int(self.firsts[number]), last)


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


def choose_lanes(batch_size: int, num_rows: int | None, num_shards: int | None, world_size: int = 1) -> int:
    """The number of lanes by default: a divisor of `batch_size` that many numbers of processes divide.

    Args:
        batch_size: pairs of a step.
        num_rows: of the data, where known. One lane makes the most of less than two batches.
        num_shards: the fewest that a source has which cannot be split by rows.
        world_size: processes that the run begins with. More than a few get lanes for as many again, and more.
    """
    most = max(MAX_DEFAULT_LANES, DEFAULT_GROWTH * world_size)
    limit = max(min(most, batch_size // MIN_PAIRS_OF_LANE, num_shards or most), 1)
    if num_rows is not None and num_rows < 2 * batch_size:
        limit = 1
    candidates = [lanes for lanes in _divisors(batch_size, limit) if lanes % world_size == 0] or [world_size]
    return max(candidates, key=lambda lanes: (len(_divisors(lanes, lanes)), lanes))


def choose_shuffle_block(lanes: int) -> int:
    """The pairs, over all lanes, that wait by default to be shuffled."""
    return max(DEFAULT_SHUFFLE_BLOCK, MIN_BLOCK_OF_LANE * lanes)


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


def deal(
    sources: Sequence[Sequence[int | None] | np.ndarray], lanes: int, own: Sequence[int] | None = None
) -> list[list[Pieces]]:
    """The pieces of each lane, by source.

    Rows of known number are cut into equal parts, one a lane; shards of unknown length are dealt in turn.

    Args:
        sources: the number of rows of each shard of each source; None or -1 where it is not known.
        lanes: how many there are.
        own: those wanted; all by default.
    """
    own = range(lanes) if own is None else own
    dealt = [_deal(number, _as_lengths(rows), lanes, own) for number, rows in enumerate(sources)]
    return [list(of_lane) for of_lane in zip(*dealt, strict=True)]


def _as_lengths(rows: Sequence[int | None] | np.ndarray) -> np.ndarray:
    """The number of rows of each shard, -1 where it is not known."""
    return rows if isinstance(rows, np.ndarray) else np.array([-1 if n is None else n for n in rows], np.int64)


def rows_of_lane(total: int, lane: int, lanes: int) -> range:
    """The rows of a source of known length that a lane reads."""
    return range(lane * total // lanes, (lane + 1) * total // lanes)


def _deal(source: int, lengths: np.ndarray, lanes: int, own: Sequence[int]) -> list[Pieces]:
    if (lengths < 0).any():
        in_turn = (np.arange(lane, len(lengths), lanes) for lane in own)
        return [Pieces(source, shards, np.zeros_like(shards), None) for shards in in_turn]
    ends = np.cumsum(lengths)
    total, dealt = int(ends[-1]) if len(ends) else 0, []
    for lane in own:
        rows = rows_of_lane(total, lane, lanes)
        # Shards that end behind the lane's first row and begin before its end.
        shards = np.arange(
            np.searchsorted(ends, rows.start, side="right"), np.searchsorted(ends - lengths, rows.stop, side="left")
        )
        starts = ends[shards] - lengths[shards]
        firsts, lasts = np.maximum(rows.start - starts, 0), np.minimum(rows.stop - starts, lengths[shards])
        has_rows = firsts < lasts
        dealt.append(Pieces(source, shards[has_rows], firsts[has_rows], lasts[has_rows]))
    return dealt


def passes_in_epoch(weight: float, epoch: int) -> range:
    """The indices of the passes through a source of this weight that belong to an epoch.

    A weight of 2 passes through it twice an epoch, of 0.5 in every other epoch, the first one included.
    """
    exact = Fraction(str(weight))
    return range(ceil(exact * epoch), ceil(exact * (epoch + 1)))


class EpochOrder(Sequence[Pass]):
    """What a lane reads in an epoch, in order, each made when it is asked for.

    Args:
        pieces: the lane's own, by source.
        weights: of the sources.
        key: (seed, epoch, lane).
    """

    def __init__(self, pieces: Sequence[Sequence[Piece]], weights: Sequence[float], key: Sequence[int]):
        self._passes = [
            (of_source, index)
            for of_source, weight in zip(pieces, weights, strict=True)
            for index in passes_in_epoch(weight, key[1])
        ]
        self._ends = np.cumsum([len(of_source) for of_source, _ in self._passes], dtype=np.int64).tolist()
        self._order = np.random.default_rng(key).permutation(self._ends[-1] if self._ends else 0)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> Pass:  # type: ignore[override]
        drawn = int(self._order[number])
        which = bisect_right(self._ends, drawn)
        of_source, index = self._passes[which]
        return Pass(of_source[drawn - (self._ends[which - 1] if which else 0)], index)


def order_of_block(size: int, key: Sequence[int], block: int) -> np.ndarray:
    """The order in which the rows of a block come; `key` as for `order_of_epoch`."""
    # numpy takes [a, b, c] and [a, b, c, 0] for one seed.
    return np.random.default_rng([*key, block + 1]).permutation(size)
