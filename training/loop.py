"""The training loop: what happens, in the order in which it happens.

Shape suffixes: B pairs of this rank, H and W rows and columns, C = 3 colours, T tokens.
"""

import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from hf_clip.modeling_hf_clip import HFCLIPModel
from hf_clip.processing_hf_clip import HFCLIPProcessor

from .augmentation import DRAWS_PER_PICTURE, augment, uniforms
from .build import build_model, build_processor
from .checkpoint import load_state, newest_checkpoint, remove_old_checkpoints, save_state, write_folder
from .config import TrainConfig
from .device import arrange_for_speed, choose_precision, fastest_device
from .finish import evaluate, finish, open_evaluations
from .folder import claim_folder, release_folder, require_space
from .objective import ContrastiveObjective
from .optimizer import clamp_logit_scale, learning_rate, make_optimizer
from .report import Report
from .signals import StopRequest
from .stream import Batch, PairStream, Position, open_training_source, read_ahead


class TrainingStopped(Exception):
    """A signal ended the run after it saved; `--resume` goes on from there."""

    exit_code = 3


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Progress:
    """Where a run stands: all that a resumed one needs besides weights and optimizer."""

    step: int = 0
    position: Position = field(default_factory=Position)
    train_seconds: float = 0.0


def train(config: TrainConfig, output_dir: str | Path, *, resume: bool = False) -> dict:
    """Trains a dual encoder and leaves a complete model folder.

    Args:
        config: from `load_recipe`.
        output_dir: where the model, its card, `metrics.jsonl`, `recipe.yaml`, `results.json` and `checkpoints/` go.
        resume: go on with the run that is there, from its newest whole checkpoint; the steps that follow are those
            that an uninterrupted run would have made. A new run that fails before its first step leaves no folder.

    Returns:
        What `results.json` holds: measured numbers by evaluation, steps, seconds.

    Raises:
        FolderError: the folder holds another run, or there is nothing to resume. SourceError, DataError: the data
        cannot be read or is too small. CheckpointError: the disk is full. TrainingDiverged: the loss is not finite.
        TrainingStopped: a signal came; a checkpoint was saved.
    """
    device = fastest_device()
    # Unless it is told that there is only a CPU, it takes the processes of a launcher for so many runs of one.
    accelerator = Accelerator(
        mixed_precision=choose_precision(config.mixed_precision, device), cpu=device.type == "cpu"
    )
    folder = claim_folder(Path(output_dir), config, resume, accelerator)
    progress = Progress()
    try:
        return _train(config, folder, accelerator, resume, progress)
    except BaseException:
        if not resume and progress.step == 0 and accelerator.is_main_process:
            release_folder(folder)
        raise


def _train(config: TrainConfig, folder: Path, accelerator: Accelerator, resume: bool, progress: Progress) -> dict:
    checkpoint = newest_checkpoint(folder / "checkpoints", accelerator.print) if resume else None
    source = open_training_source(config.data)
    evaluations = open_evaluations(config)
    if checkpoint is None:
        processor = build_processor(config.model, source)
        model = build_model(config.model, processor, config.seed)
    else:
        processor = HFCLIPProcessor.from_pretrained(checkpoint)
        model = HFCLIPModel.from_pretrained(checkpoint)
    require_space(folder, model, config.keep_checkpoints)
    arrange_for_speed(model, accelerator.device)
    objective = ContrastiveObjective(model, config.data.keyword_weight)
    objective, optimizer = accelerator.prepare(objective, make_optimizer(model, config.optimizer))
    if checkpoint is not None:
        _restore(progress, load_state(checkpoint), optimizer, accelerator)

    stream = PairStream(
        source,
        config.data,
        processor.image_processor,
        config.batch_size,
        config.seed,
        config.augmentation.no_flip_words,
        accelerator.process_index,
        accelerator.num_processes,
    )
    run = Run(config, folder, accelerator, objective, optimizer, processor, progress)
    run.report = Report(folder, progress.step, config.steps, accelerator.is_main_process)
    try:
        loop(run, stream, evaluations)
        run.report.say(f"Trained {config.steps} steps in {run.progress.train_seconds:.0f} s.")
        return finish(run, evaluations, stream.bad_pairs)
    finally:
        run.report.close()


def loop(run: "Run", stream: PairStream, evaluations: dict) -> None:
    """Steps until the last, with what is due in between."""
    config, progress = run.config, run.progress
    batches = stream.batches(progress.position)
    if run.accelerator.device.type != "cpu":
        # On a CPU the next batch would only compete with the step for the cores.
        batches = read_ahead(batches)
    with StopRequest() as stop, closing(batches):
        since, seconds_since = progress.step, 0.0
        while progress.step < config.steps:
            started = time.perf_counter()
            batch = next(batches)
            loss, gradient_norm = run.update(batch)
            is_due = (progress.step + 1) % config.log_every == 0 or progress.step + 1 == config.steps
            # Reading the loss waits for the accelerator, so that the time up to here counts what was computed.
            numbers = run.read_numbers(loss, gradient_norm) if is_due else {}
            progress.step, progress.position = progress.step + 1, batch.position
            seconds_since += time.perf_counter() - started
            progress.train_seconds += time.perf_counter() - started
            run.report.step()
            if is_due:
                steps = progress.step - since
                numbers["pairs_per_second"] = steps * config.batch_size / seconds_since
                numbers["epoch"] = progress.position.epoch
                numbers["train_seconds"] = progress.train_seconds
                seconds_left = seconds_since / steps * (config.steps - progress.step)
                run.report.log(progress.step, numbers, seconds_left)
                since, seconds_since = progress.step, 0.0
            if progress.step % config.eval_every == 0 and progress.step < config.steps:
                evaluate(run, evaluations, during_training=True)
            signal = run.agree_to_stop(stop.signal)
            if progress.step % config.save_every == 0 or progress.step == config.steps or signal:
                run.require_finite(loss, gradient_norm)
                run.save()
            if signal and progress.step < config.steps:
                raise TrainingStopped(
                    f"{signal}: saved at step {progress.step}. Go on with --resume --output-dir {run.folder}"
                )


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
    report: Report | None = None

    @property
    def model(self) -> HFCLIPModel:
        return self.accelerator.unwrap_model(self.objective).model

    def update(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizer. Returns the global batch's loss and the norm of its gradient."""
        self.objective.train()
        rate = learning_rate(self.progress.step, self.config.steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # What dropout draws is a function of (seed, step, rank): no generator's state need be kept.
        place = [self.config.seed, self.progress.step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        loss = self.objective(**self.inputs(batch))
        self.accelerator.backward(loss)
        gradient_norm = self.accelerator.clip_grad_norm_(
            self.objective.parameters(), self.config.optimizer.max_gradient_norm
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        clamp_logit_scale(self.model.logit_scale, self.config.optimizer.max_logit_scale)
        return loss.detach(), gradient_norm

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the objective takes: augmented and normalised pictures, tokens, and the ids of their concepts."""
        device, config = self.accelerator.device, self.config
        draws = uniforms(config.seed, batch.epochs_B, batch.sample_ids_B, DRAWS_PER_PICTURE)
        pictures_BCHW = augment(
            batch.pictures_BHWC.to(device),
            torch.from_numpy(draws).to(device),
            batch.may_flip_B.to(device),
            config.augmentation,
        )
        mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (config.model.image_mean, config.model.image_std)
        )
        pixel_values = ((pictures_BCHW - mean) / std).contiguous(memory_format=torch.channels_last)
        inputs = {"pixel_values": pixel_values, "concept_ids": batch.concept_ids_B.to(device)}
        for name, texts in (("input_ids", batch.captions), ("keyword_ids", batch.keywords)):
            if texts is not None:
                inputs[name] = self.processor(text=texts, return_tensors="pt")["input_ids"].to(device)
        return inputs

    def require_finite(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Raises TrainingDiverged where either is not a number: the weights are none either, and must not be kept."""
        for name, value in (("loss", loss.item()), ("norm of the gradient", float(gradient_norm))):
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"The {name} is {value} near step {self.progress.step + 1}: lower optimizer.learning_rate "
                    f"(now {self.config.optimizer.learning_rate}) or raise optimizer.warmup_steps "
                    f"(now {self.config.optimizer.warmup_steps}), or set mixed_precision=no."
                )

    def read_numbers(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> dict[str, float]:
        """Loss, gradient norm, rate and scale. Raises TrainingDiverged where they are not finite."""
        self.require_finite(loss, gradient_norm)
        return {
            "loss": loss.item(),
            "gradient_norm": float(gradient_norm),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "logit_scale": self.model.logit_scale.exp().item(),
        }

    def agree_to_stop(self, signal: str | None) -> str | None:
        """The signal that any rank has had: all must stop at one step, or the others wait for ever."""
        if self.accelerator.num_processes == 1:
            return signal
        flag = torch.tensor(float(signal is not None), device=self.accelerator.device)
        return (signal or "a signal to another process") if self.accelerator.reduce(flag).item() else None

    def save(self) -> None:
        """A checkpoint of this step; older ones than the newest `keep_checkpoints` go."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write_checkpoint()
        # A launcher kills the others as soon as one rank has left: not before the checkpoint is whole.
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self) -> None:
        place, progress = self.folder / "checkpoints" / f"checkpoint-{self.progress.step}", self.progress

        def write(folder: Path) -> None:
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            position = progress.position
            save_state(
                folder,
                {
                    "optimizer": self.optimizer.state_dict(),
                    "step": progress.step,
                    "position": [position.epoch, position.block, position.offset],
                    "train_seconds": progress.train_seconds,
                },
            )

        write_folder(place, write)
        remove_old_checkpoints(self.folder / "checkpoints", self.config.keep_checkpoints)


def _restore(progress: Progress, state: dict, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    optimizer.load_state_dict(state["optimizer"])
    progress.step, progress.position = state["step"], Position(*state["position"])
    progress.train_seconds = state["train_seconds"]
    accelerator.print(f"Going on from step {progress.step}.")
