"""How well segments by words agree with masks: mean intersection over union, by scikit-learn's `jaccard_score`."""

# Shapes: H and V rows and columns of pixels, C classes.

import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_clip.evaluation.features import progress
from hf_clip.evaluation.labeled_images import describe_skipped
from hf_clip.evaluation.metrics import confusion_matrix
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image
from hf_clip.model.localization_hf_clip import Looks
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.prompts import describe_templates
from hf_clip.sources import Source, SourceError, iterate_samples

BACKGROUND = "background"
# Pixels of this value belong to no class (VOC, ADE20K and others use it so).
IGNORED = 255
# Of masks of more than 255 classes, which take 16 bits.
IGNORED_OF_MANY = 65535


@dataclass
class SegmentationResult:
    """What `evaluate_segmentation` found.

    Attributes:
        title: what was evaluated.
        mean_iou: intersection over union, averaged over the classes that occur in masks or segments.
        pixel_accuracy: fraction of pixels whose class is right.
        per_class: `label`, `iou` (None where it occurs in neither) and `pixels` of each class, in the masks' order.
        background: least score of a pixel that is no background; None where masks have no background.
        attention: of a vision transformer's last layer; see `HFCLIPModel.dense_image_features`.
        templates: the texts that the labels were set in.
        images: how many were segmented.
        skipped: how many were skipped, by reason.
        seconds: time that the evaluation took, decoding included.
    """

    title: str
    mean_iou: float
    pixel_accuracy: float
    per_class: list[dict[str, Any]]
    background: float | None
    attention: str
    templates: tuple[str, ...]
    images: int
    skipped: Counter[str]
    seconds: float

    @property
    def classes(self) -> int:
        return len(self.per_class)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        names = ("title", "mean_iou", "pixel_accuracy", "background", "attention", "images", "classes", "per_class")
        return {
            "task": "segmentation",
            **{name: getattr(self, name) for name in names},
            "templates": list(self.templates),
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        width = max(5, *(len(row["label"]) for row in self.per_class)) + 2
        lines = [
            self.title,
            f"mean IoU {self.mean_iou:.3f}, pixel accuracy {self.pixel_accuracy:.3f} ({self.images} images, "
            f"{self.classes} classes, attention {self.attention!r})",
            f"{'label':{width}}{'IoU':>7}{'pixels':>12}",
        ]
        for row in self.per_class:
            shown = "-" if row["iou"] is None else f"{row['iou']:.3f}"
            lines.append(f"{row['label']:{width}}{shown:>7}{row['pixels']:12,d}")
        return "\n".join([*lines, describe_templates(self.templates), *describe_skipped(self.skipped)])


def evaluate_segmentation(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    labels: Sequence[str | Sequence[str]],
    templates: Sequence[str] | None = None,
    background: float | None = None,
    attention: str = "query",
    scales: Sequence[float] | None = None,
    resolution: int | None = None,
    batch_size: int = 32,
    title: str | None = None,
) -> SegmentationResult:
    """Mean IoU of `ZeroShotClassifier.segment` over a source with masks.

    Args:
        source: opened with a `mask_column`: images of one channel whose values are indices of classes, as large as
            their images. Pixels of IGNORED (of more than 255 classes, IGNORED_OF_MANY) do not count. Images that
            cannot be read, have no mask, or one of another size, are skipped and counted.
        labels: the classes in the order of their indices, each by one name or several.
        templates: texts in which `{}` stands for a label; None takes those that the model was saved with.
        background: least score of a pixel that belongs to a class. Index 0 is the background then, and the first label
            has index 1.
        attention, scales, resolution, batch_size: as `ZeroShotClassifier.heat_maps` has them.
        title: what the result is called.

    Raises:
        ImportError: without scikit-learn.
        SourceError: if the source was opened without a `mask_column`, or a mask has other indices or no indices.
        ValueError: if no image could be segmented, or no pixel belongs to a class.
    """
    if source.mask_column is None:
        raise SourceError(f"{source.name!r} was opened without `mask_column`: set it to the column of the masks.")
    started = time.perf_counter()
    classifier = ZeroShotClassifier(model, processor, labels, templates, dtype=None)
    names = ([BACKGROUND] if background is not None else []) + classifier.labels
    looks = Looks(attention, scales, resolution, batch_size)
    counts_CC, images, skipped = _counted(classifier, source, names, background, looks)
    scores = iou_of(counts_CC)
    rows = [
        {"label": name, "iou": score, "pixels": int(pixels)}
        for name, score, pixels in zip(names, scores, counts_CC.sum(1), strict=True)
    ]
    return SegmentationResult(
        title=title or f"segmentation of {source.name}",
        mean_iou=float(np.mean([score for score in scores if score is not None])),
        pixel_accuracy=float(np.trace(counts_CC) / counts_CC.sum()),
        per_class=rows,
        background=background,
        attention=attention,
        templates=classifier.templates,
        images=images,
        skipped=skipped,
        seconds=time.perf_counter() - started,
    )


def _counted(
    classifier: ZeroShotClassifier, source: Source, names: Sequence[str], background: float | None, looks: Looks
) -> tuple[np.ndarray, int, Counter[str]]:
    """(C, C) counts of pixels, how many images they are of, and what was skipped."""
    skipped, images = Counter(), 0
    counts_CC = np.zeros((len(names), len(names)), dtype=np.int64)
    for sample in progress(iterate_samples(source), "images", total=source.num_rows, unit="image"):
        try:
            image, mask_HV = decode_image(sample.image), _mask(sample.mask, sample.key)
        except ImageDecodeError as error:
            skipped[error.reason] += 1
            continue
        if mask_HV is None or mask_HV.shape != (image.height, image.width):
            skipped["no_mask" if mask_HV is None else "mask_of_other_size"] += 1
            continue
        # Where 255 is a class's index, the largest of 16 bits is nobody's.
        is_known_HV = mask_HV != (IGNORED if len(names) <= IGNORED else IGNORED_OF_MANY)
        wrong = mask_HV[is_known_HV & ((mask_HV >= len(names)) | (mask_HV < 0))]
        if len(wrong):
            raise SourceError(
                f"{sample.key}: the mask has index {wrong[0]}, and there are {len(names)} classes: give all `labels`, "
                "in the order of their indices."
            )
        [found] = classifier.segment([image], background=background, **vars(looks))
        # -1 is the background.
        found_HV = found.numpy() + (background is not None)
        counts_CC += confusion_matrix(mask_HV[is_known_HV].astype(np.int64), found_HV[is_known_HV], len(names))
        images += 1
    if not images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise ValueError(f"no image could be segmented ({reasons or 'there is none'}): check images and masks.")
    if not counts_CC.any():
        raise ValueError("no pixel of any mask belongs to a class: all are to be ignored. Check the masks' indices.")
    return counts_CC, images, skipped


def iou_of(confusions: np.ndarray) -> list[float | None]:
    """Intersection over union of each class by (C, C) counts of pixels; None of one that occurs nowhere."""
    import sklearn.metrics

    # Its declared types lack the arguments of one score a class.
    jaccard_score: Any = sklearn.metrics.jaccard_score
    true_N, found_N = np.nonzero(confusions)
    classes = len(confusions)
    # A cell is one pixel that weighs as many as it counts.
    scores_C = jaccard_score(
        true_N,
        found_N,
        labels=range(classes),
        average=None,
        sample_weight=confusions[true_N, found_N],
        zero_division=0,
    )
    occurs_C = (confusions.sum(0) + confusions.sum(1)) > 0
    return [float(score) if occurs else None for score, occurs in zip(scores_C, occurs_C, strict=True)]


def _mask(mask: dict[str, Any] | None, key: str) -> np.ndarray | None:
    """(H, V) indices, as they are in the file. Raises SourceError for a mask of colors."""
    if mask is None or (mask["bytes"] is None and mask["path"] is None):
        return None
    try:
        with Image.open(Path(mask["path"]) if mask["bytes"] is None else io.BytesIO(mask["bytes"])) as opened:
            mask_HV = np.asarray(opened)
    # As in `decode_image`.
    except Exception as error:
        raise ImageDecodeError(f"{key}: the mask cannot be read ({error}).", "mask_unreadable") from error
    if mask_HV.ndim != 2:
        raise SourceError(
            f"{key}: the mask has {mask_HV.shape[-1]} channels, and one of class indices is wanted: write it as a "
            "gray or palette PNG."
        )
    if mask_HV.dtype.kind not in "bui":
        raise SourceError(
            f"{key}: the mask holds fractions, and indices of classes are wanted: write it as a gray PNG."
        )
    return mask_HV
