"""Several ranks on one machine: a function runs on N processes that share a gloo group over the loopback.

The processes are forked from a server that has torch and transformers loaded and has run nothing yet, so that a rank
starts in a fraction of a second, without the threads of the test that asked for it.
"""

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
import torch.distributed as dist

from tests.helpers.precision import keep_to_float32

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# Once a rank has failed, the others wait for it in a collective: they get this long to fail by themselves.
_GRACE_SECONDS = 5.0


class RankError(AssertionError):
    """What went wrong on which ranks, with their tracebacks."""


def run_on_ranks(function: Callable, world_size: int, *args, timeout_seconds: float = 120.0) -> list:
    """`[function(*args) on rank 0, ... on rank 1, ...]`, with `torch.distributed` initialized (gloo, CPU).

    Args:
        function: one at the top level of a module, found by name in the ranks' processes.
        world_size: how many ranks.
        args: what pickle takes, tensors included. Results must be so too.
        timeout_seconds: for the whole run; also the limit of a collective.

    RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE are set as a launcher sets them.

    Raises:
        RankError: a rank raised, died, or was still running at the end of the time.
    """
    context = process_context()
    payload = pickle.dumps((function, args))
    processes, receivers = [], []
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            target = (rank, world_size, str(Path(folder) / "store"), timeout_seconds, payload, sender)
            process = context.Process(target=_run_rank, args=target, daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            receivers.append(receiver)
        try:
            outcomes = _collect(receivers, time.monotonic() + timeout_seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()
    failures = [f"Rank {rank}: {outcome[1]}" for rank, outcome in enumerate(outcomes) if not outcome[0]]
    if failures:
        raise RankError("\n".join(failures))
    return [pickle.loads(outcome[1]) for outcome in outcomes]


def process_context() -> BaseContext:
    """Makes processes from the one server, which has loaded what they all need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "torch.distributed.nn.functional", "hf_clip.training.loop", "tests.helpers.saved_code"]
    )
    return context


def _collect(receivers: list, deadline: float) -> list[tuple[bool, bytes | str]]:
    """(succeeded, pickled result or report) of each rank."""
    outcomes = [(False, "was still running when its time was over, or after another rank had failed.")] * len(
        receivers
    )
    waiting = list(receivers)
    while waiting and (ready := wait(waiting, timeout=max(deadline - time.monotonic(), 0))):
        for receiver in ready:
            waiting.remove(receiver)
            rank = receivers.index(receiver)
            try:
                outcomes[rank] = receiver.recv()
            except EOFError:
                outcomes[rank] = (False, "its process died without a word.")
            if not outcomes[rank][0]:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return outcomes


def _run_rank(rank: int, world_size: int, store: str, timeout_seconds: float, payload: bytes, sender) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        GLOO_SOCKET_IFNAME=_LOOPBACK,
    )
    try:
        keep_to_float32()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        function, args = pickle.loads(payload)
        result = pickle.dumps(function(*args))
        # No rank leaves while another still talks to it.
        dist.barrier()
        sender.send((True, result))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
