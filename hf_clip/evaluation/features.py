"""Vectors of pictures and texts, in batches: the first half of every evaluation."""

# Shapes: B pictures of a batch, N pictures, M texts, D width of the shared space, H and W pixels.

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from hf_clip.images_hf_clip import ImageDecodeError, decode_image
from hf_clip.zero_shot_hf_clip import batched, evaluation_mode, unit_image_vectors, unit_text_vectors


@dataclass
class ImageFeatures:
    """Vectors of the pictures that could be read.

    Attributes:
        vectors_ND: (N, D) float32 unit vectors on the CPU.
        kept: N positions in the stream that was given: `vectors_ND[i]` belongs to picture `kept[i]`.
        skipped: how many pictures could not be decoded, by `ImageDecodeError.reason`.
    """

    vectors_ND: torch.Tensor
    kept: list[int]
    skipped: Counter[str] = field(default_factory=Counter)


def progress(items: Iterable, description: str, *, total: int | None = None, unit: str = "it") -> Iterable:
    """A progress bar on standard error; silent where that is no terminal."""
    return tqdm(items, description, total=total, unit=unit, leave=False, disable=not _is_terminal())


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def embed_texts(model, processor, texts: Sequence[str], *, batch_size: int = 256) -> torch.Tensor:
    """(M, D) float32 unit vectors on the CPU of M texts, `batch_size` at a time.

    Raises ValueError if `texts` is empty.
    """
    if not texts:
        raise ValueError("there are no texts to encode: pass at least one.")
    batches = progress(batched(texts, batch_size), "texts", total=-(-len(texts) // batch_size), unit="batch")
    with evaluation_mode(model):
        return torch.cat([unit_text_vectors(model, processor, batch).cpu() for batch in batches])


def embed_images(
    model, processor, images: Iterable, *, batch_size: int = 64, total: int | None = None
) -> ImageFeatures:
    """Vectors of a stream of pictures, of any kind that `decode_image` reads, held `batch_size` at a time.

    A picture that cannot be decoded is left out and counted by its reason: one broken file must not end an
    evaluation of a million, nor go unnoticed.

    Args:
        images: the stream. An item may come from anywhere: it is read once, in order.
        batch_size: pictures encoded at once.
        total: how many there are, for the progress bar.

    Raises:
        ValueError: if no picture could be read; the message gives the reasons.
    """
    features = ImageFeatures(torch.empty(0), [])

    def readable():
        for position, image in enumerate(progress(images, "pictures", total=total, unit="picture")):
            try:
                picture = decode_image(image)
            except ImageDecodeError as error:
                features.skipped[error.reason] += 1
                continue
            features.kept.append(position)
            yield picture

    vectors = []
    with evaluation_mode(model):
        for batch in batched(readable(), batch_size):
            pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]
            vectors.append(unit_image_vectors(model, pixel_values).cpu())
    if not vectors:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(features.skipped.items()))
        raise ValueError(
            f"no picture could be read ({reasons or 'the data set is empty'}): check the image column and the files."
        )
    features.vectors_ND = torch.cat(vectors)
    return features
