"""Which of several files of one image is the best: the one with the most detail, not merely the most pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image

from .looks import Look

# An image that is scaled down by one of these and up again, and has lost less than LOST (root mean square, of 255),
# holds no more detail than the smaller one.
_FACTORS = (0.25, 0.35, 0.5, 0.6, 0.7, 0.8)
LOST = 1.5
# A margin is of one color, within this much of 255.
MARGIN_TOLERANCE = 10
# Images whose detail differs by less have as much.
AS_MUCH = 1.2


@dataclass(frozen=True)
class Quality:
    """What is compared, in this order.

    Attributes:
        detail: pixels that the image would need, less its margin of one color.
        factor: the fraction of the side that it would need: an image that was blown up has a small one.
        has_more: it has transparent pixels or more than 8 bits, which copies lose.
        is_lossless: it is in a format that keeps pixels as they are.
        size: bytes of the file.
        tags: entries of metadata.
        width, height: in pixels.
    """

    detail: float
    factor: float
    has_more: bool
    is_lossless: bool
    size: int
    tags: int
    width: int
    height: int

    @property
    def rank(self) -> tuple:
        return (
            round(float(np.log(max(self.detail, 1)) / np.log(AS_MUCH))),
            self.factor,
            self.has_more,
            self.is_lossless,
            self.size,
        )

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def measure_quality(source: str | bytes, look: Look, size: int) -> Quality:
    """The quality of a file, which is decoded whole; of one that cannot be, none."""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = decode_image({"bytes": content, "path": source if isinstance(source, str) else None})
    except (OSError, ImageDecodeError, MemoryError):
        return Quality(0, 0, False, False, size, 0, look.width, look.height)
    box = _without_margin(image)
    factor = needed_factor(image)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return _quality(look, area * factor**2, factor, size)


def quality_of_look(look: Look, size: int) -> Quality:
    """What is known of an image without decoding it once more."""
    return _quality(look, look.width * look.height, 1.0, size)


def _quality(look: Look, detail: float, factor: float, size: int) -> Quality:
    has_more = look.on_black is not None or look.is_deep
    return Quality(detail, factor, has_more, look.is_lossless, size, look.tags, look.width, look.height)


def needed_factor(image: Image.Image) -> float:
    """The least fraction of its side at which an image keeps all that shows."""
    gray = image.convert("L")
    pixels = np.asarray(gray, np.float32)
    for factor in _FACTORS:
        smaller = max(1, round(gray.width * factor)), max(1, round(gray.height * factor))
        again = gray.resize(smaller, Image.Resampling.LANCZOS).resize(gray.size, Image.Resampling.LANCZOS)
        if float(np.sqrt(np.square(np.asarray(again, np.float32) - pixels).mean())) < LOST:
            return factor
    return 1.0


def _without_margin(image: Image.Image) -> tuple[int, int, int, int]:
    corner = image.getpixel((0, 0))
    difference = ImageChops.difference(image, Image.new("RGB", image.size, corner)).convert("L")
    return difference.point([0] * MARGIN_TOLERANCE + [255] * (256 - MARGIN_TOLERANCE)).getbbox() or (0, 0, *image.size)


def why_better(best: Quality, other: Quality, has_equal_pixels: bool) -> str:
    """Why the best one stays and the other goes, in words."""
    if has_equal_pixels:
        if best.tags > other.tags:
            return f"the same pixels with less metadata ({other.tags} entries, not {best.tags})"
        return "the same pixels"
    if best.rank[0] > other.rank[0]:
        if other.width * other.height < best.width * best.height:
            return f"fewer pixels ({other}, not {best})"
        return f"less detail in its {other} pixels"
    if best.rank[1] > other.rank[1]:
        return f"no more detail in {other} than in {best} pixels"
    if best.has_more and not other.has_more:
        return "without the transparent pixels or the depth of the other"
    if best.is_lossless and not other.is_lossless:
        return "encoded with loss, and the other is not"
    if best.size > other.size:
        return f"fewer bytes ({other.size}, not {best.size})"
    return "as good, and listed after it"
