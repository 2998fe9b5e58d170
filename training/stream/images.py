"""Images to the model's size, for training: nearly the processor's pixels, in a fraction of its time.

torch resizes bytes several times faster than Pillow. simplejpeg, where it is installed, decodes JPEGs in half of
Pillow's time, to the same pixels where both are built on one libjpeg. What is measured (evaluations, embeddings) sees
the processor's own pixels.
"""

import math
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hf_clip.model.image_decoding_hf_clip import EXIF_ORIENTATION, MAX_PIXELS, decode_image
from hf_clip.model.image_processing_hf_clip import (
    JPEG_REDUCTION_MARGIN,
    HFCLIPImageProcessor,
    center_box,
    resized_size,
)

# The filters that torch and Pillow both have.
_MODES = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
# So many times as large as the crop, and the processor's way computes less.
_MOST_WASTE = 4


@cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return simplejpeg


def jpeg_decoder() -> str:
    """What decodes JPEGs here: others may give other pixels."""
    decoder = _simplejpeg()
    return "Pillow" if decoder is None else f"simplejpeg {decoder.__version__}"


def training_pixels(processor: HFCLIPImageProcessor, source) -> np.ndarray:
    """The image at the model's size, uint8 (H, W, 3), as `processor.resize_and_crop` gives it but for few levels.

    Args:
        processor: the model's. Where it does something else than to resize (bicubic or bilinear) and crop the middle,
            its own pixels are returned.
        source: what `decode_image` takes.

    Raises:
        ImageDecodeError: if it cannot be decoded.
    """
    mode = _MODES.get(processor.resample)
    resizes = processor.do_resize and processor.do_center_crop and processor.max_num_patches is None
    if not resizes or mode is None or processor.size.longest_edge:
        return processor.resize_and_crop(source, may_reduce_jpeg=True)
    least_edge = math.ceil(JPEG_REDUCTION_MARGIN * max(filter(None, dict(processor.size).values())))
    pixels_HWC = _decoded_jpeg(source, least_edge)
    if pixels_HWC is None:
        pixels_HWC = np.asarray(decode_image(source, least_edge=least_edge))
    height, width = pixels_HWC.shape[:2]
    columns, rows = resized_size(width, height, processor.size)
    left, top, right, bottom = center_box(columns, rows, processor.crop_size)
    is_within = left >= 0 and top >= 0 and right <= columns and bottom <= rows
    if not is_within or columns * rows > _MOST_WASTE * (right - left) * (bottom - top):
        return processor.resize_and_crop(Image.fromarray(pixels_HWC))
    if (columns, rows) != (width, height):
        pixels_HWC = _resized(pixels_HWC, rows, columns, mode)
    # A copy: the part would hold on to the whole.
    return pixels_HWC[top:bottom, left:right].copy()


def _resized(pixels_HWC: np.ndarray, rows: int, columns: int, mode: str) -> np.ndarray:
    # Pillow's own arrays are read-only, which torch warns of; nothing is written here.
    given = pixels_HWC if pixels_HWC.flags.writeable else pixels_HWC.copy()
    pixels_1CHW = torch.from_numpy(given).permute(2, 0, 1)[None]
    resized_1CHW = F.interpolate(pixels_1CHW, (rows, columns), mode=mode, antialias=True, align_corners=False)
    return resized_1CHW[0].permute(1, 2, 0).numpy()


def _decoded_jpeg(source, least_edge: int) -> np.ndarray | None:
    """simplejpeg's pixels, uint8 (H, W, 3), at 1/2, 1/4 or 1/8 of the size where no edge becomes shorter than that.

    None for what is no JPEG, and for what `decode_image` turns, refuses or knows better: an orientation, inks, damage.
    """
    content = source.get("bytes") if isinstance(source, dict) else source
    decoder = _simplejpeg()
    if decoder is None or not isinstance(content, bytes) or not content.startswith(b"\xff\xd8"):
        return None
    try:
        # Reads the header alone.
        with Image.open(BytesIO(content), formats=["JPEG"]) as image:
            width, height = image.size
            is_plain = image.mode in ("RGB", "L") and image.getexif().get(EXIF_ORIENTATION, 1) == 1
            if not is_plain or width * height > MAX_PIXELS:
                return None
            # Never larger, and at least of the edge where that is possible.
            shrinks = min(width, height) >= 2 * least_edge
        return decoder.decode_jpeg(
            content,
            colorspace="RGB",
            min_height=least_edge if shrinks else 0,
            min_width=least_edge if shrinks else 0,
            min_factor=2 if shrinks else 1,
        )
    except Exception:
        # Damaged in one way or another: `decode_image` says in which.
        return None
