"""The stream of pairs: an order that is a function of the seed, nothing lost or repeated, exact resume, bad pairs."""

import threading
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip import HFCLIPImageProcessor
from hf_clip.sources import Source
from hf_clip.training.config import DataConfig
from hf_clip.training.stream import DataError, PairStream, Position, read_ahead
from tests.counts import soak_count
from tests.squares import encode

PROCESSOR = HFCLIPImageProcessor(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})


def row(index: int, **changes) -> dict:
    """A pair whose picture says by its grey value which caption belongs to it."""
    picture = encode(np.full((4, 4, 3), index, np.uint8))
    entry = {"image": {"bytes": picture, "path": None}, "caption": [f"pair {index}"], "keywords": [], "concept": None}
    return entry | changes


def make_stream(rows, batch_size=4, rank=0, world_size=1, seed=0, no_flip_words=("left",), **config) -> PairStream:
    columns = {"caption_columns": ("caption",), "keyword_columns": ("keywords",), "concept_column": "concept"}
    source = Source(dataset=rows, name="toys", image_column="image", **columns)
    config = DataConfig(train=["toys"], **config)
    return PairStream(source, config, PROCESSOR, batch_size, seed, list(no_flip_words), rank, world_size)


def ids(batches) -> list[int]:
    return [int(sample) for batch in batches for sample in batch.sample_ids_B]


def assert_same(one, other):
    assert torch.equal(one.pictures_BHWC, other.pictures_BHWC)
    assert (one.captions, one.keywords, one.position) == (other.captions, other.keywords, other.position)
    for name in ("concept_ids_B", "may_flip_B", "sample_ids_B", "epochs_B"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@settings(max_examples=soak_count(15, 300), deadline=None)
@given(pairs=st.integers(4, 30), batch_size=st.integers(2, 4), block=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_pair_comes_once_an_epoch_and_batches_roll_over_epochs(pairs, batch_size, block, seed):
    stream = make_stream([row(index) for index in range(pairs)], batch_size, seed=seed, shuffle_block=block)
    batches = list(islice(stream.batches(), 3 * pairs // batch_size))
    seen, epochs = ids(batches), np.concatenate([batch.epochs_B for batch in batches])
    assert all(len(batch.captions) == batch_size for batch in batches)
    assert list(epochs) == [place // pairs for place in range(len(seen))]
    for epoch in range(len(seen) // pairs):
        assert sorted(seen[epoch * pairs : (epoch + 1) * pairs]) == list(range(pairs))


def test_the_order_is_one_of_the_seed_and_the_epoch():
    rows = [row(index) for index in range(24)]

    def order(**changes):
        return ids(islice(make_stream(rows, **{"shuffle_block": 100, **changes}).batches(), 12))

    first = order()
    assert first == order()
    assert first != order(seed=1)
    assert first[:24] != first[24:48] and first[:24] != sorted(first[:24])
    blocks = order(shuffle_block=8)
    assert sorted(blocks[:8]) == list(range(8)) and blocks[:8] != list(range(8))
    assert sorted(blocks[8:16]) == list(range(8, 16)) and [place - 8 for place in blocks[8:16]] != blocks[:8]


@pytest.mark.parametrize("block", [7, 100])
def test_resume_from_every_position_of_two_epochs(block):
    rows = [row(index, caption=[f"pair {index}", "or this"], keywords=["a", "b", "c"]) for index in range(20)]
    rows[3]["image"] = rows[16]["image"] = {"bytes": b"", "path": None}
    config = {
        "shuffle_block": block,
        "max_bad_fraction": 0.2,
        "keyword_weight": 0.5,
        "keyword_columns": ["keywords"],
    }
    whole = list(islice(make_stream(rows, **config).batches(), 12))
    for done in range(10):
        resumed = make_stream(rows, **config).batches(whole[done].position)
        for expected, batch in zip(whole[done + 1 :], islice(resumed, 11 - done), strict=True):
            assert_same(batch, expected)


def test_a_position_within_a_batch_size_of_another_run_is_one_too():
    """A position names a pair, not a batch: whoever resumes there with another batch size loses nothing."""
    rows = [row(index) for index in range(20)]
    stream = make_stream(rows, shuffle_block=6)
    position = next(stream.batches()).position
    assert position == Position(0, 0, 4)
    both = ids(islice(make_stream(rows, 4, shuffle_block=6).batches(), 1)) + ids(
        islice(make_stream(rows, 8, shuffle_block=6).batches(position), 2)
    )
    assert sorted(both) == list(range(20))


@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_of_the_ranks_make_up_the_batch(world_size):
    rows = [row(index) for index in range(21)]
    whole = islice(make_stream(rows, 8, shuffle_block=9).batches(), 6)
    ranks = [make_stream(rows, 8, rank, world_size, shuffle_block=9).batches() for rank in range(world_size)]
    for batch in whole:
        slices = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([part.pictures_BHWC for part in slices]), batch.pictures_BHWC)
        assert [caption for part in slices for caption in part.captions] == batch.captions
        assert ids(slices) == ids([batch])
        assert {part.position for part in slices} == {batch.position}


def test_bad_pairs_are_counted_by_reason_and_the_others_keep_their_captions():
    rows = [row(index) for index in range(30)]
    whole = rows[1]["image"]["bytes"]
    rows[2]["image"] = {"bytes": whole[:-30], "path": None}
    rows[5]["image"] = {"bytes": b"no picture at all", "path": None}
    rows[8]["image"] = {"bytes": b"", "path": None}
    rows[11]["image"] = {"bytes": None, "path": "/no/such/file.png"}
    rows[14]["image"] = None
    rows[17]["caption"] = []
    stream = make_stream(rows, shuffle_block=8, max_bad_fraction=0.5)
    # Three epochs: a pair is counted once, however often it is met.
    batches = list(islice(stream.batches(), 18))
    for batch in batches:
        for picture, caption, sample in zip(batch.pictures_BHWC, batch.captions, batch.sample_ids_B, strict=True):
            assert caption == f"pair {sample}"
            assert (picture == int(sample)).all()
    assert Counter(ids(batches)) == dict.fromkeys(set(range(30)) - {2, 5, 8, 11, 14, 17}, 3)
    assert stream.bad_pairs["no_caption"] == 1 and stream.bad_pairs["missing"] == 2
    assert stream.bad_pairs["empty"] == stream.bad_pairs["unknown_format"] == stream.bad_pairs["truncated"] == 1
    assert sum(stream.bad_pairs.values()) == 6


@pytest.mark.parametrize("block", [10, 100])
def test_too_many_bad_pairs_stop_the_run_and_the_first_is_named(block):
    rows = [row(index) for index in range(40)]
    rows[13]["caption"] = rows[14]["caption"] = rows[15]["caption"] = []
    limit = 3 / min(block, 40)
    list(islice(make_stream(rows, shuffle_block=block, max_bad_fraction=limit).batches(), 10))
    strict = make_stream(rows, shuffle_block=block, max_bad_fraction=limit - 0.01)
    with pytest.raises(DataError, match=r"toys: 3 of \d+ pairs .*3 no_caption; the first is toys row 13.*raise that"):
        list(islice(strict.batches(), 10))


def test_one_bad_pair_in_the_short_block_at_the_end_is_no_verdict():
    rows = [row(index) for index in range(22)]
    rows[21]["caption"] = []
    stream = make_stream(rows, shuffle_block=20, max_bad_fraction=0.05)
    assert sorted(ids(islice(stream.batches(), 21))[:21]) == list(range(21))


@pytest.mark.parametrize("block", [3, 100])
def test_fewer_readable_pairs_than_a_batch_raise(block):
    rows = [row(index) for index in range(8)]
    rows[4]["caption"] = []
    stream = make_stream(rows, 8, shuffle_block=block, max_bad_fraction=0.5)
    with pytest.raises(DataError, match="7 readable pairs, 1 left out as no_caption, fewer than batch_size=8: lower"):
        next(stream.batches())
    assert len(next(make_stream(rows, 7, shuffle_block=block, max_bad_fraction=0.5).batches()).captions) == 7


def test_a_batch_that_the_ranks_cannot_share_raises():
    with pytest.raises(DataError, match="batch_size=10 cannot be divided among 4 processes: set it to 8"):
        make_stream([row(0)], 10, world_size=4)


def test_pairs_of_one_concept_are_positives_and_without_concepts_those_of_one_caption():
    captions = ["a cat", "a dog", "a cat", "a bird"]
    rows = [row(index, caption=[caption]) for index, caption in enumerate(captions)]
    batch = next(make_stream(rows).batches())
    of_caption = dict(zip(batch.sample_ids_B.tolist(), batch.concept_ids_B.tolist(), strict=True))
    assert of_caption[0] == of_caption[2] and len(set(of_caption.values())) == 3
    rows = [row(index, caption=[caption], concept=str(index % 2)) for index, caption in enumerate(captions)]
    batch = next(make_stream(rows).batches())
    of_concept = dict(zip(batch.sample_ids_B.tolist(), batch.concept_ids_B.tolist(), strict=True))
    assert of_concept[0] == of_concept[2] != of_concept[1] == of_concept[3]


def test_captions_and_keywords_are_drawn_anew_each_epoch():
    captions, words = ["one", "two", "three"], ["red", "round", "small", "wet"]
    rows = [row(index, caption=captions, keywords=words) for index in range(8)]
    rows[0]["keywords"] = []
    stream = make_stream(rows, 8, keyword_weight=1.0, keyword_columns=["keywords"], max_keywords=2)
    batches = list(islice(stream.batches(), 40))
    drawn = Counter(caption for batch in batches for caption in batch.captions)
    assert set(drawn) == set(captions) and min(drawn.values()) > 60
    of_one = {batch.captions[batch.sample_ids_B.tolist().index(5)] for batch in batches}
    assert of_one == set(captions)
    keywords = [
        text.split(", ")
        for batch in batches
        for sample, text in zip(batch.sample_ids_B, batch.keywords, strict=True)
        if sample
    ]
    assert {len(words) for words in keywords} == {1, 2}
    assert all(len(set(some)) == len(some) and set(some) <= set(words) for some in keywords)
    assert Counter(some[0] for some in keywords).keys() == set(words)
    # A pair without keywords falls back on a caption.
    assert all(
        text in captions
        for batch in batches
        for sample, text in zip(batch.sample_ids_B, batch.keywords, strict=True)
        if not sample
    )
    assert next(make_stream(rows, 8).batches()).keywords is None


def test_a_word_that_a_mirror_would_make_false_forbids_it():
    rows = [row(0, caption=["an arrow"]), row(1, caption=["x", "LEFT hand"]), row(2, caption=["leftwards"]), row(3)]
    batch = next(make_stream(rows).batches())
    may_flip = dict(zip(batch.sample_ids_B.tolist(), batch.may_flip_B.tolist(), strict=True))
    assert may_flip == {0: True, 1: False, 2: False, 3: True}
    assert next(make_stream(rows, no_flip_words=()).batches()).may_flip_B.all()


def test_read_ahead_gives_the_items_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise KeyError("from within")

    items = read_ahead(numbers(), depth=2)
    assert list(islice(items, 5)) == list(range(5))
    with pytest.raises(KeyError, match="from within"):
        next(items)


def test_read_ahead_reads_no_further_than_asked_and_stops_its_thread():
    made, enough = [], threading.Event()

    def numbers():
        for number in range(1000):
            made.append(number)
            if number == 3:
                enough.set()
            yield number

    before = threading.active_count()
    items = read_ahead(numbers(), depth=2)
    assert next(items) == 0
    # One is used, two wait, one is in the thread's hand.
    assert enough.wait(10)
    items.close()
    assert threading.active_count() == before
    assert len(made) <= 5
