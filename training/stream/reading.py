"""What a lane reads: blocks of undecoded samples, in order, from any position on."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hf_clip.sources import Sample, Shard, SourceError

from .errors import DataError, LaneStopped
from .order import EpochOrder, LanePosition, Pass, Piece, order_of_block

# So many pieces of a lane are brought to this machine before they are read.
PIECES_AHEAD = 2

# Sample ids of several sources: those of each begin here.
IDS_PER_SOURCE = 2**56


@dataclass(frozen=True, slots=True)
class Ticket:
    """A pair to be decoded.

    Attributes:
        sample_id: of its row, over all sources.
        sample: the row; None where the decoded pair is still known.
        epoch: of the lane.
        pass_index: how often its source was passed through before.
        after: how far the lane is once the pair is used.
    """

    sample_id: int
    sample: Sample | None
    epoch: int
    pass_index: int
    after: LanePosition


@dataclass(frozen=True)
class _Block:
    start: LanePosition
    end: LanePosition
    rows: list[tuple[int, Sample | None, int]]


class LaneReader:
    """Reads one lane.

    Args:
        shards: of each source.
        pieces: this lane's, of each source.
        weights: of the sources.
        seed, lane: of the order.
        block_rows: rows that wait, undecoded, to be shuffled.
        decoded: ids whose decoded pair is kept: their rows are not read.
        is_stopped: asked at each row, as the next may be long in coming. True raises LaneStopped.
        is_held_out: whether an image is not trained on. Its rows are passed over, and count for the position alone.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[Shard]],
        pieces: Sequence[Sequence[Piece]],
        weights: Sequence[float],
        seed: int,
        lane: int,
        block_rows: int,
        decoded: Collection[int] = (),
        is_stopped: Callable[[], bool] = lambda: False,
        is_held_out: Callable[[Mapping[str, Any]], bool] = lambda image: False,
    ):
        self.shards, self.pieces, self.weights = shards, pieces, weights
        self.seed, self.lane, self.block_rows, self.decoded = seed, lane, block_rows, decoded
        self.is_stopped, self.is_held_out = is_stopped, is_held_out
        self._held_out: set[int] = set()
        self._opened: tuple[Pass, int, Iterator[Sample]] | None = None

    def tickets(self, start: LanePosition, prefetch: Callable[[Iterator], Iterator] = iter) -> Iterator[Ticket]:
        """Endless pairs from `start` on; `prefetch` may read a block while the one before is used."""
        return self._shuffled(prefetch(self._blocks(start)), start.offset)

    def _shuffled(self, blocks: Iterator[_Block], offset: int) -> Iterator[Ticket]:
        for block in blocks:
            start, size = block.start, len(block.rows)
            order = order_of_block(size, (self.seed, start.epoch, self.lane), start.block)
            for index in range(offset, size):
                sample_id, sample, pass_index = block.rows[order[index]]
                last = index + 1 == size
                after = (
                    block.end if last else LanePosition(start.epoch, start.block, start.piece, start.row, index + 1)
                )
                yield Ticket(sample_id, sample, start.epoch, pass_index, after)
            offset = 0

    def _blocks(self, at: LanePosition) -> Iterator[_Block]:
        epoch, block, piece, row = at.epoch, at.block, at.piece, at.row
        while True:
            order = EpochOrder(self.pieces, self.weights, (self.seed, epoch, self.lane))
            is_empty, begun = (block, piece, row) == (0, 0, 0), -1
            while piece < len(order):
                start, rows, passed = LanePosition(epoch, block, piece, row), [], 0
                while piece < len(order) and passed < self.block_rows:
                    if piece > begun:
                        begun = piece
                        self._fetch_ahead(order, piece)
                    taken, count, is_over = self._take(order[piece], row, self.block_rows - passed)
                    rows += taken
                    passed += count
                    piece, row = (piece + 1, 0) if is_over else (piece, row + count)
                if rows:
                    block, is_empty = block + 1, False
                    end = LanePosition(epoch, block, piece, row) if piece < len(order) else LanePosition(epoch + 1)
                    yield _Block(start, end, rows)
            # All sources have their first pass in the first epoch: a lane without rows there has none at all.
            if is_empty and epoch == 0:
                raise DataError(f"Lane {self.lane} has no rows. Lower data.lanes, or add data.")
            epoch, block, piece, row = epoch + 1, 0, 0, 0

    def _fetch_ahead(self, order: Sequence[Pass], piece: int) -> None:
        """Begins to fetch the pieces that come next; those whose pairs are kept since their first pass stay unread."""
        for number in range(piece + 1, min(piece + 1 + PIECES_AHEAD, len(order))):
            of = order[number]
            if of.index == 0 or not self.decoded:
                self.shards[of.piece.source][of.piece.shard].fetch_ahead()

    def _take(self, of: Pass, row: int, count: int) -> tuple[list[tuple[int, Sample | None, int]], int, bool]:
        """Those to train on of up to `count` rows of a piece from its row `row` on, how many rows that were, and
        whether the piece is over with them."""
        piece = of.piece
        shard, base = self.shards[piece.source][piece.shard], piece.source * IDS_PER_SOURCE
        if piece.last is not None:
            count = min(count, piece.last - piece.first - row)
            first = base + shard.first_index + piece.first + row
            known = range(first, first + count)
            if all(sample_id in self.decoded or sample_id in self._held_out for sample_id in known):
                kept: list[tuple[int, Sample | None, int]]
                kept = [(sample_id, None, of.index) for sample_id in known if sample_id not in self._held_out]
                return kept, count, piece.first + row + count >= piece.last
        samples = self._samples(of, row)
        taken = list(islice(samples, count))
        if piece.last is not None and len(taken) < count:
            raise DataError(
                f"{shard.name} has fewer rows than when it was opened. Restore the file, or start the run again."
            )
        self._opened = (of, row + len(taken), samples)
        is_over = len(taken) < count if piece.last is None else piece.first + row + count >= piece.last
        return self._to_train_on(taken, base, of), len(taken), is_over

    def _to_train_on(self, samples: list[Sample], base: int, of: Pass) -> list[tuple[int, Sample | None, int]]:
        rows: list[tuple[int, Sample | None, int]] = []
        for sample in samples:
            if self.is_held_out(sample.image):
                self._held_out.add(base + sample.index)
            else:
                rows.append((base + sample.index, sample, of.index))
        return rows

    def _samples(self, of: Pass, row: int) -> Iterator[Sample]:
        """The samples of a piece from its row `row` on: those that follow the last ones read, or are read again."""
        if self._opened is None or self._opened[:2] != (of, row):
            shard = self.shards[of.piece.source][of.piece.shard]
            self._opened = (of, row, self._until_stopped(shard.read(of.piece.first + row)))
        return self._opened[2]

    def _until_stopped(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        try:
            for sample in samples:
                self.require_not_stopped()
                yield sample
        except SourceError:
            # What waited for a store gave up.
            self.require_not_stopped()
            raise

    def require_not_stopped(self) -> None:
        if self.is_stopped():
            raise LaneStopped
