"""Few-shot classification (section 3.1.5 of the paper): linear probes on 1, 2, 4, 8 and 16 images of each class.

Beside them stands zero-shot classification of the same images, as in the paper's figure 6.
"""

# Shapes: N images.

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hf_clip.evaluation import metrics
from hf_clip.evaluation.features import Encoding, progress
from hf_clip.evaluation.labeled_images import describe_skipped, embed_labeled, names_of_labels
from hf_clip.evaluation.linear_probe import PenaltySearch, TrainingSet, as_arrays
from hf_clip.evaluation.zero_shot import evaluate_zero_shot
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.prompts import describe_templates
from hf_clip.sources import Source

SHOTS = (1, 2, 4, 8, 16)


@dataclass
class FewShotResult:
    """What few-shot probes found.

    Attributes:
        title: what was evaluated.
        shots: for each number of images a class: `shots`, `mean` and `standard_deviation` (over the trials, with
            n - 1; None of one trial) of the top-1 accuracy, `scores` of each trial, and the `penalty` used.
        classes, images, train_images: counts; of the training images the shots are drawn.
        num_seeds: how many trials there were.
        skipped, train_skipped: test and training images skipped, by reason.
        seconds: time that the evaluation took.
        zero_shot_top_1: on the same test images by the classes' names alone; None where those are not known.
        templates: the texts that the names were set in; none where they are not known.
    """

    title: str
    shots: list[dict]
    classes: int
    images: int
    train_images: int
    num_seeds: int
    skipped: Counter[str]
    seconds: float
    zero_shot_top_1: float | None = None
    templates: tuple[str, ...] = ()
    train_skipped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "task": "few-shot",
            **vars(self),
            "chance": 1 / self.classes,
            "templates": list(self.templates),
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        lines = [f"{self.title}: {self.images} images, {self.classes} classes, {self.num_seeds} trials"]
        lines.append(f"{'shots':>7}{'top-1':>8}{'deviation':>11}{'penalty':>10}")
        if self.zero_shot_top_1 is None:
            lines.append("      0       -   zero-shot needs the classes' names")
        else:
            by_name = describe_templates(self.templates)
            lines.append(f"      0{self.zero_shot_top_1:8.3f}   zero-shot, by the classes' names; {by_name}")
        for row in self.shots:
            deviation = "-" if row["standard_deviation"] is None else f"{row['standard_deviation']:.3f}"
            lines.append(f"{row['shots']:7d}{row['mean']:8.3f}{deviation:>11}{row['penalty']:10.2e}")
        lines += describe_skipped(self.skipped)
        lines += describe_skipped(self.train_skipped, " of training")
        return "\n".join(lines)


def evaluate_few_shot(
    model: DualEncoder,
    processor: Processor,
    train: Source,
    test: Source,
    *,
    validation: Source | None = None,
    validation_fraction: float = 0.2,
    shots: Sequence[int] = SHOTS,
    num_seeds: int = 5,
    labels: Sequence[str | Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    title: str | None = None,
    batch_size: int = 64,
    encoding: Encoding | None = None,
) -> FewShotResult:
    """Accuracy on `test` of logistic regressions fitted on a few images of each class of `train`.

    For each number of shots the penalty is searched on the validation split with the first trial's images, and kept
    for the other trials. A trial's fewer shots are the first of its more.

    Args:
        validation: None sets aside `validation_fraction` of each class of `train`; no shot is drawn from those.
        shots: images of each class.
        num_seeds: how many trials; trial i draws its images by seed i.
        labels, templates: for zero-shot classification, as `evaluate_zero_shot` takes them. Where names are
            neither given nor in the data, that row is empty.
        title, batch_size, encoding: as in `evaluate_linear_probe`.

    Raises:
        ImportError, SourceError, ValueError: as `evaluate_linear_probe`; ValueError too if `shots` or `num_seeds` is
            below 1, or a class has fewer images than the most shots.
    """
    started = time.perf_counter()
    if not shots or min(shots) < 1 or num_seeds < 1:
        raise ValueError(
            f"`shots={list(shots)}` and `num_seeds={num_seeds}`: there must be one of each, and none below 1."
        )
    encoding = replace(encoding or Encoding(batch_size), before_projection=True)
    training = TrainingSet.embed(model, processor, train, validation, validation_fraction, 0, encoding)
    found = embed_labeled(model, processor, test, encoding)
    test_ND, truth_N = as_arrays(found)
    truth_N = training.in_own_labels(truth_N)
    names = _check_images(training.kept[1], max(shots))
    draws = [draw_shots(training.kept[1], max(shots), seed) for seed in range(num_seeds)]
    # First, as labels may be wrong: probes take long.
    by_name = _by_name(model, processor, test, names, labels, templates, encoding)
    return FewShotResult(
        title=title or f"few-shot classification of {test.name}",
        shots=[_probe(training, (test_ND, truth_N), count, draws) for count in progress(shots, "shots")],
        classes=len(names),
        images=len(truth_N),
        train_images=len(training.kept[1]),
        num_seeds=num_seeds,
        skipped=found.skipped,
        train_skipped=training.skipped,
        seconds=time.perf_counter() - started,
        **by_name,
    )


def _check_images(labels: np.ndarray, shots: int) -> np.ndarray:
    """The classes that labels name. Raises ValueError where one has fewer images than shots."""
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < shots:
        raise ValueError(
            f"class {str(names[counts.argmin()])!r} has {counts.min()} images to draw from, fewer than {shots} "
            "shots: ask for fewer, or add images."
        )
    return names


def _by_name(
    model: DualEncoder, processor: Processor, test: Source, names, labels, templates, encoding: Encoding
) -> dict:
    """What zero-shot classification makes of the test images; nothing where classes are numbers without names."""
    own = names_of_labels(test)
    if not labels and not own and any(name.lstrip("-").isdigit() for name in names):
        return {}
    found = evaluate_zero_shot(
        model,
        processor,
        test,
        labels=labels or (None if own else [str(name) for name in names]),
        templates=templates,
        encoding=replace(encoding, before_projection=False),
    )
    return {"zero_shot_top_1": found.top_1, "templates": found.templates}


def _probe(training: TrainingSet, test: tuple, shots: int, draws: list[np.ndarray]) -> dict:
    """Accuracy on `test` (features, labels) after the first `shots` images of each class in each trial."""
    search = PenaltySearch()
    features_ND, labels_N = training.kept
    chosen = [draw[:, :shots].ravel() for draw in draws]
    penalty, _ = search.run((features_ND[chosen[0]], labels_N[chosen[0]]), training.held_out)
    probes = [search.fit(features_ND[few], labels_N[few], penalty) for few in chosen]
    scores = [metrics.accuracy(probe.predict(test[0]) == test[1]) for probe in probes]
    return {
        "shots": shots,
        "mean": float(np.mean(scores)),
        "standard_deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "scores": scores,
        "penalty": penalty,
    }


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """(classes, shots) positions of images, a row for each class in sorted order, none twice."""
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(np.flatnonzero(labels == name))[:shots] for name in np.unique(labels)])
