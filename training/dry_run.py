"""A run before it is started: its data read, a step made, nothing written but a sheet of what the model will see."""

import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .build import build_start
from .config import TrainConfig
from .decisions import decide
from .ema import WeightAverage
from .evaluate import open_evaluations
from .lengths import pairs_in_epoch, resolve_epochs
from .prepare import prepare
from .stages import stage_processor, stages_of
from .step import TrainStep
from .stream import Batch, DataError, PairStream
from .texts import tokens_of

logger = logging.getLogger(__name__)

# Enough to see what share of the data is bad.
PAIRS_TO_READ = 2000
IMAGES_IN_SHEET = 24


@dataclass
class DryRun:
    """What a dry run found.

    Attributes:
        pairs: rows of an epoch, where the data tells; `pairs_read` of them were read.
        skipped: how many of those by reason; `first_skipped` names one.
        token_lengths: of the texts that were read; `context` is the most that the model takes, at which texts are cut.
        steps, batch_size: of the run. loss, gradient_norm: of its first step.
        memory: the peak in bytes: of the process on a CPU, of the device's tensors on a GPU.
        step_seconds, data_seconds: a step's, and the time that its pairs took to be read.
        notes: further lines.
    """

    pairs: float | None
    pairs_read: int
    skipped: Counter[str]
    first_skipped: str | None
    token_lengths: np.ndarray
    context: int
    steps: int
    batch_size: int
    loss: float
    gradient_norm: float
    memory: int
    step_seconds: float
    data_seconds: float
    device: str
    max_bad_fraction: float
    notes: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Lines for a terminal."""
        known = "an unknown number" if self.pairs is None else f"{self.pairs:,.0f}"
        lines = [f"{'pairs':14}{known} an epoch, {self.pairs_read:,} read"]
        bad = self.skipped.total()
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common()) or "none"
        lines.append(f"{'skipped':14}{reasons}" + (f" (the first is {self.first_skipped})" if bad else ""))
        if bad > self.max_bad_fraction * max(self.pairs_read, 1):
            lines.append(f"{'':14}more than data.max_bad_fraction={self.max_bad_fraction}: the run would stop")
        middle, high, top = (int(np.quantile(self.token_lengths, q)) for q in (0.5, 0.95, 1.0))
        full = (self.token_lengths >= self.context).mean()
        lines.append(
            f"{'tokens':14}half of the texts up to {middle}, 95% up to {high}, the longest {top}; {full:.1%} fill all "
            f"{self.context}, where longer ones are cut"
        )
        lines.append(f"{'first step':14}loss {self.loss:.3f}, gradient's norm {self.gradient_norm:.3g}")
        where = "of this process" if self.device == "cpu" else "of tensors on the device"
        lines.append(f"{'memory':14}{self.memory / 1e9:.2f} GB at its peak, {where}")
        lines.append(
            f"{'time':14}{self.step_seconds:.2f} s a step and {self.data_seconds:.2f} s for its {self.batch_size:,} "
            f"pairs, on {self.device}"
        )
        total = self.seconds
        lines.append(f"{'':14}{self.steps:,} steps: about {_shown(total)}, without evaluations and checkpoints")
        return "\n".join([*lines, *self.notes])

    @property
    def seconds(self) -> float:
        """What all steps will take: a GPU reads the next pairs while it works."""
        each = self.step_seconds + self.data_seconds
        return self.steps * (each if self.device == "cpu" else max(self.step_seconds, self.data_seconds))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        facts = {
            name: value for name, value in vars(self).items() if name not in ("token_lengths", "skipped", "notes")
        }
        lengths = {f"{q:g}": float(np.quantile(self.token_lengths, q)) for q in (0.5, 0.95, 1.0)}
        return {**facts, "skipped": dict(self.skipped), "token_length_quantiles": lengths, "seconds": self.seconds}


def dry_run(config: TrainConfig, sheet: str | Path | None = None) -> DryRun:
    """Opens all data of a recipe, reads some of it, makes two steps, and forgets them.

    Args:
        config: from `load_recipe`.
        sheet: a PNG of augmented images with their captions, as the first batch has them.

    Raises:
        What `train` raises before its first step. ImportError: a sheet without matplotlib.
    """
    from .loop import build_teacher, open_training_data

    decisions = decide(config)
    data = open_training_data(config.data)
    config = resolve_epochs(config, data)
    open_evaluations(config)
    stage = stages_of(config)[0]
    logger.info(f"Opened {data.name}.")
    model, processor = build_start(config.model, data.captions(), config.seed)
    objective, optimizer = prepare(model, config, decisions)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    teacher = build_teacher(config, data, decisions)
    train_step = TrainStep(config, decisions, objective, optimizer, processor, average, teacher)
    train_step.begin(stage)
    processor = stage_processor(processor, train_step.model, stage)
    # What is bad is counted here, and ends nothing.
    reads_all = replace(config.data, max_bad_fraction=1.0)
    stream = PairStream(
        data, reads_all, processor.image_processor, stage.batch_size, config.seed, config.augmentation,
        decisions.accelerator.process_index, decisions.processes, lambda: False, partial(tokens_of, processor),
    )  # fmt: skip
    pairs = pairs_in_epoch(data, config.data.validation_fraction)
    batches = _read(stream, stage.batch_size, pairs)
    loss, norm, step_seconds, memory = _measure(train_step, batches.first)
    if sheet is not None:
        _draw(train_step, batches.first, sheet)
    position = stream.gather(batches.position)
    states = position["states"].values()
    return DryRun(
        pairs=pairs,
        pairs_read=sum(state["rows_read"] for state in states),
        skipped=stream.skipped(position),
        first_skipped=next(filter(None, (state.get("first_skipped") for state in states)), None),
        token_lengths=np.concatenate(batches.lengths),
        context=int(processor.tokenizer.model_max_length),
        steps=config.total_steps,
        batch_size=stage.batch_size,
        loss=loss,
        gradient_norm=norm,
        memory=memory,
        step_seconds=step_seconds,
        data_seconds=batches.seconds,
        device=decisions.device.type,
        max_bad_fraction=config.data.max_bad_fraction,
        notes=["", "Stages: the numbers are of the first one."] if config.stages else [],
    )


@dataclass
class _Read:
    first: Batch
    position: dict[str, Any]
    lengths: list[np.ndarray]
    seconds: float


def _read(stream: PairStream, batch_size: int, pairs: float | None) -> _Read:
    """About an epoch of batches, or `PAIRS_TO_READ` pairs of a longer one."""
    count = max(1, int(min(PAIRS_TO_READ, pairs or PAIRS_TO_READ) // batch_size))
    started, made = time.perf_counter(), []
    with closing(cast(Generator, stream.batches())) as batches:
        for batch in islice(batches, count):
            made.append((batch.position, batch.tokens.lengths))
            first = batch if len(made) == 1 else first  # noqa: F821
    if not made:
        raise DataError("no batch could be read.")
    seconds = (time.perf_counter() - started) / len(made)
    return _Read(first, made[-1][0], [lengths for _, lengths in made], seconds)


def _measure(train_step: TrainStep, batch: Batch) -> tuple[float, float, float, int]:
    """Loss and gradient's norm of the first step, seconds of the second, the peak of memory."""
    device = train_step.decisions.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = train_step.update(batch, 0)
    loss, norm = result.loss.item(), float(result.gradient_norm)
    started = time.perf_counter()
    train_step.update(batch, min(1, train_step.config.total_steps - 1)).loss.item()
    seconds = time.perf_counter() - started
    if device.type == "cuda":
        return loss, norm, seconds, torch.cuda.max_memory_allocated(device)
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return loss, norm, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _draw(train_step: TrainStep, batch: Batch, sheet: str | Path) -> None:
    from hf_clip.evaluation.plots.image_sheets import plot_captioned

    images = []
    groups = train_step.augmented_images(batch)
    for image_CHW in islice((image for group in groups for image in group), IMAGES_IN_SHEET):
        images.append((image_CHW.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
    plot_captioned(images, batch.captions[: len(images)], sheet)


def _shown(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} hours"
