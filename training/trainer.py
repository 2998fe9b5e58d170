"""The objects of a run, and what is done with them: steps, checkpoints, the model that is handed out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .checkpoint import (
    SHARDS,
    CheckpointError,
    drop_code,
    load_state,
    remove_old_checkpoints,
    save_state,
    write_folder,
)
from .config import TrainConfig
from .data_fingerprint import require_same_data
from .decisions import Decisions
from .distributed import full_model, full_tensor, is_sharded, load_optimizer_state, optimizer_state, own_part
from .hub_checkpoints import CheckpointPusher
from .lora import ADAPTERS, adapter_tensors, merged_adapters, save_adapters, without_adapters
from .optimizer import learning_rate_fraction
from .progress import ProgressLog
from .run_folder import BAD_BATCHES, CHECKPOINTS
from .sharded_checkpoint import ShardWriter, load_shards, sharded_state
from .signals import StopRequest
from .step import StepResult, TrainStep
from .stream import Batch, PairStream, Position


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer numbers."""


_OF_EVALUATIONS = ("evaluated_step", "best_step", "best_value", "evaluations_without_better")


@dataclass
class Progress:
    """Where a run stands: all that a resumed one needs besides weights and optimizer."""

    step: int = 0
    position: Position = field(default_factory=dict)
    train_seconds: float = 0.0
    saved_step: int = 0
    evaluated_step: int = -1
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_better: int = 0

    def of_evaluations(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps of evaluations on the way."""
        return {name: getattr(self, name) for name in _OF_EVALUATIONS}


@dataclass
class Trainer:
    """The objects of a run, which its steps have in common.

    Attributes:
        folder: of the run.
        data_fingerprint: what the training data is recognized by when the run is resumed.
        pusher: copies checkpoints to the Hub, on the main process, where the recipe says so.
        best_model: what is handed out in place of the last step's, once it is known.
    """

    config: TrainConfig
    folder: Path
    train_step: TrainStep
    progress: Progress
    log: ProgressLog
    data_fingerprint: dict[str, int | str] = field(default_factory=dict)
    pusher: CheckpointPusher | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    best_model: HFCLIPModel | None = None
    _shard_writer: ShardWriter | None = None
    _released_adapters: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def decisions(self) -> Decisions:
        return self.train_step.decisions

    @property
    def accelerator(self) -> Accelerator:
        return self.decisions.accelerator

    @property
    def model(self) -> HFCLIPModel:
        return self.train_step.model

    def restore(self, checkpoint: Path) -> None:
        """Takes over the state of a checkpoint; its weights are already the model's.

        Raises:
            DataChangedError: the training data is not that with which the run began.
        """
        state = load_state(checkpoint)
        require_same_data(state["data"], self.data_fingerprint)
        progress = self.progress
        if (checkpoint / SHARDS).is_dir():
            load_shards(checkpoint, self._sharded_state(), self.train_step, self.decisions.coordinator)
        else:
            load_optimizer_state(self.train_step.objective, self.train_step.optimizer, state["optimizer"])
        self.train_step.load_state_dict(state["update"])
        progress.step, progress.position = state["step"], state["position"]
        progress.train_seconds, progress.saved_step = state["train_seconds"], state["step"]
        for name, value in state["evaluations"].items():
            setattr(progress, name, value)
        self.log.say(f"Going on from step {progress.step}.")
        now, then = self.decisions.circumstances(), state["circumstances"]
        changed = [
            f"{name} was {then.get(name)} and is {now.get(name)}" for name in now if now.get(name) != then.get(name)
        ]
        if changed:
            self.log.say(f"{', '.join(changed)}: the last bits of the weights may differ from an uninterrupted run's.")
        if now["jpeg_decoder"] != then.get("jpeg_decoder"):
            self.log.say(
                "JPEGs are decoded by another decoder: pixels may differ by some levels from those before. For the "
                "same ones, install what the run began with (pip install simplejpeg, or remove it), and resume again."
            )

    def update(self, batch: Batch) -> StepResult:
        """One step. The last of `max_bad_steps` in a row raises TrainingDiverged and leaves their samples' ids.

        So does the run's last one, where all that were to be logged were among those in a row.
        """
        result = self.train_step.update(batch, self.progress.step)
        in_a_row = len(self.train_step.bad_batches)
        if in_a_row and not result.is_update:
            what = (
                f"The loss is {result.loss.item()} and its gradient's norm {float(result.gradient_norm)} at step "
                f"{self.progress.step + 1}"
            )
            steps = self.config.total_steps
            logged_nothing = self.progress.step + 1 == steps and in_a_row > steps - self.config.log_every
            if in_a_row >= self.config.max_bad_steps or logged_nothing:
                self._keep_bad_batches()
                raise TrainingDiverged(
                    f"{what}, the last of {in_a_row} in a row that updated nothing; {self.folder / BAD_BATCHES} has "
                    f"the ids of their samples: {result.fix or self.fix_of_divergence}."
                )
            reason = f" ({result.fix})" if result.fix else ""
            self.log.say(
                f"{what}{reason}: no update ({in_a_row} in a row; max_bad_steps={self.config.max_bad_steps})."
            )
        return result

    def _keep_bad_batches(self) -> None:
        """The steps (from 1) in a row that were bad, and their batches' sample ids, all ranks' in order."""
        lines = []
        for step, ids in self.train_step.bad_batches:
            all_ids = cast(torch.Tensor, self.accelerator.gather(torch.tensor(ids, device=self.decisions.device)))
            lines.append(json.dumps({"step": step + 1, "sample_ids": all_ids.tolist()}) + "\n")
        if self.decisions.is_main:
            file = self.folder / BAD_BATCHES
            self.log.attempt(BAD_BATCHES, lambda: file.write_text("".join(lines), encoding="utf-8"))

    @contextmanager
    def released_model(self, *, everywhere: bool = False) -> Iterator[HFCLIPModel]:
        """The model as it is evaluated and exported, within the block: averaged where the recipe says so, and whole.

        Collective where weights are sharded: the main process then has it on its CPU, to write it, or with
        `everywhere` all have it on their device. Once the best model is known it is that one.
        """
        if self.best_model is not None:
            yield self.best_model
            return
        average = self.train_step.average
        with nullcontext() if average is None else average.in_place(), self.train_step.own_settings():
            self._released_adapters = {name: each.clone() for name, each in adapter_tensors(self.model).items()}
            with merged_adapters(self.model):
                yield full_model(self.model, everywhere=everywhere)

    def write_release(self, model: HFCLIPModel, folder: Path) -> None:
        """Writes what `released_model` gave, its processor, and the adapters that are merged in it, to a folder."""
        model.save_pretrained(folder)
        self.train_step.processor.save_pretrained(folder)
        if self._released_adapters:
            save_adapters(self._released_adapters, type(model).__name__, self.config, folder / ADAPTERS)

    @property
    def is_over(self) -> bool:
        """Whether no step is left, or so many evaluations brought nothing better that the recipe has the run end."""
        patience = self.config.checkpoints.patience
        is_stopped = patience is not None and self.progress.evaluations_without_better >= patience
        return is_stopped or self.progress.step >= self.config.total_steps

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an evaluation belongs before the next step, and was not made yet."""
        config, step = self.config, self.progress.step
        is_due = config.eval_at_start if step == 0 else step % config.eval_every == 0 and step < config.total_steps
        return is_due and self.progress.evaluated_step != step

    @property
    def fix_of_divergence(self) -> str:
        """What to change where the loss is no number; none of it can be changed in a run that has begun."""
        optimizer = self.config.optimizer
        return (
            f"start a run with a lower optimizer.learning_rate (now {optimizer.learning_rate}), a higher "
            f"optimizer.warmup_steps (now {optimizer.warmup_steps}) or mixed_precision=no"
        )

    def read_numbers(self, result: StepResult) -> dict[str, float]:
        """Loss, gradient norm, rate, scale, and how many steps updated nothing so far."""
        config = self.config.optimizer
        return {
            "loss": result.loss.item(),
            "gradient_norm": float(result.gradient_norm),
            "learning_rate": config.learning_rate
            * learning_rate_fraction(self.progress.step - 1, self.config.total_steps, config),
            "logit_scale": full_tensor(self.model.logit_scale.detach()).exp().item(),
            "bad_steps": self.train_step.bad_steps,
        }

    def agree(self, signal: str | None, is_late: bool = False) -> tuple[str | None, bool]:
        """The signal that any rank has had, and whether a save is late on any.

        All must save and stop at one step, or the others wait for ever.
        """
        if self.decisions.processes == 1:
            return signal, is_late
        is_signalled, is_late = self.decisions.on_any_process(signal is not None, is_late)
        return (signal or "a signal to another process") if is_signalled else None, is_late

    def save(self, stream: PairStream, *, waits: bool = True) -> None:
        """A checkpoint of this step; older ones go, as the recipe has it. Collective.

        Args:
            waits: until it is whole; otherwise sharded weights are written while the steps go on, and `finish_save`
                waits.

        Raises:
            TrainingDiverged: a weight is not finite. CheckpointError: the disk is full, of an earlier one too.
        """
        self.finish_save()
        self.progress.position = stream.gather(self.progress.position)
        self._require_finite_weights()
        if is_sharded(self.model):
            self._start_sharded_save()
        else:
            self._save_whole()
        self.progress.saved_step = self.progress.step
        if waits:
            self.finish_save()

    def finish_save(self) -> None:
        """Waits for what is written in the background. Collective. Raises CheckpointError where it could not be."""
        if self._shard_writer is not None:
            self._shard_writer.wait()

    def _sharded_state(self) -> dict[str, Any]:
        train_step = self.train_step
        return sharded_state(self.model, train_step.objective, train_step.optimizer, train_step.average)

    def _start_sharded_save(self) -> None:
        self._shard_writer = self._shard_writer or ShardWriter(self.decisions.coordinator)
        checkpoint = self.folder / CHECKPOINTS / f"checkpoint-{self.progress.step}"
        facts = self._facts({"update": self.train_step.state_dict(has_average=False)})

        def write(folder: Path) -> None:
            with self.train_step.own_settings():
                self.model.config.save_pretrained(folder)
            self.train_step.processor.save_pretrained(folder)
            drop_code(folder)
            save_state(folder, facts)

        then = partial(self._after_checkpoint, checkpoint, self.progress.step)
        self._shard_writer.start(checkpoint, self._sharded_state(), write, then)

    def _save_whole(self) -> None:
        model = full_model(self.model, everywhere=False)
        train_step = self.train_step
        state = {
            "optimizer": optimizer_state(train_step.objective, train_step.optimizer),
            "update": train_step.state_dict(),
        }
        problem = None
        if self.decisions.is_main:
            try:
                self._write_checkpoint(model, state)
            except CheckpointError as error:
                problem = error
        # A launcher kills the others as soon as one rank has left: not before the checkpoint is whole.
        [is_failed] = self.decisions.on_any_process(problem is not None)
        if problem is not None:
            raise problem
        if is_failed:
            raise CheckpointError(
                f"The first process could not write the checkpoint of step {self.progress.step}; its lines say why."
            )

    def _require_finite_weights(self) -> None:
        # All leave together. An update can spoil weights whose gradient was in order.
        weights = ((name, own_part(each.detach())) for name, each in self.model.named_parameters())
        spoilt = next((name for name, weight in weights if not weight.isfinite().all()), None)
        for name in filter(None, self.decisions.coordinator.gather(spoilt)):
            raise TrainingDiverged(
                f"{name} is not finite after step {self.progress.step}, and nothing of it was saved: "
                f"{self.fix_of_divergence}."
            )

    def _write_checkpoint(self, model: HFCLIPModel, state: dict) -> None:
        checkpoint = self.folder / CHECKPOINTS / f"checkpoint-{self.progress.step}"

        def write(folder: Path) -> None:
            with without_adapters(model), self.train_step.own_settings():
                model.save_pretrained(folder)
            self.train_step.processor.save_pretrained(folder)
            drop_code(folder)
            save_state(folder, self._facts(state))

        write_folder(checkpoint, write)
        self._after_checkpoint(checkpoint, self.progress.step)

    def _facts(self, state: dict[str, Any]) -> dict[str, Any]:
        progress = self.progress
        return {
            **state,
            "step": progress.step,
            "position": progress.position,
            "train_seconds": progress.train_seconds,
            "evaluations": progress.of_evaluations(),
            "data": self.data_fingerprint,
            "circumstances": self.decisions.circumstances(),
        }

    def _after_checkpoint(self, checkpoint: Path, step: int) -> None:
        if self.pusher is not None:
            self.pusher.push(checkpoint)
        in_use = self.pusher.in_use if self.pusher is not None else None
        remove_old_checkpoints(self.folder / CHECKPOINTS, self.config.checkpoints, step, in_use)
