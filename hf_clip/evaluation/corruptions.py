"""Images made worse on purpose, in five degrees (after Hendrycks & Dietterich 2019, "ImageNet-C").

The kinds and their degrees are those of the paper that need no more than Pillow and numpy. Noise is drawn for each
image from its own pixels, so that a result does not hang on the order of the data or the number of processes.
"""

# Shapes: H and W pixels.

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

# The degrees were chosen for images of this size: lengths in pixels grow with the model's.
REFERENCE_PIXELS = 224
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One kind of damage in one degree, done to the image as the model would see it: resized and cropped.

    Raises ValueError for a name that is not in `CORRUPTIONS`, or a severity that is not from 1 to 5.
    """

    name: str
    severity: int

    def __post_init__(self):
        if self.name not in CORRUPTIONS:
            raise ValueError(f"corruption {self.name!r} is not known: use {', '.join(CORRUPTIONS)}.")
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity={self.severity} of {self.name} is not there: use 1 to 5.")

    def __call__(self, image: Image.Image, processor=None) -> Image.Image:
        """The image, damaged; the same image is always damaged in the same way.

        Args:
            image: RGB.
            processor: of the model that will see it; None takes the image as it is.
        """
        pixels = np.array(image) if processor is None else processor.image_processor.resize_and_crop(image)
        change, degrees = CORRUPTIONS[self.name]
        seed = hashlib.blake2b(pixels.tobytes(), key=f"{self.name} {self.severity}".encode(), digest_size=16).digest()
        random = np.random.default_rng(int.from_bytes(seed, "little"))
        changed_HW3 = change(pixels / 255.0, degrees[self.severity - 1], random)
        return Image.fromarray(np.round(np.clip(changed_HW3, 0, 1) * 255).astype(np.uint8))


def _gaussian_noise(pixels_HW3: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    return pixels_HW3 + random.normal(0, deviation, pixels_HW3.shape)


def _shot_noise(pixels_HW3: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    return random.poisson(pixels_HW3 * photons) / photons


def _impulse_noise(pixels_HW3: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """Salt and pepper in each channel, as many of the one as of the other."""
    drawn = random.random(pixels_HW3.shape)
    return np.where(drawn < fraction / 2, 0.0, np.where(drawn < fraction, 1.0, pixels_HW3))


def _gaussian_blur(pixels_HW3: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    scale = min(pixels_HW3.shape[:2]) / REFERENCE_PIXELS
    return _by_pillow(pixels_HW3, lambda image: image.filter(ImageFilter.GaussianBlur(radius * scale)))


def _brightness(pixels_HW3: np.ndarray, added: float, random: np.random.Generator) -> np.ndarray:
    """The value of HSV raised, hue and saturation kept: all channels grow by one factor."""
    value_HW1 = pixels_HW3.max(axis=2, keepdims=True)
    raised_HW1 = np.clip(value_HW1 + added, 0, 1)
    # Black has no hue: it becomes gray.
    return np.where(value_HW1 > 0, pixels_HW3 * raised_HW1 / np.maximum(value_HW1, 1e-9), raised_HW1)


def _contrast(pixels_HW3: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    means = pixels_HW3.mean(axis=(0, 1), keepdims=True)
    return (pixels_HW3 - means) * factor + means


def _saturate(pixels_HW3: np.ndarray, change: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    """The saturation of HSV times a factor, plus a term: every channel's distance from the greatest is scaled."""
    factor, term = change
    value_HW1 = pixels_HW3.max(axis=2, keepdims=True)
    spread_HW1 = value_HW1 - pixels_HW3.min(axis=2, keepdims=True)
    saturation_HW1 = spread_HW1 / np.maximum(value_HW1, 1e-9)
    wanted_HW1 = np.clip(saturation_HW1 * factor + term, 0, 1)
    # Gray has no hue to be made stronger.
    scale_HW1 = np.where(spread_HW1 > 0, wanted_HW1 / np.maximum(saturation_HW1, 1e-9), 0)
    return value_HW1 - (value_HW1 - pixels_HW3) * scale_HW1


def _pixelate(pixels_HW3: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    height, width = pixels_HW3.shape[:2]
    small = max(1, int(width * scale)), max(1, int(height * scale))

    def change(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.NEAREST)

    return _by_pillow(pixels_HW3, change)


def _jpeg(pixels_HW3: np.ndarray, quality: int, random: np.random.Generator) -> np.ndarray:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _by_pillow(pixels_HW3, change)


def _by_pillow(pixels_HW3: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    image = Image.fromarray(np.round(pixels_HW3 * 255).astype(np.uint8))
    return np.array(change(image)) / 255.0


# Name: what it does, and its five degrees.
CORRUPTIONS: dict[str, tuple[Callable, tuple]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}
