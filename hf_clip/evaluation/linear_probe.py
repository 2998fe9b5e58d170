"""Linear probes as the paper has them (section 3.2 and appendix A.3): how much a linear map finds in the features.

Features are the image tower's before the projection. The classifier is a logistic regression fitted by L-BFGS, its
L2 penalty found by a search on a validation split, and fitted again on all training images.
"""

# Shapes: N images, D width of the features.

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hf_clip.evaluation import metrics
from hf_clip.evaluation.features import Encoding, progress
from hf_clip.evaluation.labeled_images import LabeledFeatures, describe_skipped, embed_labeled
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.sources import Source, class_index

MAX_ITERATIONS = 1000
# The paper's 96 steps from 1e-6 to 1e6, eight to a factor of ten.
STEPS_PER_DECADE = 8
PENALTIES = tuple(10.0 ** (-6 + step / STEPS_PER_DECADE) for step in range(12 * STEPS_PER_DECADE + 1))
COARSE_STEP = 2 * STEPS_PER_DECADE


@dataclass
class LinearProbeResult:
    """What a linear probe found.

    Attributes:
        title: what was evaluated.
        top_1, top_5, mean_per_class: of the test images; `top_5` is None with five classes or fewer.
        penalty: the L2 penalty (scikit-learn's 1 / C) that did best on the validation split.
        validation_top_1: what it scored there.
        sweep: accuracy on the validation split by each penalty that was tried.
        unconverged: fits that stopped at the limit of iterations.
        classes, train_images, validation_images, images: counts; the training images include the validation's.
        per_class: number of test images and `top_1` of each class.
        groups: top-1 and counts for each value of each column that was asked for.
        skipped, train_skipped: test and training images skipped, by reason.
        seconds: time that the evaluation took.
    """

    title: str
    top_1: float
    top_5: float | None
    mean_per_class: float
    penalty: float
    validation_top_1: float
    sweep: Mapping[float, float]
    unconverged: int
    classes: int
    train_images: int
    validation_images: int
    images: int
    per_class: list[dict]
    groups: dict[str, dict[str, dict]]
    skipped: Counter[str]
    seconds: float
    train_skipped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        numbers = {**vars(self), "sweep": [[penalty, score] for penalty, score in sorted(self.sweep.items())]}
        numbers["by"], numbers["skipped"] = numbers.pop("groups"), dict(self.skipped)
        return {"task": "linear-probe", **numbers, "seconds": round(self.seconds, 3)}

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        top_5 = "-" if self.top_5 is None else f"{self.top_5:.3f}"
        lines = [
            self.title,
            f"{'top-1':>7}{'top-5':>7}{'mean per class':>16}{'penalty':>10}{'validation':>12}{'images':>10}"
            f"{'trained on':>12}{'classes':>9}",
            f"{self.top_1:7.3f}{top_5:>7}{self.mean_per_class:16.3f}{self.penalty:10.2e}{self.validation_top_1:12.3f}"
            f"{self.images:10d}{self.train_images:12d}{self.classes:9d}",
        ]
        for column, rows in self.groups.items():
            width = max(len(column), *map(len, rows)) + 2
            lines += ["", f"{column:{width}}{'top-1':>7}{'mean per class':>16}{'images':>10}"]
            lines += [
                f"{value:{width}}{row['top_1']:7.3f}{row['mean_per_class']:16.3f}{row['images']:10d}"
                for value, row in rows.items()
            ]
        if self.unconverged:
            lines.append(f"{self.unconverged} fits stopped after {MAX_ITERATIONS} iterations, as in the paper.")
        lines += describe_skipped(self.skipped)
        lines += describe_skipped(self.train_skipped, " of training")
        return "\n".join(lines)


def evaluate_linear_probe(
    model: DualEncoder,
    processor: Processor,
    train: Source,
    test: Source,
    *,
    validation: Source | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    title: str | None = None,
    batch_size: int = 64,
    by: Sequence[str] = (),
    encoding: Encoding | None = None,
) -> LinearProbeResult:
    """Accuracy on `test` of a logistic regression on the features of `train`.

    Args:
        validation: where the penalty is chosen; None sets aside `validation_fraction` of each class of `train`,
            drawn by `seed`. What is reported was fitted on both together.
        title: what the result is called.
        batch_size: images encoded at once.
        by: columns of `test`, for each of whose values accuracy is measured too.
        encoding: more of how features are made, in place of `batch_size`.

    Raises:
        ImportError: without scikit-learn.
        SourceError: if a source has no label column.
        ValueError: if a source has no readable image with a label, a class of `test` is missing in `train`, or
            `train` has one class, or too few images to set some aside.
    """
    started = time.perf_counter()
    encoding = replace(encoding or Encoding(batch_size), before_projection=True)
    training = TrainingSet.embed(model, processor, train, validation, validation_fraction, seed, encoding)
    found = embed_labeled(model, processor, test, encoding, by=by)
    test_ND, truth_N = as_arrays(found)
    truth_N = training.in_own_labels(truth_N)
    search = PenaltySearch()
    penalty, sweep = search.run(training.kept, training.held_out)
    probe = search.fit(training.features, training.labels, penalty)
    ranked_NK = np.argsort(-probe.predict_proba(test_ND), axis=1, kind="stable")[:, :5]
    is_hit_NK = probe.classes_[ranked_NK] == truth_N[:, None]
    return LinearProbeResult(
        title=title or f"linear probe on {test.name}",
        **_numbers(truth_N, is_hit_NK[:, 0]),
        top_5=metrics.accuracy(is_hit_NK.any(1)) if len(probe.classes_) > 5 else None,
        penalty=penalty,
        validation_top_1=sweep[penalty],
        sweep=sweep,
        unconverged=search.unconverged,
        classes=len(probe.classes_),
        train_images=len(training.labels),
        validation_images=int(training.is_held_out.sum()),
        per_class=_per_class(truth_N, is_hit_NK[:, 0]),
        groups={column: _by_value(values, truth_N, is_hit_NK[:, 0]) for column, values in found.groups.items()},
        skipped=found.skipped,
        train_skipped=training.skipped,
        seconds=time.perf_counter() - started,
    )


@dataclass
class TrainingSet:
    """Features and labels to train on, and which of them are set aside to choose the penalty by.

    Attributes:
        name: of the data, for messages.
        features, labels, is_held_out: (N, D), (N,) and (N,), of each image.
        skipped: how many were skipped, by reason.
    """

    name: str
    features: np.ndarray
    labels: np.ndarray
    is_held_out: np.ndarray
    skipped: Counter[str]

    @classmethod
    def embed(
        cls,
        model: DualEncoder,
        processor: Processor,
        train: Source,
        validation: Source | None,
        fraction: float,
        seed: int,
        encoding: Encoding,
    ) -> "TrainingSet":
        """Of `train`, with `validation` set aside; where that is None, `fraction` of each class of `train`."""
        check_scikit_learn()
        found = embed_labeled(model, processor, train, encoding)
        features_ND, labels_N = as_arrays(found)
        if validation is None:
            return cls(train.name, features_ND, labels_N, hold_out(labels_N, fraction, seed), found.skipped)
        held_out = embed_labeled(model, processor, validation, encoding)
        held_ND, held_labels_N = as_arrays(held_out)
        is_held_out_N = np.repeat([False, True], [len(labels_N), len(held_labels_N)])
        return cls(
            train.name,
            np.concatenate([features_ND, held_ND]),
            np.concatenate([labels_N, held_labels_N]),
            is_held_out_N,
            found.skipped + held_out.skipped,
        )

    @property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of the images that are not set aside."""
        return self.features[~self.is_held_out], self.labels[~self.is_held_out]

    @property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of those that are."""
        return self.features[self.is_held_out], self.labels[self.is_held_out]

    def in_own_labels(self, truth: np.ndarray) -> np.ndarray:
        """(N,) labels of the test data as the training data writes them: its folder "001" is a column's 1.

        Raises:
            ValueError: unless there is something to tell apart, and nothing that was never seen.
        """
        known = set(self.kept[1])
        if len(known) < 2:
            one = str(self.labels[0])
            raise ValueError(f"{self.name} has one class to train on, {one!r}: give two or more.")
        written = {index: label for label in known if (index := class_index(label)) is not None}
        if len(written) == len(known):
            indices = {label: class_index(label) for label in set(truth) - known}
            found = {label: written[index] for label, index in indices.items() if index in written}
            truth = np.array([found.get(label, label) for label in truth])
        if unseen := sorted(set(truth) - known):
            shown = ", ".join(map(repr, map(str, unseen[:3])))
            raise ValueError(
                f"{len(unseen)} classes of the test data are not in {self.name}: {shown}. Train on all of them."
            )
        return truth


class PenaltySearch:
    """Fits logistic regressions, and finds the penalty of the best.

    Attributes:
        unconverged: how many fits stopped at the limit of iterations.
    """

    def __init__(self):
        self.unconverged = 0

    def fit(self, features: np.ndarray, labels: np.ndarray, penalty: float):
        """scikit-learn's LogisticRegression by L-BFGS, at most 1,000 iterations, C = 1 / penalty."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        probe = LogisticRegression(C=1 / penalty, solver="lbfgs", max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(features, labels)
        self.unconverged += bool(probe.n_iter_.max() >= MAX_ITERATIONS)
        return probe

    def run(
        self, train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]
    ) -> tuple[float, dict[float, float]]:
        """The best penalty on `validation`, and the accuracy there of each that was tried; both (features, labels)."""

        def score(penalty: float) -> float:
            features_ND, labels_N = validation
            probe = self.fit(train[0], train[1], penalty)
            return metrics.accuracy(probe.predict(features_ND) == labels_N)

        return search_penalty(score)


def search_penalty(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The penalty of `PENALTIES` with the best score, by the paper's binary search: at most 15 of the 97 are tried.

    It starts with 1e-6, 1e-4, ..., 1e6, and tries both sides of the best so far at half the distance, down to eight
    steps a factor of ten. Of equal scores the greatest penalty wins: the simplest model.
    """
    scores: dict[int, float] = {}

    def best() -> int:
        return max(scores, key=lambda step: (scores[step], step))

    steps, distance = list(range(0, len(PENALTIES), COARSE_STEP)), COARSE_STEP
    while distance:
        for step in progress(steps, "penalties of the probe", total=len(steps)):
            if 0 <= step < len(PENALTIES) and step not in scores:
                scores[step] = score(PENALTIES[step])
        distance //= 2
        steps = [best() - distance, best() + distance]
    return PENALTIES[best()], {PENALTIES[step]: found for step, found in scores.items()}


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) whether each image is set aside: `fraction` of each class, rounded, and never all of one.

    Raises:
        ValueError: if `fraction` is not between 0 and 1, or no class has images enough.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction={fraction}` is not between 0 and 1.")
    random = np.random.default_rng(seed)
    is_held_N = np.zeros(len(labels), dtype=bool)
    for name in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == name))
        is_held_N[rows[: min(round(fraction * len(rows)), len(rows) - 1)]] = True
    if not is_held_N.any():
        raise ValueError(f"{len(labels)} images are too few to set {fraction:.0%} of each class aside: add some.")
    return is_held_N


def as_arrays(found: LabeledFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels (N,). Raises ValueError where a feature is NaN or infinite."""
    features_ND = found.embeddings.numpy()
    if not np.isfinite(features_ND).all():
        raise ValueError(
            "features hold NaN or infinity: the model has diverged or overflows in its dtype. Evaluate an earlier "
            "checkpoint, or in float32."
        )
    return features_ND, np.array([labels[0] for labels in found.labels])


def _numbers(truth_N: np.ndarray, is_hit_N: np.ndarray) -> dict:
    mean = metrics.mean_per_class(truth_N, is_hit_N)
    return {"images": len(truth_N), "top_1": metrics.accuracy(is_hit_N), "mean_per_class": mean}


def _per_class(truth_N: np.ndarray, is_hit_N: np.ndarray) -> list[dict]:
    rows_of_class = {str(name): np.flatnonzero(truth_N == name) for name in np.unique(truth_N)}
    return [
        {"label": name, "images": len(rows), "top_1": metrics.accuracy(is_hit_N[rows])}
        for name, rows in rows_of_class.items()
    ]


def _by_value(values: list[str | None], truth_N: np.ndarray, is_hit_N: np.ndarray) -> dict[str, dict]:
    known = {value for value in values if value is not None}
    rows_of = {value: [row for row, own in enumerate(values) if own == value] for value in known}
    return {value: _numbers(truth_N[rows_of[value]], is_hit_N[rows_of[value]]) for value in sorted(rows_of)}


def check_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("Linear probes need scikit-learn: pip install 'hf_clip[eval]'.") from error
