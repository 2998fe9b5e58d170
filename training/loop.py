"""The training loop: what happens, in the order in which it happens.

Shape suffixes: B pairs of this rank, H and W rows and columns, C = 3 colors, T tokens.
"""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .build import build_again, build_start
from .checkpoint import SaveClock, load_state, newest_checkpoint, remove_old_checkpoints, save_state, write_folder
from .config import TrainConfig
from .data_fingerprint import fingerprint, require_same_data
from .distributed import (
    load_optimizer_state,
    make_accelerator,
    note_on_batch_statistics,
    optimizer_state,
    prepare,
    whole_model,
)
from .ema import WeightAverage
from .finish import circumstances, evaluate, finish, open_evaluations
from .full_tensors import whole
from .hub_checkpoints import CheckpointPusher
from .optimizer import learning_rate_fraction
from .progress import Report
from .run_folder import BAD_BATCHES, CHECKPOINTS, RunFolder, claim_folder, require_space
from .signals import StopNow, StopRequest
from .step import Outcome, Updater
from .stream import Batch, PairStream, Position, open_training_source


class TrainingStopped(Exception):
    """A signal ended the run after it saved; `--resume` goes on from there."""

    exit_code = 3


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer numbers."""


@dataclass
class Progress:
    """Where a run stands: all that a resumed one needs besides weights and optimizer."""

    step: int = 0
    position: Position = field(default_factory=dict)
    train_seconds: float = 0.0


def train(config: TrainConfig, output_dir: str | Path, *, resume: bool = False) -> dict:
    """Trains a dual encoder and leaves a complete model folder.

    Args:
        config: from `load_recipe`.
        output_dir: where the model, its card, `metrics.jsonl`, `recipe.yaml`, `results.json` and `checkpoints/` go.
        resume: go on with the run that is there, from its newest whole checkpoint; the steps that follow are those
            that an uninterrupted run would have made. A new run that fails before its first step leaves nothing.

    Returns:
        What `results.json` holds: measured numbers by evaluation, steps, seconds.

    Raises:
        FolderError: the folder holds another run, another process trains in it, or there is nothing to resume.
        SourceError, DataError: the data cannot be read or is too small. DataChangedError: it is not that with which
        the run began. CheckpointError: the disk is full. TrainingDiverged: loss or weights are not finite.
        TrainingStopped: a signal came; a checkpoint was saved. RecipeError: what only device and data can tell.
    """
    accelerator = make_accelerator(config)
    folder = claim_folder(Path(output_dir), config, resume, accelerator)
    progress = Progress()
    try:
        return _train(config, folder, accelerator, resume, progress)
    except StopNow as stop:
        raise TrainingStopped(
            f"{stop}: saved at step {progress.step}. Go on with --resume --output-dir {folder.path}"
        ) from None
    except BaseException:
        if not resume and progress.step == 0:
            folder.clear()
        raise
    finally:
        folder.close()


def _train(
    config: TrainConfig, run_folder: RunFolder, accelerator: Accelerator, resume: bool, progress: Progress
) -> dict:
    folder = run_folder.path
    for note in run_folder.notes:
        accelerator.print(f"{note}.")
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, accelerator.print) if resume else None
    data = open_training_source(config.data)
    evaluations = open_evaluations(config)
    if checkpoint is None:
        model, processor = build_start(config.model, data.captions(), config.seed)
    else:
        model, processor = build_again(checkpoint)
    require_space(folder, model, config.steps, config.checkpoints)
    objective, optimizer = prepare(model, config, accelerator)
    data_fingerprint = fingerprint(config.data.train, data.num_rows)
    run = Run(config, folder, accelerator, objective, optimizer, processor, progress, data_fingerprint)
    if checkpoint is not None:
        state = load_state(checkpoint)
        require_same_data(state["data"], data_fingerprint)
        _restore(run, state)

    stream = PairStream(
        data,
        config.data,
        processor.image_processor,
        config.batch_size,
        config.seed,
        config.augmentation,
        accelerator.process_index,
        accelerator.num_processes,
        run.stop.is_asked,
    )
    run.report = Report(folder, progress.step, config.steps, accelerator.is_main_process)
    if note := note_on_batch_statistics(model, config, accelerator.num_processes):
        run.report.say(note)
    if config.checkpoints.push_to is not None and accelerator.is_main_process:
        run.pusher = CheckpointPusher(config.checkpoints.push_to, folder, run.report.say)
    try:
        with run.stop:
            loop(run, stream, evaluations)
            run.report.say(f"Trained {config.steps} steps in {run.progress.train_seconds:.0f} s.")
            left_out = stream.skipped(stream.gather(progress.position))
            if left_out:
                reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
                run.report.say(f"Left out {left_out.total()} pairs that cannot be read: {reasons}.")
            return finish(run, evaluations, left_out)
    finally:
        if run.pusher is not None:
            run.pusher.close()
        run.report.close()


def loop(run: "Run", stream: PairStream, evaluations: dict) -> None:
    """Steps until the last, with what is due in between. Raises StopNow once a signal came and all is saved."""
    config, progress = run.config, run.progress
    # On a CPU the next batch would only compete with the step for the cores.
    batches = stream.batches(progress.position, reads_ahead=run.accelerator.device.type != "cpu")
    clock = SaveClock(config.checkpoints.save_minutes)
    with closing(batches):
        since, seconds_since = progress.step, 0.0
        while progress.step < config.steps:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                # A rank was asked to stop while it sought its pairs, which may take longer than it is given.
                _save(run, stream)
                signal, _ = run.agree(run.stop.signal, False)
                raise StopNow(signal)
            outcome = run.update(batch)
            is_due = (progress.step + 1) % config.log_every == 0 or progress.step + 1 == config.steps
            is_due = is_due and outcome.is_update
            progress.step, progress.position = progress.step + 1, batch.position
            seconds_since += time.perf_counter() - started
            progress.train_seconds += time.perf_counter() - started
            run.report.step()
            if is_due:
                steps, numbers = progress.step - since, run.read_numbers(outcome)
                numbers["pairs_per_second"] = steps * config.batch_size / seconds_since
                numbers["epoch"] = stream.epoch(progress.position)
                numbers["train_seconds"] = progress.train_seconds
                seconds_left = seconds_since / steps * (config.steps - progress.step)
                run.report.log(progress.step, numbers, seconds_left)
                since, seconds_since = progress.step, 0.0
            if progress.step % config.eval_every == 0 and progress.step < config.steps:
                evaluate(run, evaluations, during_training=True)
            signal, is_late = run.agree(run.stop.signal, clock.is_due())
            is_at_mark = progress.step % config.checkpoints.save_every == 0 or progress.step == config.steps
            if is_at_mark or is_late or signal:
                _save(run, stream)
                clock.restart()
            if signal and progress.step < config.steps:
                raise StopNow(signal)


def _save(run: "Run", stream: PairStream) -> None:
    run.progress.position = stream.gather(run.progress.position)
    run.save()


@dataclass
class Run:
    """The objects that the steps of a run share."""

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    objective: torch.nn.Module
    optimizer: torch.optim.Optimizer
    processor: HFCLIPProcessor
    progress: Progress
    data_fingerprint: dict[str, int | str] = field(default_factory=dict)
    report: Report | None = None
    pusher: CheckpointPusher | None = None
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self):
        decay = self.config.ema_decay
        average = None if decay is None else WeightAverage(self.model, decay)
        self.updater = Updater(self.config, self.accelerator, self.objective, self.optimizer, self.processor, average)

    @property
    def model(self) -> HFCLIPModel:
        return self.accelerator.unwrap_model(self.objective).model

    def update(self, batch: Batch) -> Outcome:
        """One step. The last of `max_bad_steps` in a row raises TrainingDiverged and leaves their samples' ids.

        So does the run's last one, where all that were to be logged were among those in a row.
        """
        outcome = self.updater.update(batch, self.progress.step)
        in_a_row = len(self.updater.bad_batches)
        if in_a_row and not outcome.is_update:
            what = (
                f"The loss is {outcome.loss.item()} and its gradient's norm {float(outcome.gradient_norm)} at step "
                f"{self.progress.step + 1}"
            )
            is_last = self.progress.step + 1 == self.config.steps
            logged_nothing = is_last and in_a_row > self.config.steps - self.config.log_every
            if in_a_row >= self.config.max_bad_steps or logged_nothing:
                self._keep_bad_batches()
                raise TrainingDiverged(
                    f"{what}, the last of {in_a_row} in a row that updated nothing; {self.folder / BAD_BATCHES} has "
                    f"the ids of their samples: {self.mend_of_divergence}."
                )
            if self.report is not None:
                self.report.say(f"{what}: no update ({in_a_row} in a row; max_bad_steps={self.config.max_bad_steps}).")
        return outcome

    def _keep_bad_batches(self) -> None:
        """The steps (from 1) in a row that were bad, and their batches' sample ids, all ranks' in order."""
        lines = []
        for step, ids in self.updater.bad_batches:
            all_ids = self.accelerator.gather(torch.tensor(ids, device=self.accelerator.device))
            lines.append(json.dumps({"step": step + 1, "sample_ids": all_ids.tolist()}) + "\n")
        if self.accelerator.is_main_process:
            (self.folder / BAD_BATCHES).write_text("".join(lines), encoding="utf-8")

    @contextmanager
    def released_model(self) -> Iterator[HFCLIPModel]:
        """The model as it is judged and handed out, within the block: averaged where the recipe says so, and whole.

        Collective where weights are sharded.
        """
        average = self.updater.average
        with nullcontext() if average is None else average.in_place():
            yield whole_model(self.model)

    @property
    def mend_of_divergence(self) -> str:
        return (
            f"lower optimizer.learning_rate (now {self.config.optimizer.learning_rate}) or raise "
            f"optimizer.warmup_steps (now {self.config.optimizer.warmup_steps}), or set mixed_precision=no"
        )

    def read_numbers(self, outcome: Outcome) -> dict[str, float]:
        """Loss, gradient norm, rate, scale, and how many steps updated nothing so far."""
        config = self.config.optimizer
        return {
            "loss": outcome.loss.item(),
            "gradient_norm": float(outcome.gradient_norm),
            "learning_rate": config.learning_rate
            * learning_rate_fraction(self.progress.step - 1, self.config.steps, config),
            "logit_scale": whole(self.model.logit_scale.detach()).exp().item(),
            "bad_steps": self.updater.bad_steps,
        }

    def agree(self, signal: str | None, is_late: bool) -> tuple[str | None, bool]:
        """The signal that any rank has had, and whether a save is late on any.

        All must save and stop at one step, or the others wait for ever.
        """
        if self.accelerator.num_processes == 1:
            return signal, is_late
        flags = torch.tensor([float(signal is not None), float(is_late)], device=self.accelerator.device)
        is_signalled, is_late = (self.accelerator.reduce(flags) > 0).tolist()
        return (signal or "a signal to another process") if is_signalled else None, is_late

    def save(self) -> None:
        """A checkpoint of this step; older ones go, as the recipe has it."""
        # Every rank looks, so that all leave together. An update can spoil weights whose gradient was in order.
        for name, parameter in self.model.named_parameters():
            if not whole(parameter.detach()).isfinite().all():
                raise TrainingDiverged(
                    f"{name} is not finite after step {self.progress.step}, and nothing of it was saved: "
                    f"{self.mend_of_divergence}."
                )
        model = whole_model(self.model)
        state = {"optimizer": optimizer_state(self.objective, self.optimizer), "update": self.updater.state_dict()}
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write_checkpoint(model, state)
        # A launcher kills the others as soon as one rank has left: not before the checkpoint is whole.
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, model: HFCLIPModel, state: dict) -> None:
        progress, config = self.progress, self.config.checkpoints
        place = self.folder / CHECKPOINTS / f"checkpoint-{progress.step}"

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            save_state(
                folder,
                {
                    **state,
                    "step": progress.step,
                    "position": progress.position,
                    "train_seconds": progress.train_seconds,
                    "data": self.data_fingerprint,
                    "circumstances": circumstances(self.accelerator),
                },
            )

        write_folder(place, write)
        if self.pusher is not None:
            self.pusher.push(place)
        in_use = self.pusher.in_use if self.pusher is not None else None
        remove_old_checkpoints(self.folder / CHECKPOINTS, config, progress.step, in_use)


def _restore(run: Run, state: dict) -> None:
    progress, accelerator = run.progress, run.accelerator
    load_optimizer_state(run.objective, run.optimizer, state["optimizer"])
    run.updater.load_state_dict(state["update"])
    progress.step, progress.position = state["step"], state["position"]
    progress.train_seconds = state["train_seconds"]
    accelerator.print(f"Going on from step {progress.step}.", flush=True)
    now = circumstances(accelerator)
    changed = [
        f"{name} was {was} and is {now.get(name)}"
        for name, was in state["circumstances"].items()
        if now.get(name) != was
    ]
    if changed:
        accelerator.print(
            f"{', '.join(changed)}: the last bits of the weights may differ from an uninterrupted run's."
        )
