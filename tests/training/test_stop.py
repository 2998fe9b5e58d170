"""A stream that is asked to stop ends where it stands: amid the rows of a block, among pairs, on all processes."""

import pytest
import torch.distributed as dist

from hf_clip import HFCLIPImageProcessor
from hf_clip.sources import Source
from hf_clip.training.config import AugmentationConfig, DataConfig
from hf_clip.training.stream import PairStream, TrainingData
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import rows

PROCESSOR = HFCLIPImageProcessor(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})


class StoppingRows(list):
    """Rows of which the one that is read as the `last`-th asks to stop."""

    last, read = 40, 0

    def __getitem__(self, index):
        if isinstance(index, int):
            self.read += 1
        return super().__getitem__(index)

    def is_stopped(self) -> bool:
        return self.read >= self.last


def stopping_stream(content: StoppingRows, rank=0, world_size=1, workers=0) -> PairStream:
    config = DataConfig(train=["toys"], workers=workers, lanes=2, shuffle_block=1000, decoded_cache_gb=0.0)
    source = Source(dataset=content, name="toys", image_column="image", caption_columns=("caption",))
    data = TrainingData((source,), (1.0,))
    stops = content.is_stopped if rank == world_size - 1 else lambda: False
    return PairStream(data, config, PROCESSOR, 20, 0, AugmentationConfig(), rank, world_size, stops)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reads_ahead", [False, True])
def test_a_stream_that_is_stopped_ends_amid_a_block(workers, reads_ahead):
    content = StoppingRows(rows(10))
    assert list(stopping_stream(content, workers=workers).batches(reads_ahead=reads_ahead)) == []
    assert content.last <= content.read <= content.last + 2


def test_a_stream_that_is_stopped_among_pairs_ends_before_the_next():
    content = StoppingRows(rows(2)[:40])
    content.last = 10**6
    batches = stopping_stream(content).batches()
    next(batches)
    content.last = 0
    assert list(batches) == []


def count_until_stopped() -> int:
    content = StoppingRows(rows(10))
    content.last = 10**6
    stream = stopping_stream(content, dist.get_rank(), dist.get_world_size())
    count = 0
    for count, _ in enumerate(stream.batches(), start=1):
        content.last = 0 if count == 3 else content.last
    return count


def test_a_process_that_is_stopped_stops_all_at_one_step():
    assert run_on_ranks(count_until_stopped, 2) == [3, 3]
