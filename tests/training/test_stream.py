"""The stream of pairs: an order of the seed alone, for any ranks, workers and resumes; bad pairs are counted."""

import io
import json
import os
import tarfile
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip import HFCLIPImageProcessor
from hf_clip.sources import Source, SourceError
from hf_clip.training.config import AugmentationConfig, DataConfig, RecipeError
from hf_clip.training.stream import (
    DataError,
    PairStream,
    TrainingData,
    decoding,
    merge_positions,
    open_training_source,
    prefetch,
)
from hf_clip.training.stream.order import Piece, choose_lanes, deal, passes_in_epoch
from tests.helpers.counts import soak_count
from tests.helpers.hostile_pairs import zoo
from tests.helpers.ranks import RankError, run_on_ranks
from tests.helpers.squares import encode

PROCESSOR = HFCLIPImageProcessor(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})
PINNED = [0, 3, 19, 17, 9, 8, 12, 22, 1, 10, 16, 14]


def row(index: int, **changes) -> dict:
    """A pair whose image says by its gray value which caption belongs to it."""
    image = encode(np.full((4, 4, 3), index, np.uint8))
    entry = {"image": {"bytes": image, "path": None}, "caption": [f"pair {index}"], "keywords": [], "concept": None}
    return entry | changes


def as_data(*sources, weights=None) -> TrainingData:
    """Training data of lists of rows, or of streams of such."""
    columns = {"caption_columns": ("caption",), "keyword_columns": ("keywords",), "concept_column": "concept"}
    opened = tuple(Source(dataset=rows, name="toys", image_column="image", **columns) for rows in sources)
    return TrainingData(opened, tuple(weights or [1.0] * len(opened)))


def make_stream(rows, batch_size=4, rank=0, world_size=1, seed=0, words=None, **config) -> PairStream:
    augmentation = AugmentationConfig(**(words or {}))
    data = rows if isinstance(rows, TrainingData) else as_data(rows)
    config = DataConfig(train=["toys"], **{"workers": 0, **config})
    return PairStream(data, config, PROCESSOR, batch_size, seed, augmentation, rank, world_size)


def ids(batches) -> list[int]:
    return [int(sample) for batch in batches for sample in batch.sample_ids]


def take(stream: PairStream, count: int, position=None) -> list:
    batches = stream.batches(position)
    taken = list(islice(batches, count))
    batches.close()
    return taken


def lanes_of(batches, lanes: int) -> list[list[tuple[int, int]]]:
    """(epoch, id) of what each lane gave, in order."""
    share = len(batches[0].captions) // lanes
    return [
        [
            (int(epoch), int(sample))
            for batch in batches
            for epoch, sample in list(zip(batch.epochs, batch.sample_ids, strict=True))[start : start + share]
        ]
        for start in range(0, lanes * share, share)
    ]


def assert_same(one, other, but_positions: bool = False):
    assert torch.equal(one.images, other.images)
    assert (one.captions, one.keywords) == (other.captions, other.keywords)
    assert but_positions or one.position == other.position
    for name in ("concept_ids", "may_flip", "sample_ids", "epochs"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@settings(max_examples=soak_count(15, 300), deadline=None)
@given(
    pairs=st.integers(8, 40),
    lanes=st.sampled_from([1, 2, 4]),
    block=st.integers(1, 50),
    seed=st.integers(0, 99),
    workers=st.sampled_from([0, 2]),
)
def test_every_pair_comes_once_in_each_epoch_of_its_lane(pairs, lanes, block, seed, workers):
    rows = [row(index) for index in range(pairs)]
    stream = make_stream(rows, 4, seed=seed, lanes=lanes, shuffle_block=block, workers=workers)
    batches = take(stream, 3 * pairs // 4)
    assert all(len(batch.captions) == 4 for batch in batches)
    owned = []
    for given_by_lane in lanes_of(batches, lanes):
        epochs = [epoch for epoch, _ in given_by_lane]
        assert epochs == sorted(epochs)
        first = [sample for epoch, sample in given_by_lane if epoch == 0]
        assert len(set(first)) == len(first)
        for epoch in range(1, epochs[-1]):
            assert sorted(sample for at, sample in given_by_lane if at == epoch) == sorted(first)
        owned += first
    assert sorted(owned) == list(range(pairs))


def test_the_order_is_one_of_the_seed_and_the_epoch():
    rows = [row(index) for index in range(24)]

    def order(**changes):
        return ids(take(make_stream(rows, **{"lanes": 1, "shuffle_block": 100, **changes}), 12))

    first = order()
    assert first == order() == order(workers=2)
    assert first != order(seed=1) and first != order(lanes=2)
    assert first[:24] != first[24:48] and first[:24] != sorted(first[:24])
    blocks = order(shuffle_block=8)
    assert sorted(blocks[:8]) == list(range(8)) and blocks[:8] != list(range(8))
    assert sorted(blocks[8:16]) == list(range(8, 16)) and [place - 8 for place in blocks[8:16]] != blocks[:8]
    # Whoever resumes an old run finds its order.
    assert order(lanes=2, seed=3)[:12] == PINNED


def write_parquet(file: Path, content: list[dict], rows_of_group: int) -> Path:
    pq.write_table(pa.Table.from_pylist(content), file, row_group_size=rows_of_group)
    return file


def write_parquet_folder(place: Path, content: list[dict]) -> None:
    """Uneven row groups, and a file without rows."""
    write_parquet(place / "0.parquet", content[:30], 7)
    pq.write_table(pa.Table.from_pylist(content).slice(0, 0), place / "1.parquet")
    write_parquet(place / "2.parquet", content[30:], 100)


def write_csv(place: Path, content: list[dict]) -> Path:
    table = ["path,caption,keywords"]
    for index, each in enumerate(content):
        (place / f"{index}.png").write_bytes(each["image"]["bytes"])
        table.append(f'{index}.png,"{each["caption"]}",a')
    (place / "pairs.csv").write_text("\n".join(table))
    return place / "pairs.csv"


def write_tar(place: Path, content: list[dict]) -> Path:
    with tarfile.open(place / "shard-0.tar", "w") as tar:
        for index, each in enumerate(content):
            for suffix, value in (("png", each["image"]["bytes"]), ("txt", each["caption"].encode())):
                entry = tarfile.TarInfo(f"{index:06d}.{suffix}")
                entry.size = len(value)
                tar.addfile(entry, io.BytesIO(value))
    return place / "shard-0.tar"


def stream_of_shards(sizes: list[int]) -> datasets.IterableDataset:
    """What can only be read from its beginning, in shards, one of them empty."""
    starts = np.cumsum([0, *sizes]).tolist()
    features = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "caption": datasets.List(datasets.Value("string")),
            "keywords": datasets.List(datasets.Value("string")),
            "concept": datasets.Value("string"),
        }
    )
    shards = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
    return datasets.IterableDataset.from_generator(generate, features=features, gen_kwargs={"shards": shards})


def generate(shards):
    for shard in shards:
        for index in shard:
            yield row(index, caption=[f"pair {index}", "or this"], keywords=["a", "b"])


KINDS = ["rows", "parquet", "csv", "tar", "stream", "weights"]


def open_kind(kind: str, folder: Path) -> TrainingData:
    """Some 50 pairs, a few of them broken, in each way that pairs can lie."""
    rows = [row(index, caption=[f"pair {index}", "or this"], keywords=["a", "b", "c"]) for index in range(50)]
    for index in (3, 16, 40):
        rows[index]["image"] = {"bytes": b"", "path": None}
    if kind == "rows":
        return as_data(rows)
    if kind == "stream":
        return as_data(stream_of_shards([9, 0, 13, 6, 12, 11, 8, 7]))
    if kind == "weights":
        return as_data(rows[:20], rows[20:], weights=[2.0, 0.5])
    plain = [{"image": each["image"], "caption": each["caption"][0], "keywords": "a"} for each in rows]
    place = folder / kind
    if not place.exists():
        place.mkdir()
        write = {"parquet": write_parquet_folder, "csv": write_csv, "tar": write_tar}[kind]
        write(place, plain)
    found = place / "pairs.csv" if kind == "csv" else place
    return open_training_source(DataConfig(train=[str(found)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kinds")


STEPS = 30
OPTIONS = {"lanes": 4, "shuffle_block": 24, "max_bad_fraction": 0.5, "decoded_cache_gb": 0.0}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_order_for_any_ranks_and_workers_and_after_any_kill(folder, kind, workers):
    """Three epochs, step by step: killed every few steps and gone on with by another number of ranks each time."""
    data = open_kind(kind, folder)
    whole = take(make_stream(data, 8, **OPTIONS), STEPS)
    assert len({tuple(batch.sample_ids) for batch in whole}) == STEPS
    draw, step, position = np.random.default_rng([workers, KINDS.index(kind)]), 0, None
    kills = 0
    while step < STEPS:
        world_size, count = (1, 2, 4)[kills % 3], min(int(draw.integers(1, 9)), STEPS - step)
        streams = [make_stream(data, 8, rank, world_size, workers=workers, **OPTIONS) for rank in range(world_size)]
        parts = [take(stream, count, position) for stream in streams]
        for number in range(count):
            of_ranks = [part[number] for part in parts]
            expected = whole[step + number]
            assert torch.equal(torch.cat([part.images for part in of_ranks]), expected.images)
            assert [caption for part in of_ranks for caption in part.captions] == expected.captions
            assert ids(of_ranks) == ids([expected])
            assert np.array_equal(np.concatenate([part.epochs for part in of_ranks]), expected.epochs)
            position = merge_positions(part.position for part in of_ranks)
            assert position == expected.position
        position = json.loads(json.dumps(position))
        step, kills = step + count, kills + 1


@pytest.mark.parametrize("cache", [0.0, 1.0])
@pytest.mark.parametrize("block", [7, 100])
def test_resume_from_every_position_of_two_epochs(block, cache):
    rows = [row(index, caption=[f"pair {index}", "or this"], keywords=["a", "b", "c"]) for index in range(20)]
    rows[3]["image"] = rows[16]["image"] = {"bytes": b"", "path": None}
    config = {
        "shuffle_block": block,
        "max_bad_fraction": 0.2,
        "keyword_weight": 0.5,
        "keyword_columns": ["keywords"],
        "decoded_cache_gb": cache,
    }
    whole = take(make_stream(rows, **config), 12)
    for done in range(10):
        resumed = take(make_stream(rows, **config), 11 - done, whole[done].position)
        for expected, batch in zip(whole[done + 1 :], resumed, strict=True):
            assert_same(batch, expected)


def test_formats_and_their_splits_make_no_other_order(folder):
    """A table, a tar and a parquet file of the same pairs are read in the same order."""
    orders = [ids(take(make_stream(open_kind(kind, folder), 8, **OPTIONS), 12)) for kind in ("csv", "tar")]
    assert orders[0] == orders[1]


class CountingRows(list):
    """Rows that know how often one was asked for."""

    def __init__(self, rows):
        super().__init__(rows)
        self.asked: list[int] = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


def test_each_rank_reads_and_decodes_its_own_lanes_only():
    rows = CountingRows([row(index) for index in range(80)])
    asked = []
    for rank in range(4):
        rows.asked.clear()
        stream = make_stream(rows, 8, rank, 4, lanes=8, shuffle_block=80)
        take(stream, 30)
        asked.append(set(rows.asked))
        assert len(rows.asked) == 20, "decoded images fit into memory: they are read once"
    assert [len(part) for part in asked] == [20] * 4 and set.union(*asked) == set(range(80))


def test_a_resume_reads_at_most_a_block_of_a_lane_again():
    content = [row(index) for index in range(200)]
    whole = make_stream(content, 4, lanes=2, shuffle_block=20, decoded_cache_gb=0.0)
    position = take(whole, 37)[-1].position
    rows = CountingRows(content)
    take(make_stream(rows, 4, lanes=2, shuffle_block=20, decoded_cache_gb=0.0), 1, position)
    # Two lanes, a block of 10 pairs each.
    assert len(rows.asked) <= 20


def test_a_resume_of_what_has_no_random_access_reads_over_one_shard_without_decoding(monkeypatch):
    data = as_data(stream_of_shards([40, 40, 40, 40]))
    options = {"lanes": 2, "shuffle_block": 8}
    position = take(make_stream(data, 4, **options), 30)[-1].position
    decoded = []
    pixels = decoding.training_pixels
    monkeypatch.setattr(decoding, "training_pixels", lambda *args: decoded.append(1) or pixels(*args))
    read, make = [], row

    def counted(index, **more):
        read.append(index)
        return make(index, **more)

    monkeypatch.setattr("tests.training.test_stream.row", counted)
    take(make_stream(data, 4, **options), 1, position)
    assert len(decoded) == 4
    assert 4 <= len(read) <= 80
    read.clear()
    take(make_stream(data, 4, **options), 40)
    assert len(read) == 160, "in an uninterrupted epoch each row is read once"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_zoo_is_counted_to_the_last_pair(tmp_path, workers, world_size):
    animals = zoo(tmp_path)
    hostile = [row(0, image=pair.image, caption=pair.caption, concept=pair.name) for pair in animals]
    rows = [each for index in range(120) for each in (row(index), *hostile[index : index + 1])]
    options = {"lanes": 2, "shuffle_block": 30, "max_bad_fraction": 0.9, "workers": workers}
    streams = [make_stream(rows, 8, rank, world_size, **options) for rank in range(world_size)]
    # Over two epochs: a pair is counted once, however often it is met.
    parts = [take(stream, 40) for stream in streams]
    position = merge_positions(part[-1].position for part in parts)
    expected = Counter(pair.reason for pair in animals if pair.reason)
    assert expected.total() >= 40
    assert PairStream.skipped(position) == expected
    seen = Counter()
    for batch in (batch for part in parts for batch in part):
        for image, caption, sample in zip(batch.images, batch.captions, batch.sample_ids, strict=True):
            seen[int(sample)] += 1
            if caption.startswith("pair "):
                assert rows[sample]["caption"] == [caption]
                assert (image == int(caption.split()[1])).all()
    named = {pair.name for pair in animals if pair.reason}
    bad = {index for index, each in enumerate(rows) if each["concept"] in named}
    assert set(seen) == set(range(len(rows))) - bad


@pytest.mark.parametrize("block", [10, 100])
def test_too_many_bad_pairs_stop_the_run_and_the_first_is_named(block):
    rows = [row(index) for index in range(40)]
    rows[3]["caption"] = rows[4]["caption"] = rows[35]["caption"] = []
    limit = 3 / min(block, 40)
    take(make_stream(rows, lanes=1, shuffle_block=block, max_bad_fraction=limit), 30)
    strict = make_stream(rows, lanes=1, shuffle_block=block, max_bad_fraction=2.9 / 40)
    message = r"toys: \d of \d+ pairs .*\d no_caption; the first is toys row \d+ \(no_caption\).*raise that"
    with pytest.raises(DataError, match=message):
        take(strict, 30)


def test_one_bad_pair_among_the_first_is_no_verdict():
    rows = [row(index) for index in range(40)]
    rows[1]["caption"] = []
    stream = make_stream(rows, lanes=1, shuffle_block=2, max_bad_fraction=0.0)
    with pytest.raises(DataError, match="1 of 5 pairs"):
        take(stream, 10)
    assert len(take(make_stream(rows, lanes=1, shuffle_block=20, max_bad_fraction=0.05), 20)) == 20


def test_a_storage_that_goes_away_ends_the_run_in_any_epoch(tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(40)]
    for index, file in enumerate(files):
        file.write_bytes(row(index)["image"]["bytes"])
    rows = [row(index, image={"bytes": None, "path": str(file)}) for index, file in enumerate(files)]
    batches = make_stream(rows, shuffle_block=8, decoded_cache_gb=0.0).batches()
    for _ in range(20):
        next(batches)
    for file in files:
        file.unlink()
    with pytest.raises(DataError, match=r"101 pairs in a row cannot be read, the last is .* \(missing\)"):
        list(islice(batches, 20))


@pytest.mark.parametrize("block", [3, 100])
def test_fewer_readable_pairs_than_a_batch_raise(block):
    rows = [row(index) for index in range(8)]
    rows[4]["caption"] = []
    stream = make_stream(rows, 8, shuffle_block=block, max_bad_fraction=0.5)
    with pytest.raises(DataError, match="7 readable pairs, 1 skipped as no_caption, fewer than batch_size=8. Lower"):
        next(stream.batches())
    assert len(next(make_stream(rows, 7, shuffle_block=block, max_bad_fraction=0.5).batches()).captions) == 7
    lanes = make_stream(rows, 8, lanes=4, max_bad_fraction=0.5)
    with pytest.raises(DataError, match="Lane 2 of 4 of toys has 1 readable pairs, .*, fewer than its share of 2"):
        next(lanes.batches())


def test_what_cannot_be_shared_raises_before_it_starts():
    rows = [row(index) for index in range(99)]
    with pytest.raises(DataError, match="batch_size=10 cannot be divided among 4 processes: set it to 8"):
        make_stream(rows, 10, world_size=4)
    with pytest.raises(DataError, match="batch_size=12 cannot be divided among data.lanes=5: .* 1, 2, 3, 4, 6, 12"):
        make_stream(rows, 12, lanes=5)
    with pytest.raises(DataError, match="data.lanes=4 cannot be .* among 3 processes: start 1 or 2 or 4, .* as 3"):
        make_stream(rows, 12, lanes=4, world_size=3)
    few = as_data(stream_of_shards([5, 5]))
    with pytest.raises(
        DataError, match="2 shards, fewer than data.lanes=4. To fix it, write the data in a multiple of 4 shards"
    ):
        make_stream(few, 8, lanes=4)
    assert make_stream(few, 16).lanes == 2
    with pytest.warns(UserWarning, match="3 shards for 2 lanes: pairs of lanes with fewer shards come up to 2 times"):
        make_stream(as_data(stream_of_shards([5, 5, 5])), 8, lanes=2)
    position = take(make_stream(rows, 8, lanes=2), 1)[0].position
    with pytest.raises(DataError, match="has 2 lanes, this one has 4. Set data.lanes=2, or start"):
        next(make_stream(rows, 8, lanes=4).batches(position))
    with pytest.raises(DataError, match="toys has 99 pairs, fewer than batch_size=100000. Lower batch_size to 99 or"):
        make_stream(rows, 100_000)
    with pytest.raises(DataError, match="Lane 0 of 8 of toys has 12 pairs, fewer than its share of 20 of batch_size"):
        make_stream(rows, 160, lanes=8)
    empty = make_stream(as_data(stream_of_shards([0])), 4, lanes=1)
    with pytest.raises(DataError, match="Lane 0 has no rows"):
        next(empty.batches())


def test_a_file_that_is_cut_stops_the_run_after_what_could_be_read(tmp_path):
    place = write_tar(tmp_path, [{"image": row(index)["image"], "caption": f"pair {index}"} for index in range(40)])
    data = open_training_source(DataConfig(train=[str(place)]))
    options = {"lanes": 1, "shuffle_block": 8}
    streams = [make_stream(data, 4, workers=workers, **options) for workers in (0, 2)]
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    with pytest.raises(SourceError, match="shard-0.tar.* is cut or damaged"):
        make_stream(data, 4, **options)
    for stream in streams:
        batches = stream.batches()
        read = 0
        with pytest.raises(SourceError, match="shard-0.tar"):
            for _ in batches:
                read += 1
        assert read == 4, "two whole blocks of 8"


def test_weights_repeat_and_sample_whole_passes():
    twice, seldom = [row(index) for index in range(6)], [row(index) for index in range(100, 108)]
    seldom[0]["caption"] = []
    data = as_data(twice, seldom, weights=[2.0, 0.5])
    batches = take(make_stream(data, 2, lanes=1, shuffle_block=100, max_bad_fraction=0.5), 31)
    # The first epoch has two passes of 6 and one of 7, the second 12, the third 19, the fourth 12.
    captions = [caption for batch in batches for caption in batch.captions]
    counts = [Counter(captions[start:end]) for start, end in ((0, 19), (19, 31), (31, 50), (50, 62))]
    for epoch, count in enumerate(counts):
        expected = {f"pair {index}": 2 for index in range(6)}
        expected |= {} if epoch % 2 else {f"pair {index}": 1 for index in range(101, 108)}
        assert count == expected
    assert PairStream.skipped(batches[-1].position) == {"no_caption": 1}
    # Each pass makes draws of its own.
    passes = lanes_of(batches, 1)[0]
    assert len(set(passes)) == len(passes)


@given(weight=st.sampled_from([0.1, 0.25, 0.7, 1.0, 1.5, 2.0, 3.3]), epochs=st.integers(1, 60))
def test_passes_follow_each_other_and_keep_to_the_weight(weight, epochs):
    passes = [number for epoch in range(epochs) for number in passes_in_epoch(weight, epoch)]
    assert passes == list(range(len(passes)))
    assert len(passes_in_epoch(weight, 0)) >= 1
    assert abs(len(passes) - weight * epochs) < 1


@given(rows=st.lists(st.integers(0, 30), min_size=1, max_size=9), lanes=st.integers(1, 12))
def test_rows_are_dealt_evenly_and_each_once(rows, lanes):
    dealt = deal([rows], lanes)
    given_out = Counter((p.shard, number) for lane in dealt for p in lane[0] for number in range(p.first, p.last))
    assert given_out == Counter((shard, number) for shard, count in enumerate(rows) for number in range(count))
    sizes = [sum(piece.last - piece.first for piece in lane[0]) for lane in dealt]
    assert max(sizes) - min(sizes) <= 1
    unknown = deal([[None] * len(rows)], lanes)
    shards = sorted(piece.shard for lane in unknown for piece in lane[0])
    assert shards == list(range(len(rows))) and Piece(0, 0, 0, None) in unknown[0][0]


@pytest.mark.parametrize(
    ("batch_size", "num_rows", "num_shards", "lanes"),
    [
        (32_768, None, None, 32),
        (256, 10_000, None, 32),
        (384, 10_000, None, 24),
        (24, 72, None, 6),
        (128, 255, None, 1),
        (256, None, 10, 8),
        (4, None, 1, 1),
        (7, 100, None, 1),
    ],
)
def test_lanes_are_chosen_for_many_process_counts(batch_size, num_rows, num_shards, lanes):
    assert choose_lanes(batch_size, num_rows, num_shards) == lanes


def four_ranks_or_two(rows: list[dict], position: dict | None) -> tuple:
    """Three batches of a rank, and the position of all."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    stream = make_stream(rows, 8, rank, world_size, lanes=4, shuffle_block=20, workers=2, max_bad_fraction=0.5)
    batches = stream.batches(position, reads_ahead=True)
    taken = [ids([next(batches)]) for _ in range(2)]
    last = next(batches)
    batches.close()
    return [*taken, ids([last])], stream.gather(last.position)


@pytest.mark.slow
def test_positions_of_two_processes_go_on_with_four_and_one():
    rows = [row(index) for index in range(50)]
    rows[7]["caption"] = []
    whole = take(make_stream(rows, 8, lanes=4, shuffle_block=20, max_bad_fraction=0.5), 9)
    position = None
    for first, world_size in ((0, 2), (3, 4)):
        ranks = run_on_ranks(four_ranks_or_two, world_size, rows, position)
        for number in range(3):
            assert sum((rank[0][number] for rank in ranks), []) == ids([whole[first + number]])
        positions = [rank[1] for rank in ranks]
        assert all(each == whole[first + 2].position for each in positions)
        position = positions[0]
    rest = take(make_stream(rows, 8, lanes=4, shuffle_block=20, max_bad_fraction=0.5), 3, position)
    for expected, batch in zip(whole[6:], rest, strict=True):
        assert_same(batch, expected)


def stop_of_rank(rows: list[dict], max_bad_fraction: float) -> tuple[int, str]:
    """After how many batches a rank stopped, and why."""
    rank, world_size, count = dist.get_rank(), dist.get_world_size(), 0
    config = {"lanes": 2, "shuffle_block": 20, "max_bad_fraction": max_bad_fraction, "decoded_cache_gb": 0.0}
    batches = make_stream(rows, 4, rank, world_size, **config).batches(reads_ahead=True)
    try:
        for _ in islice(batches, 100):
            count += 1
    except DataError as error:
        return count, str(error)
    return count, ""


@pytest.mark.slow
def test_what_stops_one_process_stops_all_at_one_step():
    """A lane that only one of them reads goes bad, by more than its share and by all."""
    rows = [row(index) for index in range(60)]
    for index in range(35, 60, 2):
        rows[index]["caption"] = []
    stops = run_on_ranks(stop_of_rank, 2, rows, 0.1)
    assert stops[0] == stops[1] and 0 < stops[0][0] < 30
    assert "toys: " in stops[0][1] and "the first is toys row " in stops[0][1]
    for index in range(30, 60):
        rows[index]["caption"] = []
    first, second = run_on_ranks(stop_of_rank, 2, rows, 1.0)
    assert first[0] == second[0] == 0
    assert second[1].startswith("Lane 1 of 2 of toys has 0 readable pairs, 30 skipped as no_caption")
    assert first[1] == f"Process 1: {second[1]}"


def die_after_two_batches(rows: list[dict]) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches = make_stream(rows, 4, rank, world_size, lanes=2, workers=2).batches(reads_ahead=True)
    for number in range(4):
        if rank == 1 and number == 2:
            os._exit(1)
        next(batches)


@pytest.mark.slow
def test_a_process_that_dies_leaves_none_waiting():
    with pytest.raises(RankError, match="DataError: Another process has ended(.|\n)*Rank 1: its process died"):
        run_on_ranks(die_after_two_batches, 2, [row(index) for index in range(40)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0, 2.0]}, r"data.weights=\[1.0, 2.0\] must have 1 numbers, one for each entry"),
        ({"weights": [0.0]}, "data.weights: 0.0 must lie in 0.001 to 1000"),
        ({"weights": [1e-9]}, "data.weights: 1e-09 must lie in 0.001 to 1000"),
        ({"weights": [float("nan")]}, "data.weights: nan must lie in 0.001 to 1000"),
        ({"lanes": 0}, "data.lanes=0 must be 1 or more"),
        ({"workers": -1}, "data.workers=-1 must be 0 or more"),
        ({"decoded_cache_gb": -0.5}, "data.decoded_cache_gb=-0.5 must be 0 or more"),
    ],
)
def test_what_the_recipe_cannot_mean_raises(changes, message):
    with pytest.raises(RecipeError, match=message):
        DataConfig(train=["pairs.parquet"], **changes)


def test_entries_of_the_recipe_are_sources_by_their_kind_or_each_with_its_weight(tmp_path):
    plain = [{"image": row(index)["image"], "caption": f"pair {index}"} for index in range(12)]
    files = [write_parquet(tmp_path / f"{number}.parquet", plain, 5) for number in range(2)]
    tar = write_tar(tmp_path, plain)
    data = open_training_source(DataConfig(train=[*map(str, files), str(tar)]))
    assert [source.num_rows for source in data.sources] == [24, None] and data.weights == (1.0, 1.0)
    assert list(data.captions()) == [each["caption"] for each in plain] * 3
    data = open_training_source(DataConfig(train=[*map(str, files)], weights=[1.0, 2.0]))
    assert data.num_rows == 24 and data.weights == (1.0, 2.0)
    # One parquet file of a few row groups feeds all lanes.
    stream = make_stream(open_training_source(DataConfig(train=[str(files[0])])), 4, lanes=4)
    assert sorted(ids(take(stream, 3))) == list(range(12))


def test_pairs_of_one_concept_are_positives_and_without_concepts_those_of_one_caption():
    captions = ["a cat", "a dog", "a cat", "a bird"]
    rows = [row(index, caption=[caption]) for index, caption in enumerate(captions)]
    batch = next(make_stream(rows).batches())
    of_caption = dict(zip(batch.sample_ids.tolist(), batch.concept_ids.tolist(), strict=True))
    assert of_caption[0] == of_caption[2] and len(set(of_caption.values())) == 3
    rows = [row(index, caption=[caption], concept=str(index % 2)) for index, caption in enumerate(captions)]
    batch = next(make_stream(rows).batches())
    of_concept = dict(zip(batch.sample_ids.tolist(), batch.concept_ids.tolist(), strict=True))
    assert of_concept[0] == of_concept[2] != of_concept[1] == of_concept[3]


def test_captions_and_keywords_are_drawn_again_in_each_epoch():
    captions, words = ["one", "two", "three"], ["red", "round", "small", "wet"]
    rows = [row(index, caption=captions, keywords=words) for index in range(8)]
    rows[0]["keywords"] = []
    stream = make_stream(rows, 8, keyword_weight=1.0, keyword_columns=["keywords"], max_keywords=2)
    batches = list(islice(stream.batches(), 40))
    drawn = Counter(caption for batch in batches for caption in batch.captions)
    assert set(drawn) == set(captions) and min(drawn.values()) > 60
    of_one = {batch.captions[batch.sample_ids.tolist().index(5)] for batch in batches}
    assert of_one == set(captions)
    keywords = [
        text.split(", ")
        for batch in batches
        for sample, text in zip(batch.sample_ids, batch.keywords, strict=True)
        if sample
    ]
    assert {len(words) for words in keywords} == {1, 2}
    assert all(len(set(some)) == len(some) and set(some) <= set(words) for some in keywords)
    assert Counter(some[0] for some in keywords).keys() == set(words)
    # A pair without keywords falls back on a caption.
    assert all(
        text in captions
        for batch in batches
        for sample, text in zip(batch.sample_ids, batch.keywords, strict=True)
        if not sample
    )
    assert next(make_stream(rows, 8).batches()).keywords is None


def test_a_word_that_a_mirror_would_make_false_forbids_it():
    rows = [row(0, caption=["an arrow"]), row(1, caption=["x", "LEFT hand"]), row(2, caption=["leftwards"]), row(3)]
    batch = next(make_stream(rows).batches())
    may_flip = dict(zip(batch.sample_ids.tolist(), batch.may_flip.tolist(), strict=True))
    assert may_flip == {0: True, 1: False, 2: False, 3: True}
    assert not batch.may_crop.any()
    batch = next(make_stream(rows, words={"no_flip_words": [], "crop_words": ["Arrow"]}).batches())
    assert batch.may_flip.all()
    assert batch.sample_ids[batch.may_crop].tolist() == [0]


def test_prefetch_gives_the_items_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise KeyError("from within")

    items = prefetch(numbers(), depth=2)
    assert list(islice(items, 5)) == list(range(5))
    with pytest.raises(KeyError, match="from within"):
        next(items)


def test_prefetch_reads_no_further_than_asked_and_stops_its_thread():
    made, enough = [], threading.Event()

    def numbers():
        for number in range(1000):
            made.append(number)
            if number == 3:
                enough.set()
            yield number

    before = threading.active_count()
    items = prefetch(numbers(), depth=2)
    assert next(items) == 0
    # One is used, two wait, one is in the thread's hand.
    assert enough.wait(10)
    items.close()
    assert threading.active_count() == before
    assert len(made) <= 5
