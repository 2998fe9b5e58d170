"""One image file: its hash, its pixels, its size and when it was taken, from one reading of its bytes."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image, readable_formats
from hf_clip.model.image_plugins_hf_clip import can_read_raw

# Reasons that lie with the machine, not with the file: such a file is tried again next time.
PASSING = {"missing", "unreadable", "out_of_memory"}
_EXIF_FOLDER, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132


@dataclass
class Photo:
    """What was read of a file.

    Attributes:
        hash: of all its bytes; empty where they could not be read.
        pixels: what `prepare` made of the image; None where the hash was known, or the file cannot be decoded.
        width, height: in pixels, upright.
        taken: "2024-05-01T12:30:00" as the camera wrote it, in its own time zone; None where the file does not say.
        error: why the file gives no image.
        is_passing: whether the error is of the machine, not of the file.
    """

    hash: str = ""
    pixels: Any = None
    width: int | None = None
    height: int | None = None
    taken: str | None = None
    error: str | None = None
    is_passing: bool = False


def decoders() -> str:
    """What says which files can be decoded: those that could not are tried again when it changes."""
    return " ".join([*sorted(readable_formats()), *(["raw"] if can_read_raw() else [])])


def content_hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_photo(
    source: str | bytes,
    prepare: Callable[[Image.Image], Any],
    is_known: Callable[[str], bool] = lambda _: False,
    least_edge: int | None = None,
) -> Photo:
    """Reads a file, or takes its bytes, and decodes it unless its hash is known.

    Args:
        prepare: makes what the model takes of an RGB image.
        least_edge: as for `decode_image`.
    """
    try:
        content = source if isinstance(source, bytes) else _read(source)
    except OSError as error:
        return Photo(error=f"cannot be read ({error.strerror or error})", is_passing=True)
    photo = Photo(hash=content_hash(content))
    if is_known(photo.hash):
        return photo
    try:
        # A raw file is known by its name.
        named = {"bytes": content, "path": source if isinstance(source, str) else None}
        image = decode_image(named, least_edge=least_edge)
        photo.width, photo.height = image.size
        photo.taken = taken_at(content)
        photo.pixels = prepare(image)
    except ImageDecodeError as error:
        photo.error, photo.is_passing = str(error), error.reason in PASSING
    except MemoryError:
        photo.error, photo.is_passing = "not enough memory for this image. Scale it down.", True
    return photo


def decode_photo(source: str | bytes, least_edge: int | None = None) -> Image.Image:
    """The image of a file, or of its bytes, of every kind that an index takes. Raises ImageDecodeError."""
    photo = read_photo(source, lambda image: image, least_edge=least_edge)
    if photo.error:
        raise ImageDecodeError(f"{source}: {photo.error}" if isinstance(source, str) else photo.error)
    return photo.pixels


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def taken_at(content: bytes) -> str | None:
    """When a photograph was taken, by its EXIF."""
    # Damaged EXIF raises nearly everything, and costs no more than the date.
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            exif = image.getexif()
            text = exif.get_ifd(_EXIF_FOLDER).get(_TAKEN) or exif.get(_CHANGED)
    except Exception:
        return None
    return _as_iso(str(text)) if text else None


def _as_iso(text: str) -> str | None:
    """EXIF's "2024:05:01 12:30:00" as "2024-05-01T12:30:00"; None for what is no date."""
    day, _, time = text.strip("\0 ").partition(" ")
    parts = day.replace("-", ":").split(":")
    is_date = len(parts) == 3 and all(part.isdecimal() for part in parts) and 1 <= int(parts[1]) <= 12
    if not is_date or not int(parts[0]):
        return None
    return "-".join(parts) + (f"T{time[:8]}" if time else "")
