"""How well zero-shot accuracy holds: under damaged images, and on another data set of the same classes.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019; Taori
et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_clip.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from hf_clip.evaluation.features import Encoding, progress
from hf_clip.evaluation.labeled_images import describe_skipped
from hf_clip.evaluation.zero_shot import ZeroShotTask
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.prompts import describe_templates
from hf_clip.sources import Source


@dataclass
class RobustnessResult:
    """What damage, or another data set, did to the accuracy.

    Attributes:
        title: what was evaluated.
        top_1: on the data as it is.
        corruptions: top-1 by corruption and severity; empty where another data set was asked for.
        corrupted_top_1: the mean over corruptions of the mean over severities.
        shifted_title, shifted_top_1: of the other data set.
        expected_top_1: what models on the line of the baselines score there, given `top_1`.
        effective_robustness: `shifted_top_1` above `expected_top_1` (Taori et al., section 2).
        images, shifted_images, classes: counts.
        templates: the texts that the labels were set in.
        skipped, shifted_skipped: how many images were skipped, by reason.
        seconds: time that the evaluation took.
    """

    title: str
    top_1: float
    images: int
    classes: int
    seconds: float
    corruptions: dict[str, dict[int, float]]
    corrupted_top_1: float | None = None
    shifted_title: str | None = None
    shifted_top_1: float | None = None
    shifted_images: int | None = None
    expected_top_1: float | None = None
    effective_robustness: float | None = None
    templates: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    shifted_skipped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {"task": "robustness", **vars(self), "seconds": round(self.seconds, 3)}

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        lines = [self.title, f"top-1 {self.top_1:.3f} ({self.images} images, {self.classes} classes)"]
        if self.corruptions:
            severities = list(next(iter(self.corruptions.values())))
            lines.append(f"{'severity':18}" + "".join(f"{severity:>7}" for severity in severities) + f"{'mean':>8}")
            for name, scores in self.corruptions.items():
                cells = "".join(f"{scores[severity]:7.3f}" for severity in severities)
                lines.append(f"{name:18}{cells}{np.mean(list(scores.values())):8.3f}")
            lines.append(f"mean of all {self.corrupted_top_1:.3f}")
        if self.shifted_top_1 is not None:
            lines.append(f"{self.shifted_title}: top-1 {self.shifted_top_1:.3f} ({self.shifted_images} images)")
        if self.effective_robustness is not None:
            lines.append(
                f"expected there {self.expected_top_1:.3f}, effective robustness {self.effective_robustness:+.3f}"
            )
        lines.append(describe_templates(self.templates))
        lines += describe_skipped(self.skipped)
        lines += describe_skipped(self.shifted_skipped, f" of {self.shifted_title}")
        return "\n".join(lines)


def evaluate_corruptions(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    labels: Sequence[str | Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    title: str | None = None,
    batch_size: int = 64,
    encoding: Encoding | None = None,
) -> RobustnessResult:
    """Zero-shot top-1 of a source as it is, and with its images damaged in each way and degree.

    Args:
        corruptions, severities: see `corruptions.CORRUPTIONS`; the images are encoded once for each pair.
        labels, templates, title, batch_size, encoding: as in `evaluate_zero_shot`.

    Raises:
        SourceError, ValueError: as `evaluate_zero_shot`; ValueError too for an unknown corruption or severity.
    """
    started = time.perf_counter()
    wanted = [Corruption(name, severity) for name in corruptions for severity in severities]
    encoding = encoding or Encoding(batch_size)
    task = ZeroShotTask(model, processor, source, labels, templates)
    clean = task.run(encoding, source.name)
    scores: dict[str, dict[int, float]] = {name: {} for name in corruptions}
    for corruption in progress(wanted, "corruptions", total=len(wanted)):
        found = task.run(replace(encoding, corruption=corruption), source.name)
        scores[corruption.name][corruption.severity] = found.top_1
    return RobustnessResult(
        title=title or f"robustness on {source.name}",
        top_1=clean.top_1,
        images=clean.images,
        classes=clean.classes,
        seconds=time.perf_counter() - started,
        corruptions=scores,
        corrupted_top_1=float(np.mean([np.mean(list(by_severity.values())) for by_severity in scores.values()])),
        templates=clean.templates,
        skipped=clean.skipped,
    )


def evaluate_shift(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    shifted: Source,
    *,
    baselines: Sequence[tuple[float, float]] = (),
    title: str | None = None,
    batch_size: int = 64,
    encoding: Encoding | None = None,
    **zero_shot: Any,
) -> RobustnessResult:
    """Zero-shot top-1 of two sources of the same classes, and the effective robustness from one to the other.

    Without `labels` the classes are those of `source`, and `shifted` may have a few of them: its images are
    told apart among all.

    Args:
        baselines: (top-1 on `source`, top-1 on `shifted`) of other models, two or more; without any, effective
            robustness is not measured.
        title: what the result is called.
        batch_size, encoding: as in `evaluate_zero_shot`.
        zero_shot: more arguments of `evaluate_zero_shot`, for both: `labels`, `templates`, `by`,
            `multi_label`, `temperature`.

    Raises:
        SourceError, ValueError: as `evaluate_zero_shot` and `effective_robustness`.
    """
    started = time.perf_counter()
    if baselines:
        fit_baselines(baselines)
    encoding = encoding or Encoding(batch_size)
    task = ZeroShotTask(model, processor, source, **zero_shot)
    clean = task.run(encoding, source.name)
    # Names in the order of numbers are for each source to put in its own.
    is_named = zero_shot.get("labels") is not None
    task = ZeroShotTask(model, processor, shifted, **zero_shot) if is_named else task.on(shifted)
    there = task.run(encoding, shifted.name)
    expected = effective = None
    if baselines:
        expected, effective = effective_robustness(clean.top_1, there.top_1, baselines)
    return RobustnessResult(
        title=title or f"robustness from {source.name} to {shifted.name}",
        top_1=clean.top_1,
        images=clean.images,
        classes=clean.classes,
        seconds=time.perf_counter() - started,
        corruptions={},
        shifted_title=shifted.name,
        shifted_top_1=there.top_1,
        shifted_images=there.images,
        expected_top_1=expected,
        effective_robustness=effective,
        templates=clean.templates,
        skipped=clean.skipped,
        shifted_skipped=there.skipped,
    )


def effective_robustness(
    top_1: float, shifted_top_1: float, baselines: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """(accuracy expected under the shift, how far the model's is above it), after Taori et al. 2020.

    What is expected is a line through the baselines on logit axes. An accuracy of 0 or 1 has no logit: it is taken for
    1e-4 from there.

    Raises:
        ValueError: as `fit_baselines`.
    """
    slope, offset = fit_baselines(baselines)
    expected = 1 / (1 + math.exp(-(slope * _logit(top_1) + offset)))
    return expected, shifted_top_1 - expected


def fit_baselines(baselines: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and offset, by least squares, of the logit of the second accuracy over that of the first.

    Raises:
        ValueError: if there are fewer than two different baselines, or one is not from 0 to 1.
    """
    for pair in baselines:
        if len(pair) != 2 or not all(0 <= accuracy <= 1 for accuracy in pair):
            raise ValueError(f"baseline {pair} is no pair of accuracies from 0 to 1.")
    if len({first for first, _ in baselines}) < 2:
        raise ValueError(f"{len(baselines)} baselines make no line: give two or more of different accuracy.")
    slope, offset = np.polyfit(*np.array([[_logit(one) for one in pair] for pair in baselines]).T, deg=1)
    return float(slope), float(offset)


def _logit(accuracy: float) -> float:
    accuracy = min(max(accuracy, 1e-4), 1 - 1e-4)
    return math.log(accuracy / (1 - accuracy))
