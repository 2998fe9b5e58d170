"""Zero-shot accuracy by each template alone, and which few templates do as well as many.

The choice follows OpenAI's notebook on prompt engineering for ImageNet, which found seven of 80 templates so.
"""

# Shapes: N images, C classes, T templates, D width of the shared space.

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from hf_clip.model.embedding_hf_clip import check_finite
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier


@dataclass(frozen=True)
class PerTemplateAccuracy:
    """How far accuracy moves with the template.

    Attributes:
        templates: texts and the accuracy (top-1) of each by itself, in the order given.
        ensemble: accuracy of all of them together.
        mean, standard_deviation: of the accuracies of single templates; with n - 1, and 0 for one template.
        lowest, highest: the range of them.
        images, classes: how many there were.
    """

    templates: tuple[tuple[str, float], ...]
    ensemble: float
    mean: float
    standard_deviation: float
    lowest: float
    highest: float
    images: int
    classes: int

    @property
    def span(self) -> float:
        """The difference of the best and the worst template."""
        return self.highest - self.lowest

    def to_dict(self) -> dict:
        """Numbers and texts, ready for JSON."""
        return {**asdict(self), "templates": dict(self.templates), "span": self.span}

    def table(self) -> str:
        """The numbers as plain text for a terminal, the best template first."""
        lines = [
            f"top-1 of {len(self.templates)} templates, {self.images} images, {self.classes} classes: "
            f"{self.mean:.3f} +- {self.standard_deviation:.3f}, from {self.lowest:.3f} to {self.highest:.3f}",
            f"{self.ensemble:7.3f}  all together",
        ]
        ranked = sorted(self.templates, key=lambda entry: -entry[1])
        return "\n".join(lines + [f"{accuracy:7.3f}  {template}" for template, accuracy in ranked])


def per_template_accuracy(
    model: DualEncoder,
    processor: Processor,
    image_embeds: torch.Tensor,
    class_indices: torch.Tensor,
    labels: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> PerTemplateAccuracy:
    """Accuracy by each template alone, by all together, and how far it spreads.

    Args:
        image_embeds: (N, D) unit embeddings of labeled images, as `hf_clip.embed_images` gives them.
        class_indices: (N,) the index of each image's class.
        labels: the classes' names in the order of their indices; see `ZeroShotClassifier`.
        templates: texts in which `{}` stands for a name.

    Raises:
        ValueError: if there are no images, an index is no class's, or templates or labels are unfit.
    """
    return TemplateStudy(model, processor, image_embeds, class_indices, labels, templates).measure()


def select_templates(
    model: DualEncoder,
    processor: Processor,
    image_embeds: torch.Tensor,
    class_indices: torch.Tensor,
    labels: Sequence[str | Sequence[str]],
    templates: Sequence[str],
    *,
    most: int | None = None,
) -> list[tuple[str, float]]:
    """Forward selection: from none, the template that helps the ensemble most is added, until none helps.

    Of templates that help equally the first is taken. The accuracies are those of the choice on the images that it
    was made on: choose on a validation split, report on another.

    Args:
        most: stop at so many. The others are those of `per_template_accuracy`, and so are the errors.

    Returns:
        The chosen templates in the order of their choice, each with the accuracy of the ensemble so far.
    """
    return TemplateStudy(model, processor, image_embeds, class_indices, labels, templates).select(most)


class TemplateStudy:
    """Class embeddings by each template, encoded once, and the accuracy that sums of them reach.

    Arguments and errors are those of `per_template_accuracy` and `select_templates`, which say what its methods give.
    """

    def __init__(
        self,
        model: DualEncoder,
        processor: Processor,
        image_embeds: torch.Tensor,
        class_indices: torch.Tensor,
        labels: Sequence[str | Sequence[str]],
        templates: Sequence[str],
    ):
        if not len(class_indices) or len(class_indices) != len(image_embeds):
            raise ValueError(
                f"{len(image_embeds)} embeddings and {len(class_indices)} classes: give one for each image."
            )
        if not ((class_indices >= 0) & (class_indices < len(labels))).all():
            raise ValueError(f"`class_indices` must be from 0 to {len(labels) - 1}, one for each of the labels.")
        if isinstance(templates, str) or not templates:
            raise ValueError(f"`templates={templates!r}`: pass a list of one or more.")
        self.image_embeds = check_finite(image_embeds, "images")
        by_template = [ZeroShotClassifier(model, processor, labels, [template], dtype=None) for template in templates]
        # Unit embeddings each, so that every template weighs the same.
        self.embeddings = torch.stack([classifier.class_embeddings for classifier in by_template])
        self.templates, self.class_indices = tuple(templates), class_indices

    def measure(self) -> PerTemplateAccuracy:
        singles = [self.accuracy(embeddings_CD) for embeddings_CD in self.embeddings]
        alone = torch.tensor(singles, dtype=torch.float64)
        return PerTemplateAccuracy(
            templates=tuple(zip(self.templates, singles, strict=True)),
            ensemble=self.accuracy(self.embeddings.sum(0)),
            mean=alone.mean().item(),
            standard_deviation=alone.std().item() if len(alone) > 1 else 0.0,
            lowest=min(singles),
            highest=max(singles),
            images=len(self.class_indices),
            classes=self.embeddings.shape[1],
        )

    def select(self, most: int | None = None) -> list[tuple[str, float]]:
        if most is not None and most < 1:
            raise ValueError(f"`most={most}` is below 1: set it to 1 or more, or to None.")
        chosen: list[tuple[str, float]] = []
        left, reached, sums_CD = list(range(len(self.templates))), -1.0, torch.zeros_like(self.embeddings[0])
        while left and (most is None or len(chosen) < most):
            accuracies = [self.accuracy(sums_CD + self.embeddings[index]) for index in left]
            best = max(accuracies)
            if best <= reached:
                break
            index = left.pop(accuracies.index(best))
            sums_CD, reached = sums_CD + self.embeddings[index], best
            chosen.append((self.templates[index], best))
        return chosen

    def accuracy(self, sums: torch.Tensor) -> float:
        embeddings_CD, hits = F.normalize(sums, dim=-1), 0
        parts = zip(self.image_embeds.split(4096), self.class_indices.split(4096), strict=True)
        for embeddings_BD, classes_B in parts:
            cosines_BC = embeddings_BD.to(embeddings_CD) @ embeddings_CD.T
            hits += (cosines_BC.argmax(-1) == classes_B.to(embeddings_CD.device)).sum().item()
        return hits / len(self.class_indices)
