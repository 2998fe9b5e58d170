"""Image formats of phones and cameras, decoded where somebody installed what decodes them: HEIC, and raw files.

HEIC needs `pi-heif` (or `pillow-heif`), which registers its opener with Pillow. Of a camera's raw file the
preview that the camera wrote into it is taken, by `rawpy`: to develop the sensor's values takes seconds.
"""

from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any

RAW_SUFFIXES = frozenset(".cr2 .cr3 .nef .arw .dng .raf .orf .rw2 .pef .srw .nrw .raw .rwl .3fr .iiq".split())


@cache
def register_heif() -> bool:
    """Has Pillow open HEIC, where that can be; whether it can."""
    try:
        import pi_heif as heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        try:
            import pillow_heif as heif  # pyright: ignore[reportMissingImports]
        except ImportError:
            return False
    heif.register_heif_opener()
    return True


@cache
def can_read_raw() -> bool:
    return find_spec("rawpy") is not None


def is_raw(name: Any) -> bool:
    """Whether a path names a camera's raw file. Its bytes alone often look like TIFF."""
    return name is not None and str(name).lower().endswith(tuple(RAW_SUFFIXES))


def raw_preview(content: bytes) -> Any:
    """The preview within a camera's raw file: JPEG bytes, or an array (H, W, 3). Raises whatever LibRaw raises."""
    try:
        import rawpy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("rawpy is not installed") from error
    with rawpy.imread(BytesIO(content)) as raw:
        return raw.extract_thumb().data
