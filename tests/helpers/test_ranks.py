"""The helper that runs tests on several ranks: results in order, and no failure that hangs or goes unseen."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import RankError, run_on_ranks


def sum_over_ranks(number: torch.Tensor) -> tuple[int, torch.Tensor]:
    total = number * (dist.get_rank() + 1)
    dist.all_reduce(total)
    return dist.get_rank(), total


def fail_on_the_last_rank(how: str) -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        if how == "raise":
            raise KeyError("a mistake of this rank")
        if how == "die":
            os._exit(3)
        time.sleep(60)
    dist.barrier()


def test_results_come_back_in_rank_order():
    results = run_on_ranks(sum_over_ranks, 3, torch.tensor(0.5, dtype=torch.float64))
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert all(total.item() == 3.0 for _, total in results)


@pytest.mark.parametrize(
    ("how", "timeout_seconds", "report"),
    [
        ("raise", 60, "(?s)Rank 1: Traceback.*a mistake of this rank"),
        ("die", 60, "Rank 1: its process died"),
        ("sleep", 1.5, "Rank 1: was still running"),
    ],
)
def test_a_rank_that_fails_is_reported_and_not_waited_for(how, timeout_seconds, report):
    start = time.monotonic()
    with pytest.raises(RankError, match=report):
        run_on_ranks(fail_on_the_last_rank, 2, how, timeout_seconds=timeout_seconds)
    assert time.monotonic() - start < 30
