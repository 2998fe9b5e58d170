"""The stream at the size of a large run: millions of shards, a thousand processes, billions of pairs."""

import tracemalloc
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from hf_clip.sources import Source, SourceError
from hf_clip.sources.shards import Part
from hf_clip.training.config import DataConfig
from hf_clip.training.loop import open_training_data
from hf_clip.training.stream import TrainingData
from hf_clip.training.stream.coordination import Coordinator
from hf_clip.training.stream.order import (
    EpochOrder,
    LanePosition,
    Pass,
    Piece,
    choose_lanes,
    choose_shuffle_block,
    deal,
    passes_in_epoch,
    rows_of_lane,
)
from hf_clip.training.stream.reading import LaneReader
from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks
from tests.training.test_stream import make_stream, row, write_parquet


class MadeUpParts(Sequence[Part]):
    """Shards of given lengths, whose rows are told by their index alone."""

    def __init__(self, lengths: np.ndarray):
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Part:  # type: ignore[override]
        length = int(self.lengths[number])
        content = {"image": b"", "caption": None}
        return Part(f"shard {number}", length, lambda first: (("a row", content) for _ in range(first, length)))


def made_up(lengths: np.ndarray) -> TrainingData:
    columns = {"image_column": "image", "caption_columns": ("caption",)}
    source = Source(dataset=None, name="made up", find_rows=lambda: MadeUpParts(lengths), **columns)  # type: ignore
    return TrainingData((source,), (1.0,))


def pieces_one_by_one(source: int, rows: list[int], lane: int, lanes: int) -> list[Piece]:
    """What `deal` gives, shard by shard."""
    total, start, pieces = sum(rows), 0, []
    first, last = lane * total // lanes, (lane + 1) * total // lanes
    for shard, count in enumerate(rows):
        begin, end = max(first - start, 0), min(last - start, count)
        if begin < end:
            pieces.append(Piece(source, shard, begin, end))
        start += count
    return pieces


@given(
    sources=st.lists(st.lists(st.integers(0, 30), max_size=9), min_size=1, max_size=3),
    lanes=st.integers(1, 12),
    weight=st.sampled_from([0.5, 1.0, 2.3]),
    epoch=st.integers(0, 4),
)
def test_lanes_are_dealt_and_ordered_as_shard_by_shard(sources, lanes, weight, epoch):
    expected = [[pieces_one_by_one(*each, lane, lanes) for each in enumerate(sources)] for lane in range(lanes)]
    assert [[list(pieces) for pieces in of_lane] for of_lane in deal(sources, lanes)] == expected
    own = range(lanes // 2, lanes)
    of_own = deal([np.array(rows, np.int64) for rows in sources], lanes, own)
    assert [[list(pieces) for pieces in of_lane] for of_lane in of_own] == [expected[lane] for lane in own]
    weights, key = [weight, *[1.0] * (len(sources) - 1)], (3, epoch, 0)
    passes = [
        Pass(piece, index)
        for pieces, weight_of in zip(expected[0], weights, strict=True)
        for index in passes_in_epoch(weight_of, epoch)
        for piece in pieces
    ]
    drawn = np.random.default_rng(key).permutation(len(passes))
    assert list(EpochOrder(deal(sources, lanes)[0], weights, key)) == [passes[number] for number in drawn]


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1023, 1024)])
def test_a_million_row_groups_are_dealt_in_little_memory(rank, world_size):
    lengths = np.random.default_rng(0).integers(900, 1100, 1_000_000)
    tracemalloc.start()
    try:
        stream = make_stream(made_up(lengths), 32_768, rank, world_size)
        pieces = stream.pieces[stream.own_lanes[-1]]
        first = EpochOrder(pieces, [1.0], (0, 0, stream.own_lanes[-1]))[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert stream.lanes == (32 if world_size == 1 else 4096)
    assert first.piece.shard >= 1_000_000 // stream.lanes * stream.own_lanes[-1] - 1000
    assert pieces[0][-1] == Piece(0, 999_999, 0, int(lengths[-1]))


def test_two_billion_pairs_are_shared_among_1024_processes_each_once():
    """By arithmetic over all lanes, and by reading lanes of an epoch to their ends."""
    lengths, world_size, batch_size = np.random.default_rng(1).integers(0, 20_001, 200_000), 1024, 32_768
    total = int(lengths.sum())
    assert 1.9e9 < total < 2.1e9
    lanes = choose_lanes(batch_size, total, None, world_size)
    dealt = deal([lengths], lanes)
    starts = np.cumsum(lengths) - lengths
    # The pieces of all lanes, one lane after the other, are all rows, one after the other.
    begins, ends = (
        np.concatenate([starts[of.shards] + getattr(of, name) for [of] in dealt]) for name in ("firsts", "lasts")
    )
    assert begins[0] == 0 and ends[-1] == total and np.array_equal(begins[1:], ends[:-1])
    sizes = [len(rows_of_lane(total, lane, lanes)) for lane in range(lanes)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == total
    draw = np.random.default_rng(2)
    for lane in draw.integers(0, lanes, soak_count(1, 2)).tolist():
        rows, epoch = rows_of_lane(total, lane, lanes), int(draw.integers(0, 9))
        reader = lane_reader(lengths, lane, lanes)
        count = soak_count(20_000, len(rows))
        tickets = list(islice(reader.tickets(LanePosition(epoch)), count))
        read = np.array([ticket.sample_id for ticket in tickets])
        assert read.min() >= rows.start and read.max() < rows.stop and len(np.unique(read)) == count
        at = int(draw.integers(0, count - 1000))
        again = lane_reader(lengths, lane, lanes).tickets(tickets[at].after)
        assert [ticket.sample_id for ticket in islice(again, 999)] == read[at + 1 : at + 1000].tolist()


def lane_reader(lengths: np.ndarray, lane: int, lanes: int) -> LaneReader:
    data = made_up(lengths)
    [pieces] = deal([lengths], lanes, [lane])
    return LaneReader(data.shards, pieces, [1.0], 0, lane, choose_shuffle_block(lanes) // lanes)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "lanes"),
    [(32_768, 8, 32), (32_768, 64, 256), (32_768, 1024, 4096), (384, 12, 48), (24, 4, 4), (64, 64, 64)],
)
def test_lanes_allow_more_processes_than_a_run_begins_with(batch_size, world_size, lanes):
    assert choose_lanes(batch_size, None, None, world_size) == lanes


def open_and_read(folder: str, is_broken: bool) -> tuple:
    """What a rank finds out about the files where the others have no say: those without footers for all but rank 0."""
    rank, read = dist.get_rank(), pq.read_metadata

    def read_on_the_first(file):
        if rank or is_broken:
            raise OSError("no footer")
        return read(file)

    pq.read_metadata = read_on_the_first
    try:
        data = open_training_data(DataConfig(train=[folder]), Coordinator(dist.get_world_size()).share)
    except SourceError as error:
        return (str(error),)
    finally:
        pq.read_metadata = read
    stream = make_stream(data, 4, rank, dist.get_world_size(), lanes=2)
    return data.num_rows, next(stream.batches()).sample_ids.tolist()


@pytest.mark.slow
def test_the_first_process_looks_into_the_files_for_all(tmp_path):
    for number in range(3):
        content = [{"image": row(index)["image"], "caption": f"pair {index}"} for index in range(number, 12)]
        write_parquet(tmp_path / f"{number}.parquet", content, 5)
    whole = make_stream(open_training_data(DataConfig(train=[str(tmp_path)])), 4, lanes=2)
    found = run_on_ranks(open_and_read, 2, str(tmp_path), False)
    assert [rows for rows, _ in found] == [33, 33]
    assert sum((ids for _, ids in found), []) == next(whole.batches()).sample_ids.tolist()
    errors = run_on_ranks(open_and_read, 2, str(tmp_path), True)
    assert errors[0] == errors[1] and "0.parquet' is no readable parquet file (OSError: no footer)" in errors[0][0]
