"""What the pixel check keeps of an image: a small square of its pixels, and facts about the file."""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_clip.model.image_decoding_hf_clip import (
    ORIENTATION_KEYS,
    TRANSPOSE_OF_ORIENTATION,
    ImageDecodeError,
    decode_image,
    readable_formats,
)

from .alignment import Square

# Of red, green and blue (Rec. 601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The check sees an image at this many pixels, squeezed to a square: of what is smaller than a 64th it sees little.
SIDE = 64
# JPEGs are decoded at a fraction of their size where an edge stays longer than this.
LEAST_EDGE = 4 * SIDE
# Photographs whose files hold more than one image: previews, depth, an exposure each.
_OF_ONE_MOMENT = ("MPO", "HEIF")
_LOSSLESS, _LOSSLESS_WEBP = ("PNG", "BMP", "TIFF", "PPM"), b"VP8L"
_EXIF_ORIENTATION = 0x0112


@dataclass
class Look:
    """What is kept of an image.

    Attributes:
        pixels: (SIDE, SIDE, 3) uint8, alpha over white.
        on_black: the same over black; None for an image without transparent pixels.
        width, height: in pixels, upright.
        is_animated: it has several frames or pages.
        is_deep: its values have more than 8 bits.
        is_lossless: its format keeps pixels as they are.
        tags: how many entries of EXIF, XMP, IPTC and color profile the file has.
        digest: `pixel_hash`, where it was asked for as the image was read.
        error: why the file gives no image; the rest is empty then.
    """

    pixels: np.ndarray | None = None
    on_black: np.ndarray | None = None
    width: int = 0
    height: int = 0
    is_animated: bool = False
    is_deep: bool = False
    is_lossless: bool = False
    tags: int = 0
    digest: str | None = None
    error: str | None = None
    _squares: dict[bool, Square] = field(default_factory=dict, repr=False, compare=False)

    def luma(self, over_black: bool = False) -> np.ndarray:
        """(SIDE, SIDE) float32 of 0 to 1."""
        pixels = self.on_black if over_black else self.pixels
        assert pixels is not None
        return pixels.astype(np.float32) @ (LUMA / 255)

    def square(self, over_black: bool = False) -> Square:
        """What aligns it with others, made once."""
        if over_black not in self._squares:
            self._squares[over_black] = Square(self.luma(over_black))
        return self._squares[over_black]


def read_look(source: str | bytes) -> Look:
    """Reads a file, or takes its bytes."""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        named = {"bytes": content, "path": source if isinstance(source, str) else None}
        look = _facts(content)
        image = decode_image(named, least_edge=LEAST_EDGE)
        look.pixels = _small(image)
        alpha = _over_black(content)
        if alpha is not None:
            look.on_black = _small(alpha)
        look.width, look.height = look.width or image.width, look.height or image.height
        if (image.width > image.height) != (look.width > look.height):
            look.width, look.height = look.height, look.width
        return look
    except OSError as error:
        return Look(error=f"cannot be read ({error.strerror or error})")
    except ImageDecodeError as error:
        return Look(error=str(error))
    except MemoryError:
        return Look(error="not enough memory for this image. Scale it down.")


def pixel_hash(source: str | bytes) -> str:
    """Of the decoded, upright pixels, with what is transparent. Raises ImageDecodeError."""
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    image = decode_image({"bytes": content, "path": source if isinstance(source, str) else None})
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    # Over white and over black: two that differ in what is transparent differ in one of them.
    alpha = _over_black(content)
    if alpha is not None:
        digest.update(alpha.tobytes())
    return digest.hexdigest()


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0))


def _facts(content: bytes) -> Look:
    """What the header says; a file of a kind that Pillow does not open, a camera's raw, has none."""
    look = Look()
    # Damaged headers raise nearly everything; `decode_image` says what is wrong.
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            look.width, look.height = image.size
            frames = getattr(image, "n_frames", 1)
            look.is_animated = frames > 1 and image.format not in _OF_ONE_MOMENT
            look.is_deep = image.mode.startswith(("I", "F"))
            look.is_lossless = image.format in _LOSSLESS or content[12:16] == _LOSSLESS_WEBP
            look.tags = _tags(image)
    except Exception:
        return look
    return look


def _tags(image: Image.Image) -> int:
    exif = image.getexif()
    folders = [exif, *(exif.get_ifd(folder) for folder in (0x8769, 0x8825))]
    others = [key for key in ("icc_profile", "xmp", "photoshop", "comment") if image.info.get(key)]
    return sum(map(len, folders)) + len(others)


def _over_black(content: bytes) -> Image.Image | None:
    """The upright image over black, if any of its pixels is transparent."""
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
            if not has_alpha or image.mode.startswith(("I", "F")):
                return None
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            extrema: Any = rgba.getchannel("A").getextrema()
            if extrema[0] == 255:
                return None
            black = Image.new("RGBA", rgba.size, "black")
            turned = Image.alpha_composite(black, rgba).convert("RGB")
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            for key in ORIENTATION_KEYS:
                turned.info.pop(key, None)
            way = TRANSPOSE_OF_ORIENTATION.get(orientation)
            return turned if way is None else turned.transpose(way)
    # `decode_image` said that the file is whole; what is odd about its alpha is taken for none.
    except Exception:
        return None
