"""One decoder for every place where an image comes in: whatever the caller holds, out comes an RGB image.

OpenAI's CLIP opens a file with Pillow, resizes it, crops it and calls `convert("RGB")`. This decoder gives
the same pixels for plain RGB, grayscale and CMYK files, and on purpose other pixels for these:

- Palette images are converted before anything is resized. OpenAI's order resizes palette indices, which can
  only be done with nearest neighbours.
- Alpha (RGBA, LA, PA, a transparent palette entry or color) is composited over white. `convert("RGB")` drops
  the alpha, and colors hidden under it come back.
- The EXIF orientation is applied. `convert("RGB")` leaves photographs of most phones lying on their side.
- 16-bit, 32-bit and floating point grayscale is scaled to 8 bits. `convert("RGB")` clips it at 255, which is
  white.

As with OpenAI, color profiles are ignored and animations give their first frame.

HEIC is decoded where `pi-heif` or `pillow-heif` is installed, and the preview of cameras' raw files, known by their
names, where `rawpy` is.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from .image_plugins_hf_clip import can_read_raw, is_raw, raw_preview, register_heif

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# 256 MiB of RGB, the size at which Pillow itself begins to warn of decompression bombs.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

# What data sets hold. Formats that start other programs (EPS) or whose decoders are rarely tested are left
# out. JPEG includes MPO, the several images in one file that phones write.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# Names of files that are images to whoever stored them. Which of them can be decoded, their bytes decide: a `.heic`
# that no opener reads is reported as such instead of being passed over.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .avifs "
    ".heic .heif .hif .jp2 .j2k .jpx .jxl .mpo".split()
)
# Names that are no images, so that a folder's many tables and texts are not opened to see.
OTHER_SUFFIXES = frozenset(
    ".txt .text .caption .cap .cls .json .jsonl .ndjson .csv .tsv .parquet .arrow .tar .zip .gz .zst .xml .html "
    ".htm .md .rst .py .ipynb .yaml .yml .toml .ini .cfg .log .npy .npz .pt .pth .safetensors .onnx .lock .mp4 .mov "
    ".avi .mkv .webm .wav .mp3 .flac .pdf .svg .eps .db".split()
)

# How files begin that people take for images, or get instead of one, and that are not decoded. (offset, bytes): name.
_OTHER_BEGINNINGS = {
    **{(4, b"ftyp" + brand): "HEIC" for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")},
    (0, b"\0\0\0\x0cjP  "): "JPEG 2000",
    (0, b"\xffO\xffQ"): "JPEG 2000",
    (0, b"\0\0\0\x0cJXL "): "JPEG XL",
    (0, b"\xff\x0a"): "JPEG XL",
    (0, b"\0\0\1\0"): "an icon (ICO)",
    (0, b"8BPS"): "a Photoshop file",
    (0, b"%!PS"): "PostScript",
    (0, b"%PDF"): "a PDF",
    (0, b"<svg"): "SVG",
    (0, b"<?xml"): "XML",
    (0, b"<!DOCTYPE"): "an HTML page",
    (0, b"<html"): "an HTML page",
    (0, b"PK\3\4"): "a ZIP archive",
    (0, b"\x1f\x8b"): "a gzip archive",
}
_BEGINNING = 32

EXIF_ORIENTATION = 0x0112
# Where Pillow looks for an orientation, in any format.
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecodeError(ValueError):
    """An image could not be had from what was given.

    `reason` is one word for machines: `missing` (None, or no such file), `empty` (no bytes, no pixels),
    `unreadable` (the file cannot be read), `url`, `unknown_format`, `truncated`, `broken` (damaged data),
    `too_large`, `out_of_memory`, `out_of_range` (pixel values that have no 8-bit meaning), `unsupported_mode`,
    `bad_shape` or `unsupported_type`. The message says what was found and the fix.
    """

    # One required argument, and `reason` among the attributes: workers of a DataLoader rebuild the error so.
    def __init__(self, message: str, reason: str = "broken"):
        super().__init__(message)
        self.reason = reason

    def at(self, position: int, image: object) -> "ImageDecodeError":
        """The error of one of several images, which says which one, by its path too if it has one."""
        is_path = isinstance(image, str | Path) and not str(image).startswith("data:")
        name = f" ({str(image)[:200]})" if is_path and str(image)[:200] not in str(self) else ""
        return ImageDecodeError(f"images[{position}]{name}: {self}", self.reason)


def decode_image(
    source, *, max_pixels: int = MAX_PIXELS, is_channels_first: bool | None = None, least_edge: int | None = None
) -> Image.Image:
    """Decode `source` to a PIL image of mode RGB, as described at the top of this module.

    Args:
        source: encoded bytes; a path (`str` or `Path`, not a URL); a PIL image; a numpy array or torch
            tensor of shape (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, of uint8, bool, uint16,
            floats in [0, 1] or other integers in [0, 255]; or the dict {"bytes", "path"} of an undecoded
            `datasets.Image`.
        max_pixels: limit of width times height. It is read from the header, before pixels are decoded.
        is_channels_first: how to read three axes. By default (H, W, C) for an array and (C, H, W) for a
            tensor, or the other one where only that fits.
        least_edge: a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time, as long as
            no edge becomes shorter than this. Other sources are not changed by it.

    Returns:
        An image of mode RGB. It is `source` itself if that is an RGB image already.

    Raises:
        ImageDecodeError: whatever is wrong with the image.
    """
    try:
        if isinstance(source, Image.Image):
            return _decode_image(source, max_pixels)
        if _is_tensor(source) or isinstance(source, np.ndarray):
            return _decode_array(source, is_channels_first)
        return _decode_file(source, max_pixels, least_edge)
    except ImageDecodeError:
        raise
    # Pillow's plugins raise nearly everything (SyntaxError, struct.error, MemoryError, ...) on damaged data.
    except Exception as error:
        raise _explain(error) from error


def readable_formats() -> list[str]:
    """The names of the formats that are decoded: FORMATS, HEIC, and those that somebody registered.

    By an opener of Pillow's. What else Pillow brings itself stays closed.
    """
    register_heif()
    # Only after this does Pillow know all that it has.
    Image.init()
    # An opener is a class or a function: those of Pillow are of its own modules.
    return [name for name, (factory, _) in Image.OPEN.items() if name in FORMATS or not _is_of_pillow(factory)]


def _is_of_pillow(factory) -> bool:
    return getattr(factory, "__module__", "").partition(".")[0] == "PIL"


def is_image_file(path: str | Path) -> bool:
    """Whether a file is an image: by its name, or by its first bytes where the name says nothing."""
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES or (is_raw(path) and can_read_raw()):
        return True
    return suffix not in OTHER_SUFFIXES and is_image(path)


def is_image(source: bytes | str | Path) -> bool:
    """Whether encoded bytes, or a file, begin like an image that can be decoded. No pixels are read."""
    try:
        stream = BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
        with stream, Image.open(stream, formats=readable_formats()):
            return True
    # As in `decode_image`; a bomb is an image, too.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:
        return False


def _explain(error: Exception) -> ImageDecodeError:
    """The ImageDecodeError for an exception from Pillow, numpy or the file system."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageDecodeError(
            f"{error} Scale the image down, or raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS.",
            "too_large",
        )
    if isinstance(error, FileNotFoundError):
        return ImageDecodeError(f"no such file: {error.filename!r}. Check the path.", "missing")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageDecodeError(f"the file cannot be read ({text}). Check its rights.", "unreadable")
    if isinstance(error, MemoryError):
        return ImageDecodeError("not enough memory for this image. Scale it down.", "out_of_memory")
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return ImageDecodeError(f"the data ends too early ({text}). Fetch the file again.", "truncated")
    return ImageDecodeError(f"the data is damaged ({text}). Fetch the file again, or drop it.", "broken")


def _decode_file(source, max_pixels: int, least_edge: int | None) -> Image.Image:
    name = source if isinstance(source, str | Path) else None
    if isinstance(source, dict):
        content, name = source.get("bytes"), source.get("path")
        source = name if content is None else content
    if source is None:
        raise ImageDecodeError("the image is None. Drop such rows.", "missing")
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
        if not content:
            raise ImageDecodeError("the image has 0 bytes. Fetch the file again, or drop it.", "empty")
        return _decode_stream(BytesIO(content), max_pixels, least_edge, name)
    if not isinstance(source, str | Path):
        raise ImageDecodeError(
            f"an image cannot be had from {type(source).__name__}. Pass bytes, a path, a PIL image, "
            "an array, a tensor or a dict with 'bytes' or 'path'.",
            "unsupported_type",
        )
    if str(source).startswith(("http://", "https://", "data:", "s3://", "hf://")):
        raise ImageDecodeError(f"{str(source)[:100]!r} is a URL. Fetch it first and pass the bytes.", "url")
    path = Path(source)
    if path.exists() and not path.is_file():
        raise ImageDecodeError(f"{str(path)!r} is not a file. Pass the path of an image.", "unreadable")
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise ImageDecodeError(f"{str(path)!r} has 0 bytes. Fetch the file again.", "empty")
        return _decode_stream(stream, max_pixels, least_edge, name)


def _decode_stream(stream, max_pixels: int, least_edge: int | None, name=None) -> Image.Image:
    if is_raw(name) and can_read_raw():
        return _decode_raw(stream.read(), max_pixels)
    # Image.open raises KeyError for a format that this build of Pillow lacks.
    try:
        image = Image.open(stream, formats=readable_formats())
    except Image.UnidentifiedImageError as error:
        stream.seek(0)
        raise _explain_format(stream.read(_BEGINNING), name) from error
    with image:
        return _decode_image(image, max_pixels, least_edge)


def _decode_raw(content: bytes, max_pixels: int) -> Image.Image:
    # Whatever LibRaw raises.
    try:
        preview = raw_preview(content)
    except Exception as error:
        raise ImageDecodeError(f"no preview can be had from this raw file ({error}).", "broken") from error
    return decode_image(preview, max_pixels=max_pixels)


def _explain_format(beginning: bytes, name=None) -> ImageDecodeError:
    """The ImageDecodeError for a file of another format than those that are decoded, by its first bytes."""
    for (offset, start), kind in _OTHER_BEGINNINGS.items():
        if beginning[offset:].startswith(start):
            is_page = any(word in kind for word in ("HTML", "XML", "archive"))
            fix = "Fetch the image itself." if is_page else "Convert it to PNG."
            if kind == "HEIC":
                is_damaged = "HEIF" in readable_formats()
                fix = "Fetch it again." if is_damaged else "Install pi-heif, or convert it to PNG."
            return ImageDecodeError(f"the file is {kind}, which is not decoded. {fix}", "unknown_format")
    if is_raw(name):
        return ImageDecodeError(
            "a camera's raw file, which is not decoded. Install rawpy, which reads its preview.", "unknown_format"
        )
    return ImageDecodeError(
        f"a damaged header, or a format other than {', '.join(FORMATS)}. Convert the file to PNG.", "unknown_format"
    )


def _decode_image(image: Image.Image, max_pixels: int, least_edge: int | None = None) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageDecodeError(
            f"{width} x {height} is {width * height} pixels, more than max_pixels={max_pixels}. "
            "Scale the image down, or raise the limit.",
            "too_large",
        )
    if width == 0 or height == 0:
        raise ImageDecodeError(f"{width} x {height} has no pixels. Drop it.", "empty")
    if least_edge is not None:
        # Of no effect in all formats but JPEG.
        image.draft(image.mode, (least_edge, least_edge))
    # Pillow knows the orientation of some formats only once the pixels are decoded.
    image.load()
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    if orientation in TRANSPOSE_OF_ORIENTATION:
        rgb = rgb.transpose(TRANSPOSE_OF_ORIENTATION[orientation])
        # The turned image is upright now: decoded once more, it must not be turned once more.
        for key in ORIENTATION_KEYS:
            rgb.info.pop(key, None)
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where it is missing or damaged: the pixels may be well even so."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_gray_of_deep_image(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "LAB":
        raise ImageDecodeError("Pillow cannot convert mode LAB. Save the image as RGB.", "unsupported_mode")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_of_deep_image(image: Image.Image) -> np.ndarray:
    """8-bit values (H, W) of an image of one of the modes I;16, I and F.

    Modes I and F do not say what white is: it is taken to be the least of 255 and 65535 (of 1, 255 and 65535
    for F) that no pixel exceeds.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        white = 65535
    else:
        whites = (255, 65535) if image.mode == "I" else (1, 255, 65535)
        low, high = values.min(), values.max()
        white = next((candidate for candidate in whites if low >= 0 and high <= candidate), None)
        if white is None:
            raise ImageDecodeError(
                f"pixel values from {low} to {high} in mode {image.mode}. Scale them to [0, 65535].",
                "out_of_range",
            )
    gray = _scale_to_uint8(values, white)
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 255
    return gray


def _scale_to_uint8(values: np.ndarray, white: float) -> np.ndarray:
    return np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def _is_tensor(source) -> bool:
    # Nobody holds a tensor where torch was never imported, and importing it takes seconds.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _decode_array(source, is_channels_first: bool | None) -> Image.Image:
    prefers_channels_first = _is_tensor(source) if is_channels_first is None else is_channels_first
    values = source
    if _is_tensor(source):
        values = source.detach().cpu()
        # numpy has no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy()
    if 0 in values.shape:
        raise ImageDecodeError(f"an array of shape {values.shape} has no pixels. Drop it.", "empty")
    if values.ndim == 3:
        fits_first, fits_last = values.shape[0] <= 4, values.shape[2] <= 4
        if is_channels_first is not None:
            fits_first, fits_last = fits_first and is_channels_first, fits_last and not is_channels_first
        if fits_first and (prefers_channels_first or not fits_last):
            values = np.moveaxis(values, 0, -1)
        elif not fits_last:
            values = None
    elif values.ndim != 2:
        values = None
    if values is None:
        raise ImageDecodeError(
            f"an array of shape {tuple(source.shape)} is not one image. "
            "Pass (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, one image at a time.",
            "bad_shape",
        )
    pixels = _array_to_uint8(values)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    mode = "L" if pixels.ndim == 2 else {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    height, width = pixels.shape[:2]
    return _to_rgb(Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes()))


def _array_to_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.newbyteorder("=") == np.uint16:
        return _scale_to_uint8(values, 65535)
    if values.dtype.kind not in "buif":
        raise ImageDecodeError(
            f"an array of {values.dtype} is not an image. Pass uint8, uint16 or floats.", "unsupported_type"
        )
    white = 255 if values.dtype.kind in "iu" else 1
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):
        raise ImageDecodeError(
            f"values from {low} to {high} in an array of {values.dtype}, which holds [0, {white}]. "
            "Pass the image before it is normalized, or uint8.",
            "out_of_range",
        )
    return _scale_to_uint8(values, white)


def on_all_cores(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """`[work(item) for item in items]` in as many threads as torch computes in: Pillow lets others run meanwhile.

    Of several errors the first item's is raised. Threads are new with every call, so that a fork leaves none behind.
    """
    count = min(torch.get_num_threads(), len(items))
    if count < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, items))
