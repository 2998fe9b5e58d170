"""Zero-shot classification over a labelled data set, as the paper reports it (section 3.1 and appendix A)."""

# Shapes: N pictures, C classes, K candidates kept.

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hf_clip.evaluation.features import embed_images
from hf_clip.sources import Source, iterate_samples
from hf_clip.zero_shot_hf_clip import ZeroShotClassifier


@dataclass
class ZeroShotResult:
    """What a zero-shot evaluation found.

    Attributes:
        title: what was evaluated.
        top_1: share of pictures whose class came first.
        top_5: share of pictures whose class was among the first five; None with five classes or fewer, where
            it would always be 1.
        mean_per_class: `top_1` of each class that has pictures, averaged over classes.
        per_class: number of pictures and `top_1` of each class, in the order of the labels.
        chance: what guessing one of the classes evenly scores.
        templates: the texts that the labels were set in.
        skipped: how many pictures were left out, by reason.
        seconds: time that the evaluation took, decoding included.
    """

    title: str
    top_1: float
    top_5: float | None
    mean_per_class: float
    per_class: list[dict]
    chance: float
    templates: tuple[str, ...]
    skipped: Counter[str]
    seconds: float

    @property
    def pictures(self) -> int:
        return sum(row["pictures"] for row in self.per_class)

    @property
    def classes(self) -> int:
        return len(self.per_class)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "protocol": "zero-shot",
            "title": self.title,
            "top_1": self.top_1,
            "top_5": self.top_5,
            "mean_per_class": self.mean_per_class,
            "chance": self.chance,
            "pictures": self.pictures,
            "classes": self.classes,
            "templates": list(self.templates),
            "per_class": self.per_class,
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        top_5 = "-" if self.top_5 is None else f"{self.top_5:.3f}"
        lines = [
            self.title,
            f"{'top-1':>7}{'top-5':>7}{'mean per class':>16}{'chance':>8}{'pictures':>10}{'classes':>9}",
            f"{self.top_1:7.3f}{top_5:>7}{self.mean_per_class:16.3f}{self.chance:8.3f}"
            f"{self.pictures:10d}{self.classes:9d}",
        ]
        if self.skipped:
            lines.append(
                "left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            )
        return "\n".join(lines)


def evaluate_zero_shot(
    model,
    processor,
    source: Source,
    *,
    label_names: Sequence[str] | None = None,
    templates: Sequence[str] = ("{}",),
    title: str | None = None,
    batch_size: int = 64,
) -> ZeroShotResult:
    """Top-1, top-5 and mean per class of zero-shot classification over a source with labels.

    Classes of equal score are placed in the order of the labels, as argmax does. Pictures that cannot be
    read, and those without a label, are left out and counted.

    Args:
        label_names: the names of the classes in the order of their numbers. By default they are the source's
            own, or else the labels that occur, sorted, where labels are words.
        templates: texts in which `{}` stands for the class's name; see `ZeroShotClassifier`.
        title: what the result is called.
        batch_size: pictures encoded at once.

    Raises:
        SourceError: if the source has no label column.
        ValueError: if the classes have no names, a label is none of them, no picture with a label could be
            read, or a vector holds NaN or infinity.
    """
    started = time.perf_counter()
    classes = _Classes(label_names, source.require_label().label_names)
    labels, unlabelled = [], Counter()

    def pictures() -> Iterator:
        for sample in iterate_samples(source):
            if sample.label is None or sample.label == "-1":
                unlabelled["no_label"] += 1
            else:
                classes.check(sample.label, sample.key)
                labels.append(sample.label)
                yield sample.image

    features = embed_images(model, processor, pictures(), batch_size=batch_size, total=source.num_rows)
    names, numbers = classes.resolve([labels[position] for position in features.kept])
    classifier = ZeroShotClassifier(model, processor, names, templates)
    numbers_N = torch.tensor(numbers)
    is_hit_NK = _ranked_classes(classifier, features.vectors_ND) == numbers_N[:, None]
    per_class = _per_class(names, numbers_N, is_hit_NK[:, 0])
    seen = [row["top_1"] for row in per_class if row["pictures"]]
    return ZeroShotResult(
        title=title or f"zero-shot classification of {source.name}",
        top_1=is_hit_NK[:, 0].double().mean().item(),
        top_5=is_hit_NK.any(1).double().mean().item() if len(names) > 5 else None,
        mean_per_class=sum(seen) / len(seen),
        per_class=per_class,
        chance=1 / len(names),
        templates=classifier.templates,
        skipped=features.skipped + unlabelled,
        seconds=time.perf_counter() - started,
    )


class _Classes:
    """The classes, from what the caller says, what the source says, and which labels occur."""

    def __init__(self, given: Sequence[str] | None, of_source: Sequence[str] | None):
        self.names = list(given or of_source or ())
        if given and of_source and len(given) != len(of_source):
            raise ValueError(
                f"{len(given)} label_names for {len(of_source)} classes: give one for each, in their order."
            )
        # A source that knows its classes gives labels by its names, another one by their numbers as text.
        numbers = {} if of_source else {str(number): number for number in range(len(self.names))}
        self.number_of = numbers | {name: number for number, name in enumerate(of_source or self.names)}

    def check(self, label: str, place: str) -> None:
        """Raise ValueError unless `label` can be one of the classes; `place` says where it stands."""
        if self.names and label not in self.number_of:
            raise ValueError(f"{place}: {label!r} is none of the {len(self.names)} classes. Give label_names for all.")
        if not self.names and label.lstrip("-").isdigit():
            raise ValueError(f"{place}: label {label!r} has no name. Give label_names in the order of the numbers.")

    def resolve(self, labels: list[str]) -> tuple[list[str], list[int]]:
        """The names of the classes, and the number of each label."""
        names = self.names or sorted(set(labels))
        number_of = self.number_of or {name: number for number, name in enumerate(names)}
        return names, [number_of[label] for label in labels]


def _ranked_classes(classifier: ZeroShotClassifier, image_vectors_ND: torch.Tensor) -> torch.Tensor:
    """(N, K) numbers of the first K <= 5 classes of each picture."""
    if not (torch.isfinite(image_vectors_ND).all() and torch.isfinite(classifier.class_vectors_CD).all()):
        raise ValueError(
            "vectors hold NaN or infinity: the model has diverged or overflows in its dtype. "
            "Evaluate an earlier checkpoint, or in float32."
        )
    # topk does not say which of two equal scores comes first; a stable sort does.
    return torch.cat(
        [
            classifier.logits(vectors_BD).sort(dim=-1, descending=True, stable=True).indices[:, :5].cpu()
            for vectors_BD in image_vectors_ND.split(1024)
        ]
    )


def _per_class(names: list[str], labels_N: torch.Tensor, is_hit_N: torch.Tensor) -> list[dict]:
    counts_C = torch.bincount(labels_N, minlength=len(names)).tolist()
    hits_C = torch.bincount(labels_N[is_hit_N], minlength=len(names)).tolist()
    return [
        {"label": name, "pictures": count, "top_1": hits / count if count else None}
        for name, count, hits in zip(names, counts_C, hits_C, strict=True)
    ]
