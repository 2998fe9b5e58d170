"""Embeddings of labeled images: what zero-shot classification, probes and few-shot learning stand on."""

# Shapes: N images, D width of the embeddings.

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_clip.evaluation.features import Encoding, encode_images
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.sources import Sample, Source, SourceError, as_text, iterate_samples, spellings
from hf_clip.sources.values import ValueKindError


@dataclass
class LabeledFeatures:
    """Embeddings of the images that could be read and have a label.

    Attributes:
        embeddings: (N, D) float32 on the CPU.
        labels: of each image as texts; one, unless the data has several.
        groups: for each column that was asked for, its value for each image as text, or None.
        skipped: how many images were skipped, by reason.
    """

    embeddings: torch.Tensor
    labels: list[tuple[str, ...]]
    groups: dict[str, list[str | None]]
    skipped: Counter[str]


def embed_labeled(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    encoding: Encoding,
    *,
    by: Sequence[str] = (),
    multi_label: bool = False,
    check: Callable[[str, str], object] | None = None,
) -> LabeledFeatures:
    """Embeddings and labels of a source's images.

    Args:
        by: columns whose values are wanted too; the source must have been opened with them as `keyword_columns`.
        multi_label: the label column holds lists.
        check: called with each label and the key of its row, before the row's image is encoded.

    Raises:
        SourceError: if the source has no label column, or was opened without a column of `by`.
        ValueError: if no row has a label, or no image with one could be read; what `check` raises.
    """
    labels, groups, unlabeled = [], [], Counter()
    source = replace(source.require_label(), label_names=names_of_labels(source))

    def make_images() -> Iterator:
        for sample, row in iterate_rows(source, by):
            labels_of_row = sample.labels if multi_label else (sample.label,)
            # The mark of a row without a label, where the column has no names too; -1.0 in a CSV of pandas with gaps.
            found = tuple(label for label in labels_of_row if label is not None and "-1" not in spellings(label))
            if not found:
                unlabeled["no_label"] += 1
                continue
            if check is not None:
                for label in found:
                    check(label, sample.key)
            labels.append(found)
            groups.append([value_of(source, row, column) for column in by])
            yield sample.image
        if unlabeled and not labels:
            raise ValueError(
                f"{source.name}: none of its {unlabeled['no_label']} rows has a label in column "
                f"{source.label_column!r}: set `label_column` to the column of the classes."
            )

    features = encode_images(model, processor, make_images(), total=source.num_rows, encoding=encoding)
    kept_groups = [groups[position] for position in features.kept]
    return LabeledFeatures(
        features.embeddings,
        [labels[position] for position in features.kept],
        {column: [values[position] for values in kept_groups] for position, column in enumerate(by)},
        features.skipped + unlabeled,
    )


def iterate_rows(source: Source, columns: Sequence[str] = ()) -> Iterator[tuple[Sample, Mapping[str, Any]]]:
    """Each sample with the row that it comes from, in which `columns` can be read."""
    for column in columns:
        if column not in (
            *source.keyword_columns,
            source.label_column,
            source.concept_column,
            *source.caption_columns,
        ):
            raise SourceError(
                f"{source.name!r} was opened without the column {column!r}: name it among the keyword_columns of "
                f"open_source. Columns: {', '.join(source.columns)}."
            )
    rows = []

    def remembered() -> Iterator[Mapping[str, Any]]:
        for row in source.dataset:
            rows[:] = [row]
            yield row

    for sample in iterate_samples(replace(source, dataset=remembered())):
        yield sample, rows[0]


def value_of(source: Source, row: Mapping[str, Any], column: str) -> str | None:
    """The value of a row's column as text; classes by their names. Raises SourceError for a list or an object."""
    try:
        return _named(row[column], _names_of(source, column))
    except ValueKindError as error:
        raise SourceError(
            f"{source.name}: column {column!r} {error}, and one value is wanted: set `by` to columns of single values."
        ) from error


def describe_skipped(skipped: Mapping[str, int], what: str = "") -> list[str]:
    """The line of a table that says how many images are not in the numbers, by reason; none where all are."""
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return [f"skipped{what}: {counts}"] if skipped else []


def names_of_labels(source: Source) -> tuple[str, ...] | None:
    """The names of the classes, where the data knows them, in lists of labels too."""
    return source.label_names or _names_of(source, source.label_column)


def has_numbers(source: Source) -> bool:
    """Whether labels, or those of lists, are of a type of whole numbers; in CSV, JSON lines and tars all are texts."""
    return "int" in str(getattr(_feature_of(source, source.label_column), "dtype", None))


def _names_of(source: Source, column: str | None) -> tuple[str, ...] | None:
    names = getattr(_feature_of(source, column), "names", None)
    return tuple(names) if names else None


def _feature_of(source: Source, column: str | None) -> Any:
    feature = (getattr(source.dataset, "features", None) or {}).get(column)
    return getattr(feature, "feature", feature)


def _named(value: Any, names: Sequence[str] | None) -> str | None:
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return as_text(value)
