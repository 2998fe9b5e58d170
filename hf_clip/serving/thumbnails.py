"""Small images of an index's rows, made when they are asked for and kept in a bounded memory."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

# Edges of squares that an image is made to fit in: of the page's grid, and of its large view.
SIZES = (256, 1024)
QUALITY = 82


class Thumbnails:
    """JPEG files of rows, without metadata: pixels alone are taken over.

    Args:
        image_of: the image of a row, with the shortest edge that it may be decoded to.
        kept_bytes: what is kept of those made last.
        decoders: how many are made at once.
    """

    def __init__(self, image_of: Callable[[int, int], Image.Image], kept_bytes: int, decoders: int):
        self._image_of, self._kept_bytes = image_of, kept_bytes
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._size = 0
        self._lock, self._decoders = threading.Lock(), threading.BoundedSemaphore(decoders)

    def get(self, row: int, size: int) -> bytes:
        """The file of a row that fits in a square of `size` pixels. Raises what `image_of` raises."""
        key = row, size
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._decoders:
            made = to_jpeg(self._image_of(row, size), size)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size += len(made)
            while self._size > self._kept_bytes:
                self._size -= len(self._kept.popitem(last=False)[1])
        return made


def to_jpeg(image: Image.Image, size: int) -> bytes:
    """The image's pixels as a JPEG file that fits in a square; smaller images are not enlarged."""
    shown = image.convert("RGB")
    shown.thumbnail((size, size), Image.Resampling.LANCZOS)
    # What Pillow would write along: EXIF with its place, comments, profiles.
    bare = Image.frombytes("RGB", shown.size, shown.tobytes())
    file = io.BytesIO()
    bare.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
