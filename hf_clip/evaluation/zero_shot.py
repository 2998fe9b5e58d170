"""Zero-shot classification over a labeled data set, as the paper reports it (section 3.1 and appendix A)."""

# Shapes: B images of a batch, N images, C classes, K candidates kept.

import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import torch

from hf_clip.evaluation import metrics
from hf_clip.evaluation.calibration import Calibration, calibrate_embeddings
from hf_clip.evaluation.class_names import ClassNames
from hf_clip.evaluation.features import Encoding
from hf_clip.evaluation.labeled_images import (
    LabeledFeatures,
    describe_skipped,
    embed_labeled,
    has_numbers,
    names_of_labels,
)
from hf_clip.evaluation.operating_points import OperatingPoint, OperatingPoints, find_operating_points
from hf_clip.evaluation.template_study import PerTemplateAccuracy, TemplateStudy
from hf_clip.model.decisions_hf_clip import Decisions
from hf_clip.model.embedding_hf_clip import check_finite
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.prompts import describe_templates
from hf_clip.sources import Source

IMAGES_AT_ONCE = 1024


@dataclass
class ZeroShotResult:
    """What a zero-shot evaluation found.

    Attributes:
        title: what was evaluated.
        top_1: fraction of images whose class came first; where images have several, whose first was one of them.
        top_5: fraction of images whose class was among the first five; None with five classes or fewer, where
            it would always be 1.
        mean_per_class: `top_1` of each class that has images, averaged over classes; None with several labels.
        per_class: number of images and `top_1` (or `average_precision`) of each class, in the order of the labels.
        chance: what guessing one of the classes evenly scores; None with several labels.
        templates: the texts that the labels were set in.
        skipped: how many images were skipped, by reason.
        seconds: time that the evaluation took, decoding included.
        images: how many were classified.
        calibration_error: see `metrics.expected_calibration_error`; None with several labels.
        mean_average_precision, mean_average_precision_11: with several labels, by all points and by VOC 2007's eleven.
        groups: the same numbers for each value of each column that was asked for.
        confusion_matrix: images of each class (rows) by the class that came first; None with several labels.
        confidences, is_hit: (N,) the first class's score of each image, and whether it was right.
        temperature: that logits were divided by.
        per_template, selected_templates, calibration: where they were asked for; see `per_template_accuracy`,
            `select_templates` and `calibrate`.
        operating_points, decisions: where an `operating_point` was asked for: what was measured, and the classifier
            with its thresholds, which `decisions.save` writes to a file.
        class_names: all names of each class.
    """

    title: str
    top_1: float
    top_5: float | None
    mean_per_class: float | None
    per_class: list[dict]
    chance: float | None
    templates: tuple[str, ...]
    skipped: Counter[str]
    seconds: float
    images: int
    calibration_error: float | None = None
    mean_average_precision: float | None = None
    mean_average_precision_11: float | None = None
    groups: dict[str, dict[str, dict]] = field(default_factory=dict)
    confusion_matrix: np.ndarray | None = None
    confidences: np.ndarray | None = None
    is_hit: np.ndarray | None = None
    temperature: float = 1.0
    per_template: PerTemplateAccuracy | None = None
    selected_templates: list[tuple[str, float]] | None = None
    calibration: Calibration | None = None
    operating_points: OperatingPoints | None = None
    decisions: Decisions | None = None
    class_names: tuple[tuple[str, ...], ...] = ()

    @property
    def classes(self) -> int:
        return len(self.per_class)

    @property
    def labels(self) -> list[str]:
        return [row["label"] for row in self.per_class]

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        more = {}
        if self.confusion_matrix is not None:
            more["frequent_confusions"] = metrics.frequent_confusions(self.confusion_matrix, self.labels)
        for key in ("per_template", "calibration", "operating_points"):
            if getattr(self, key) is not None:
                more[key] = getattr(self, key).to_dict()
        if self.selected_templates is not None:
            more["selected_templates"] = [
                {"template": template, "top_1": top_1} for template, top_1 in self.selected_templates
            ]
        return {
            "task": "zero-shot",
            "title": self.title,
            **{key: getattr(self, key) for key in NUMBERS},
            "chance": self.chance,
            "images": self.images,
            "classes": self.classes,
            "templates": list(self.templates),
            "temperature": self.temperature,
            "per_class": self.per_class,
            **more,
            "by": self.groups,
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        chance = "-" if self.chance is None else f"{self.chance:.3f}"
        lines = [
            self.title,
            f"{HEADER}{'chance':>8}{'images':>10}{'classes':>9}",
            f"{_cells(vars(self))}{chance:>8}{self.images:10d}{self.classes:9d}",
        ]
        for column, rows in self.groups.items():
            width = max(len(column), *map(len, rows)) + 2
            lines += [
                "",
                f"{column:{width}}{'top-1':>7}{'top-5':>7}{'mean per class':>16}{'mAP':>7}{'calibration':>13}",
            ]
            lines[-1] += f"{'images':>10}"
            lines += [f"{value:{width}}{_cells(row)}{row['images']:10d}" for value, row in rows.items()]
        lines.append(describe_templates(self.templates))
        lines += describe_skipped(self.skipped)
        if self.per_template is not None:
            lines += ["", self.per_template.table()]
        if self.selected_templates is not None:
            lines += ["", "templates chosen on these images, and the top-1 of those so far"]
            lines += [f"{top_1:7.3f}  {template}" for template, top_1 in self.selected_templates]
        if self.calibration is not None:
            lines += ["", self.calibration.table()]
        if self.operating_points is not None:
            lines += ["", self.operating_points.table()]
        return "\n".join(lines)


NUMBERS = (
    "top_1",
    "top_5",
    "mean_per_class",
    "calibration_error",
    "mean_average_precision",
    "mean_average_precision_11",
)
COLUMNS = (
    ("top-1", "top_1"),
    ("top-5", "top_5"),
    ("mean per class", "mean_per_class"),
    ("mAP", "mean_average_precision"),
    ("calibration", "calibration_error"),
)
HEADER = "".join(f"{title:>{max(len(title) + 2, 7)}}" for title, _ in COLUMNS)


def _cells(numbers: dict) -> str:
    shown = ((title, "-" if numbers[key] is None else f"{numbers[key]:.3f}") for title, key in COLUMNS)
    return "".join(f"{value:>{max(len(title) + 2, 7)}}" for title, value in shown)


def evaluate_zero_shot(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    labels: Sequence[str | Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    title: str | None = None,
    batch_size: int = 64,
    by: Sequence[str] = (),
    multi_label: bool = False,
    temperature: float = 1.0,
    per_template: bool = False,
    select_templates: bool = False,
    fit_temperature: bool = False,
    operating_point: OperatingPoint | None = None,
    encoding: Encoding | None = None,
) -> ZeroShotResult:
    """Top-1, top-5, mean per class and calibration of zero-shot classification over a source with labels.

    Classes of equal score are placed in the order of the labels, as argmax does. Images that cannot be
    read, and those without a label, are skipped and counted.

    Args:
        labels: the classes in the order of their indices, each by one name or several. By default they are the
            source's own, or else the labels that occur, sorted, where labels are words. Labels that are whole numbers
            are indices; names that the data has of its own are matched with these by words. All are told apart, also
            where few of them occur.
        templates: texts in which `{}` stands for the class's name; None takes those that the model was saved with,
            else "a photo of a {}.".
        title: what the result is called.
        batch_size: images encoded at once.
        by: columns, for each of whose values the same is measured; opened as the source's `keyword_columns`.
        multi_label: an image's label is a list: mean average precision is measured. All N x C scores are held.
        temperature: divides logits, which moves the calibration error and nothing else.
        per_template: measure the accuracy of each template alone too.
        select_templates: find the few templates that do as well as all. What is chosen here is to be reported on
            other images.
        fit_temperature: find the temperature at which scores come nearest to probabilities.
        operating_point: find thresholds of each class's cosine that keep to these rates, and measure them on images
            that had no part in finding them.
        encoding: more of how embeddings are made, in place of `batch_size`.

    Raises:
        SourceError: if the source has no label column, or was opened without a column of `by`.
        ValueError: if several labels meet `per_template`, `select_templates` or `fit_temperature`, the classes have
            no names, a label is none of them or of two, there is one class alone (but for several labels), no image
            with a label could be read, or an embedding holds NaN or infinity.
    """
    wanted = Extras(per_template, select_templates, fit_temperature, operating_point)
    if multi_label and (per_template or select_templates or fit_temperature):
        raise ValueError(
            "`per_template`, `select_templates` and `fit_temperature` need one label an image, not `multi_label=True`."
        )
    task = ZeroShotTask(model, processor, source, labels, templates, by, multi_label, temperature)
    title = title or f"zero-shot classification of {source.name}"
    return task.run(encoding or Encoding(batch_size), title, wanted)


@dataclass(frozen=True)
class Extras:
    """What `evaluate_zero_shot` measures on the same images where it is asked for."""

    per_template: bool = False
    select_templates: bool = False
    fit_temperature: bool = False
    operating_point: OperatingPoint | None = None


class ZeroShotTask:
    """A zero-shot evaluation that can be run again under other conditions: texts are encoded once."""

    def __init__(
        self,
        model: DualEncoder,
        processor: Processor,
        source: Source,
        labels=None,
        templates=None,
        by=(),
        multi_label: bool = False,
        temperature: float = 1.0,
    ):
        self.model, self.processor, self.source = model, processor, source.require_label()
        self.templates, self.by, self.multi_label = templates, by, multi_label
        self.classes = ClassNames(labels, names_of_labels(source), source.name, has_numbers=has_numbers(source))
        self.temperature = temperature
        self.classifier: ZeroShotClassifier | None = None

    def on(self, source: Source) -> "ZeroShotTask":
        """The same over another source, whose labels are the names of classes of this one."""
        other = copy(self)
        other.source = source.require_label()
        other.classes = self.classes.of_other_data(names_of_labels(source), source.name)
        return other

    def run(self, encoding: Encoding, title: str, wanted: Extras = Extras()) -> ZeroShotResult:
        """Arguments and errors as `evaluate_zero_shot` has them."""
        started = time.perf_counter()
        self._check_several(title)
        found = embed_labeled(
            self.model,
            self.processor,
            self.source,
            encoding,
            by=self.by,
            multi_label=self.multi_label,
            check=self.classes.find,
        )
        if self.classifier is None:
            self.classes.settle(found.labels)
            self._check_several(title)
            self.classifier = ZeroShotClassifier(
                self.model,
                self.processor,
                self.classes.names,
                self.templates,
                temperature=self.temperature,
                batch_size=encoding.text_batch_size,
                dtype=None,
            )
        guesses = _Guesses(self.classifier, found, self.classes, self.multi_label)
        everything = np.arange(len(found.labels))
        more = self._measure_more(self.classifier, found, guesses, wanted)
        return ZeroShotResult(
            title=title,
            **guesses.numbers(everything),
            per_class=guesses.per_class(self.classifier.labels),
            chance=None if self.multi_label else 1 / len(self.classifier.labels),
            templates=self.classifier.templates,
            skipped=found.skipped,
            seconds=time.perf_counter() - started,
            groups={column: guesses.by_value(values) for column, values in found.groups.items()},
            confusion_matrix=guesses.confusion_matrix(len(self.classifier.labels)),
            confidences=guesses.confidences,
            is_hit=guesses.is_hit[:, 0],
            temperature=self.temperature,
            class_names=self.classifier.classes,
            **more,
        )

    def _check_several(self, title: str) -> None:
        """Raises ValueError as soon as there is known to be one class."""
        if len(self.classes) == 1 and not self.multi_label:
            raise ValueError(
                f"{title}: {self.classes.names[0][0]!r} is the only class, and with one class any model scores 1.000: "
                "give data of several, or all classes as `labels`."
            )

    def _measure_more(
        self, classifier: ZeroShotClassifier, found: LabeledFeatures, guesses: "_Guesses", wanted: Extras
    ) -> dict:
        """What was asked for beside accuracy, by the fields of the result."""
        more = {}
        if wanted.per_template or wanted.select_templates:
            words = classifier.classes, classifier.templates
            truth_N = torch.from_numpy(guesses.truth)
            study = TemplateStudy(self.model, self.processor, found.embeddings, truth_N, *words)
            more["per_template"] = study.measure() if wanted.per_template else None
            more["selected_templates"] = study.select() if wanted.select_templates else None
        if wanted.fit_temperature:
            truth_N = torch.from_numpy(guesses.truth)
            more["calibration"] = calibrate_embeddings(classifier, found.embeddings, truth_N)
        if wanted.operating_point is not None:
            points = find_operating_points(
                cosines(classifier, found.embeddings),
                guesses.is_true if self.multi_label else guesses.truth[:, None] == np.arange(guesses.class_count),
                classifier.labels,
                wanted.operating_point,
                found.groups,
            )
            more["operating_points"] = points
            more["decisions"] = Decisions(classifier, points.yes_from, points.no_below, points.to_dict())
        return more


def cosines(classifier: ZeroShotClassifier, image_embeds: torch.Tensor) -> np.ndarray:
    """(N, C) float32 cosines of (N, D) unit embeddings with each class."""
    classes_CD = classifier.class_embeddings
    batches = image_embeds.split(IMAGES_AT_ONCE)
    return torch.cat([(embeddings_BD.to(classes_CD) @ classes_CD.T).cpu() for embeddings_BD in batches]).numpy()


class _Guesses:
    """What the classifier says of each image, and what is true."""

    def __init__(self, classifier: ZeroShotClassifier, found: LabeledFeatures, classes: ClassNames, multi_label: bool):
        index_of = classes.indices(label for labels in found.labels for label in labels)
        embeddings_ND = check_finite(found.embeddings, "images")
        batches = embeddings_ND.split(IMAGES_AT_ONCE)
        ranked = [classifier.rank(embeddings_BD.to(classifier.class_embeddings), 5) for embeddings_BD in batches]
        self.confidences = torch.cat([scores_BK[:, 0].cpu() for scores_BK, _ in ranked]).numpy()
        self.indices = torch.cat([indices_BK.cpu() for _, indices_BK in ranked]).numpy()
        self.class_count = len(classifier.labels)
        self.multi_label = multi_label
        if multi_label:
            self.logits = torch.cat([classifier.logits(embeddings_BD).cpu() for embeddings_BD in batches]).numpy()
            self.is_true = np.zeros(self.logits.shape, dtype=bool)
            for row, labels in enumerate(found.labels):
                self.is_true[row, [index_of[label] for label in labels]] = True
            self.is_hit = np.take_along_axis(self.is_true, self.indices, axis=1)
        else:
            self.truth = np.array([index_of[labels[0]] for labels in found.labels])
            self.is_hit = self.indices == self.truth[:, None]

    def numbers(self, rows: np.ndarray) -> dict:
        """The metrics over some of the images, by their positions."""
        hits_NK = self.is_hit[rows]
        found = {"images": len(rows), **dict.fromkeys(NUMBERS)}
        found["top_1"] = metrics.accuracy(hits_NK[:, 0])
        found["top_5"] = metrics.accuracy(hits_NK.any(1)) if self.class_count > 5 else None
        if self.multi_label:
            scores_NC, is_true_NC = self.logits[rows], self.is_true[rows]
            found["mean_average_precision"] = metrics.mean_average_precision(scores_NC, is_true_NC)
            found["mean_average_precision_11"] = metrics.mean_average_precision(scores_NC, is_true_NC, points=11)
        else:
            found["mean_per_class"] = metrics.mean_per_class(self.truth[rows], hits_NK[:, 0])
            found["calibration_error"] = metrics.expected_calibration_error(self.confidences[rows], hits_NK[:, 0])
        return found

    def by_value(self, values: list[str | None]) -> dict[str, dict]:
        """`numbers` of the images of each value, the values sorted; images without one are in none."""
        rows_of: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            if value is not None:
                rows_of.setdefault(value, []).append(row)
        return {value: self.numbers(np.array(rows_of[value])) for value in sorted(rows_of)}

    def per_class(self, names: list[str]) -> list[dict]:
        if self.multi_label:
            columns = zip(names, self.logits.T, self.is_true.T, strict=True)
            return [
                {
                    "label": name,
                    "images": int(true_N.sum()),
                    "average_precision": metrics.average_precision(scores_N, true_N) if true_N.any() else None,
                }
                for name, scores_N, true_N in columns
            ]
        counts_C = np.bincount(self.truth, minlength=len(names)).tolist()
        hits_C = np.bincount(self.truth[self.is_hit[:, 0]], minlength=len(names)).tolist()
        return [
            {"label": name, "images": count, "top_1": hits / count if count else None}
            for name, count, hits in zip(names, counts_C, hits_C, strict=True)
        ]

    def confusion_matrix(self, class_count: int) -> np.ndarray | None:
        if self.multi_label:
            return None
        return metrics.confusion_matrix(self.truth, self.indices[:, 0], class_count)
