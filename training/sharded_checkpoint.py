"""Checkpoints of sharded weights: each process writes its own shards while the steps go on.

They are torch's distributed checkpoints (`torch.distributed.checkpoint`) in a folder `shards` of an ordinary
checkpoint, with its manifest, and whole or not there like any other: shards are written aside, and what is hashed and
renamed is all of it, by the main process, in its background too. No process ever holds all weights.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from .checkpoint import SHARDS, CheckpointError, write_folder
from .distributed import bare_optimizer
from .ema import WeightAverage
from .step import TrainStep
from .stream.coordination import TIMEOUT, Coordinator


class ShardWriter:
    """Writes one checkpoint at a time. Every process must have one, and call each method as often as the others."""

    def __init__(self, coordinator: Coordinator):
        self.coordinator = coordinator
        # Of its own: what is written in the background must not meet what the steps tell each other.
        self.group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=TIMEOUT))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None

    def start(
        self, folder: Path, state: dict[str, Any], write: Callable[[Path], None], then: Callable[[], None]
    ) -> None:
        """Copies `state` to the CPU, and has it written to `folder` in the background.

        Args:
            state: from `sharded_state`.
            write: fills a folder with what the main process alone knows, at once.
            then: is called there once the checkpoint is whole.
        """
        aside = folder.with_name(f".{folder.name}.{SHARDS}")
        is_main = not dist.is_initialized() or dist.get_rank() == 0
        problem = None
        if is_main:
            try:
                # What a killed run has left, too.
                for left in folder.parent.glob(f".*.{SHARDS}"):
                    shutil.rmtree(left, ignore_errors=True)
                aside.mkdir(parents=True)
                write(aside)
            except OSError as error:
                shutil.rmtree(aside, ignore_errors=True)
                problem = str(error)
        self._raise_if(self.coordinator.gather(problem))
        written = cast(Future, async_save(state, checkpoint_id=aside / SHARDS, process_group=self.group))

        def finish() -> None:
            try:
                # Returns once all processes have written theirs.
                written.result()
                if is_main:
                    write_folder(folder, lambda partial: _move(aside, partial))
                    then()
            finally:
                if is_main:
                    shutil.rmtree(aside, ignore_errors=True)

        self._pending = self._thread.submit(finish)

    def wait(self) -> None:
        """Waits for what is being written. Collective.

        Raises:
            CheckpointError: it could not be written; nothing of it is left. On all processes.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        error = pending.exception()
        problems = self.coordinator.gather(None if error is None else " ".join(str(error).split())[:300])
        if isinstance(error, CheckpointError):
            raise error
        self._raise_if(problems)

    @staticmethod
    def _raise_if(problems: list[str | None]) -> None:
        if found := next(filter(None, problems), None):
            raise CheckpointError(
                f"A checkpoint could not be written ({found}). Nothing of it is left: free some space, then go on "
                "with `resume`."
            )


def _move(source: Path, target: Path) -> None:
    for item in source.iterdir():
        item.rename(target / item.name)


def sharded_state(
    model: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> dict[str, Any]:
    """Weights, optimizer and moving average as they are spread over the processes; the tensors themselves."""
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(objective, bare_optimizer(optimizer)),
    }
    if average is not None:
        state["average"] = average.tensors
    return state


def load_shards(folder: Path, state: dict[str, Any], train_step: TrainStep, coordinator: Coordinator) -> None:
    """Fills `state`, which is of these objects, from a checkpoint of any number of processes. Collective."""
    is_alone = not dist.is_initialized()
    load(_with_axes(state), checkpoint_id=folder / SHARDS, process_group=coordinator.group, no_dist=is_alone)
    set_optimizer_state_dict(train_step.objective, bare_optimizer(train_step.optimizer), state["optimizer"])


def _with_axes(state: Any, name: str = "") -> Any:
    """The same tensors, the scale's with the axis that sharded weights must have (`give_plain_parameters`)."""
    if isinstance(state, dict):
        return {key: _with_axes(value, f"{name}.{key}") for key, value in state.items()}
    is_scalar = isinstance(state, torch.Tensor) and state.ndim == 0
    return state.reshape(1) if is_scalar and "logit_scale" in name and not name.endswith(".step") else state
