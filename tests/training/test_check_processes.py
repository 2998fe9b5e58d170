"""`hf-clip doctor --distributed`: what processes find out about each other before a long run."""

import time

import pytest
import torch.distributed as dist

from hf_clip.training import check_processes as checking
from hf_clip_cli import main as cli
from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks


def check(is_odd: bool) -> tuple[dict, str]:
    """On two ranks; with `is_odd` the second has another host, clock and torch, and adds up wrongly."""
    patch = pytest.MonkeyPatch()
    if is_odd and dist.get_rank() == 1:
        clock, add_up = time.time, dist.all_reduce
        patch.setattr(checking.socket, "gethostname", lambda: "other")
        patch.setattr(checking.time, "time", lambda: clock() + 60.0)
        patch.setattr(checking.torch, "__version__", "2.0.0")
        patch.setattr(dist, "all_reduce", lambda tensor, **options: (add_up(tensor, **options), tensor.add_(1)))
    try:
        found = checking.check_processes(2**16)
        return found.to_dict(), found.report()
    finally:
        patch.undo()


@pytest.mark.slow
def test_what_is_wrong_between_processes_is_named():
    (found, report), other = run_on_ranks(check, 2, True)
    assert other == (found, report)
    assert found["clock_skew_seconds"]["other"] == pytest.approx(60.0, abs=0.5)
    assert [each["process"] for each in found["processes"]] == [0, 1] and found["backend"] == "gloo"
    assert set(found["gigabytes_per_second"]) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert all(speed > 0 for speed in [*found["gigabytes_per_second"].values(), found["latency_seconds"]])
    wrong, clock, version = found["problems"]
    assert wrong == "all-reduce gives wrong numbers on process 1 (1 in all)."
    assert clock.startswith("The clock of other is 60.0 s ahead of that of process 0")
    assert version.startswith("torch is 2.0.0 on process 1 (other)")
    assert "2 processes on 2 hosts, gloo" in report and "problem: torch is 2.0.0" in report


@pytest.mark.slow
@pytest.mark.skipif(not soak_count(False, True), reason="the same again: make soak")
def test_processes_that_are_alike_have_no_problem():
    (found, report), _ = run_on_ranks(check, 2, False)
    assert found["problems"] == [] and "problem" not in report and "GB/s a process" in report


def test_one_process_is_told_how_to_be_several(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cli.main(["doctor", "--distributed"]) == 2
    assert "torchrun --nproc-per-node 2 -m hf_clip doctor --distributed" in capsys.readouterr().err
