"""The paper's probe of bias (section 7.1): how often images of each group of people are given each label.

Radford et al. put harmful labels among harmless ones, and counted whose faces were given them: the numbers depend on
the labels as much as on the model, and on whose images they are.
"""

# Shapes: B images of a batch, N images.

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_clip.evaluation.features import Encoding, encode_images
from hf_clip.evaluation.labeled_images import describe_skipped, iterate_rows, value_of
from hf_clip.evaluation.operating_points import described, interval
from hf_clip.model.embedding_hf_clip import check_finite
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.prompts import describe_templates
from hf_clip.sources import Source

IMAGES_AT_ONCE = 1024


@dataclass
class GroupsResult:
    """What `evaluate_groups` found.

    Attributes:
        title: what was evaluated.
        labels: that images were classified among.
        overall: for each label how often it came first, of all images: `rate`, `low`, `high`, `hits`, `images`.
        groups: the same for each value of each column.
        templates: the texts that the labels were set in.
        confidence: of the intervals (Clopper and Pearson).
        images: how many were classified.
        skipped: how many were skipped, by reason.
        seconds: time that the evaluation took, decoding included.
    """

    title: str
    labels: list[str]
    overall: list[dict[str, Any]]
    groups: dict[str, dict[str, list[dict[str, Any]]]]
    templates: tuple[str, ...]
    confidence: float
    images: int
    skipped: Counter[str]
    seconds: float

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "task": "groups",
            "title": self.title,
            "labels": self.labels,
            "overall": self.overall,
            "by": self.groups,
            "confidence": self.confidence,
            "images": self.images,
            "templates": list(self.templates),
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        values = [value for rows in self.groups.values() for value in rows]
        width = max(len("all images"), *map(len, values), *map(len, self.groups)) + 2
        columns = [max(len(label), 22) for label in self.labels]
        header = "  ".join(f"{label:{length}}" for label, length in zip(self.labels, columns, strict=True))
        lines = [f"{self.title}: how often each label comes first", f"{'':{width}}{header}{'images':>9}"]
        for value, rows in {"all images": self.overall}.items():
            lines.append(_line(value, rows, width, columns))
        for column, values_of in self.groups.items():
            lines += ["", column, *(_line(value, rows, width, columns) for value, rows in values_of.items())]
        lines += ["", f"{100 * self.confidence:g}% intervals; {describe_templates(self.templates)}"]
        return "\n".join([*lines, *describe_skipped(self.skipped)])


def _line(value: str, rows: Sequence[dict[str, Any]], width: int, columns: Sequence[int]) -> str:
    cells = "  ".join(f"{described(row):{length}}" for row, length in zip(rows, columns, strict=True))
    return f"{value:{width}}{cells}{rows[0]['images']:9d}"


def evaluate_groups(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    labels: Sequence[str | Sequence[str]],
    by: Sequence[str],
    templates: Sequence[str] | None = None,
    title: str | None = None,
    confidence: float = 0.95,
    encoding: Encoding | None = None,
) -> GroupsResult:
    """How often each label comes first among the images of each group, with intervals (section 7.1 of the paper).

    No label is right or wrong here: rates that differ between groups are what is looked for.

    Args:
        labels: the classes, each by one name or several; at least two.
        by: columns whose values are groups; opened as the source's `keyword_columns`, or its label column.
        templates: texts in which `{}` stands for a label; None takes those that the model was saved with.
        title: what the result is called.
        confidence: of the intervals.
        encoding: how embeddings are made.

    Raises:
        ImportError: without scipy.
        SourceError: if the source was opened without a column of `by`.
        ValueError: for fewer than two labels, no column, or if no image could be read.
    """
    if len(labels) < 2:
        raise ValueError("`labels` holds fewer than two: among a single label every image is given that.")
    if not by:
        raise ValueError("`by` names no column: give those whose values are the groups.")
    started = time.perf_counter()
    classifier = ZeroShotClassifier(model, processor, labels, templates, dtype=None)
    first_N, kept, skipped = _first_labels(classifier, source, by, encoding)

    def rates(rows: Sequence[int]) -> list[dict[str, Any]]:
        counts = Counter(first_N[rows].tolist())
        return [
            {"label": label, **interval(counts[index], len(rows), confidence)}
            for index, label in enumerate(classifier.labels)
        ]

    groups = {
        column: {value: rates(rows) for value, rows in _rows_by_value([of_row[position] for of_row in kept]).items()}
        for position, column in enumerate(by)
    }
    return GroupsResult(
        title=title or f"labels of groups in {source.name}",
        labels=classifier.labels,
        overall=rates(range(len(first_N))),
        groups=groups,
        templates=classifier.templates,
        confidence=confidence,
        images=len(first_N),
        skipped=skipped,
        seconds=time.perf_counter() - started,
    )


def _rows_by_value(values: Sequence[str | None]) -> dict[str, list[int]]:
    """The positions of each value, the values sorted; positions without one are in none."""
    rows_of: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None:
            rows_of.setdefault(value, []).append(row)
    return {value: rows_of[value] for value in sorted(rows_of)}


def _first_labels(
    classifier: ZeroShotClassifier, source: Source, by: Sequence[str], encoding: Encoding | None
) -> tuple[np.ndarray, list[list[str | None]], Counter[str]]:
    """(N,) the index of each image's best label, its values of the columns, and what was skipped."""
    values = []

    def make_images() -> Iterator:
        for sample, row in iterate_rows(source, by):
            values.append([value_of(source, row, column) for column in by])
            yield sample.image

    features = encode_images(
        classifier.model, classifier.processor, make_images(), total=source.num_rows, encoding=encoding
    )
    embeddings_ND = check_finite(features.embeddings, "images")
    ranked = [
        classifier.rank(part.to(classifier.class_embeddings), 1)[1] for part in embeddings_ND.split(IMAGES_AT_ONCE)
    ]
    return torch.cat(ranked)[:, 0].cpu().numpy(), [values[position] for position in features.kept], features.skipped
