"""How near an exported model is to the model: the smallest cosine of its embeddings, and how many labels agree.

Shape suffixes: N images, K texts, D dimensions of the shared space.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from PIL import Image, ImageDraw

from hf_clip.model.embedding_hf_clip import embed_images, embed_texts
from hf_clip.model.typing_hf_clip import DualEncoder, Processor

# Least cosine, and for int8 least fraction of images that keep their best text.
MIN_COSINE, MIN_COSINE_INT8, MIN_AGREEMENT_INT8 = 0.9999, 0.98, 0.97

_COLORS = ("red", "green", "blue", "yellow", "black", "orange")
_SHAPES = ("circle", "square", "triangle", "cross")
_SIDE = 224


@dataclass(frozen=True)
class ParityReport:
    """An exported model beside the model that it was made of, both on the same images and texts.

    Attributes:
        num_images, num_texts: how many there were.
        min_image_cosine, min_text_cosine: the smallest cosine of an exported embedding with the model's.
        label_agreement: fraction of the images for which both find the same text the nearest.
        is_int8: which bounds hold.
    """

    num_images: int
    num_texts: int
    min_image_cosine: float
    min_text_cosine: float
    label_agreement: float
    is_int8: bool

    @property
    def failures(self) -> list[str]:
        """What is below its bound, in words; empty where the export may be used in the model's place."""
        least = MIN_COSINE_INT8 if self.is_int8 else MIN_COSINE
        cosines = {"images": self.min_image_cosine, "texts": self.min_text_cosine}
        # Not `<`: NaN is no agreement.
        failed = [f"cosine of {of} {value:.6f} (least {least})" for of, value in cosines.items() if not value >= least]
        if self.is_int8 and not self.label_agreement >= MIN_AGREEMENT_INT8:
            failed.append(f"label agreement {self.label_agreement:.3f} (least {MIN_AGREEMENT_INT8})")
        return failed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"parity on {self.num_images} images and {self.num_texts} texts: smallest cosine of images "
            f"{self.min_image_cosine:.6f}, of texts {self.min_text_cosine:.6f}; label agreement "
            f"{self.label_agreement:.3f}"
        )


def embeddings_of(
    model: DualEncoder, processor: Processor, images: Any, texts: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) and (K, D) unit embeddings."""
    return (
        embed_images(model, processor, images, dtype=None, show_progress=False),
        embed_texts(model, processor, texts, dtype=None, show_progress=False),
    )


def compare(
    reference: tuple[torch.Tensor, torch.Tensor], exported: tuple[torch.Tensor, torch.Tensor], *, int8: bool
) -> ParityReport:
    """The report on embeddings of the model and of its export, as `embeddings_of` gives them."""
    cosines = [(ours * theirs).sum(dim=-1).min().item() for ours, theirs in zip(exported, reference, strict=True)]
    best = [(image_ND @ text_KD.T).argmax(dim=-1) for image_ND, text_KD in (reference, exported)]
    agreement = best[0].eq(best[1]).float().mean().item()
    return ParityReport(len(reference[0]), len(reference[1]), cosines[0], cosines[1], agreement, int8)


def drawn_images() -> list[Image.Image]:
    """48 images of colored shapes, two sizes of each: what a report is made on where no images are given."""
    return [_drawn(color, shape, extent) for color, shape, extent in product(_COLORS, _SHAPES, (0.45, 0.8))]


def texts_of_drawn_images() -> list[str]:
    return [f"a photo of a {color} {shape}." for color, shape in product(_COLORS, _SHAPES)]


def _drawn(color: str, shape: str, extent: float) -> Image.Image:
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(image)
    low, high = _SIDE * (1 - extent) / 2, _SIDE * (1 + extent) / 2
    middle, third = _SIDE / 2, (high - low) / 3
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=color)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=color)
    elif shape == "triangle":
        draw.polygon(((middle, low), (high, high), (low, high)), fill=color)
    else:
        draw.rectangle((low + third, low, high - third, high), fill=color)
        draw.rectangle((low, low + third, high, high - third), fill=color)
    return image


def listed(images: Iterable[Any] | None, texts: Iterable[str] | None) -> tuple[Any, list[str]]:
    """The images and texts of a report, those of this module where none are given."""
    return drawn_images() if images is None else images, texts_of_drawn_images() if texts is None else list(texts)
