"""Files of phones and cameras: a HEIC that was made once, and a raw file (DNG) written by hand.

`tests/golden/photos/two_halves.heic` was made by pillow-heif 1.x, which encodes, while pi-heif only decodes:

    image = Image.new("RGB", (32, 48), (200, 30, 40))
    image.paste((20, 60, 220), (0, 24, 32, 48))
    exif = Image.Exif()
    exif[0x0132] = "2024:05:01 12:30:00"
    image.save("two_halves.heic", quality=60, exif=exif)
"""

import io
import struct
from pathlib import Path

from PIL import Image

HEIC = Path(__file__).parents[1] / "golden/photos/two_halves.heic"
UPPER, LOWER = (200, 30, 40), (20, 60, 220)
# LibRaw takes no sensor of less than 22 pixels.
_EDGE = 32
_BYTE, _TEXT, _SHORT, _LONG, _RATIONAL, _SIGNED_RATIONAL = 1, 2, 3, 4, 5, 10
_CODES = {_BYTE: "B", _SHORT: "H", _LONG: "I"}


def write_dng(file: Path, size: tuple[int, int] = (64, 48)) -> Path:
    """A raw file of a camera: a gray sensor, and a JPEG preview of two colors as in the HEIC."""
    preview = io.BytesIO()
    image = Image.new("RGB", size, UPPER)
    image.paste(LOWER, (0, size[1] // 2, *size))
    image.save(preview, "JPEG", quality=90)
    sensor = struct.pack(f"<{_EDGE * _EDGE}H", *[2000] * _EDGE**2)
    parts = [b"", b"", b"", b"", sensor, preview.getvalue()]
    # Places of parts are known once their sizes are.
    for _ in range(2):
        places = [8 + sum(map(len, parts[:at])) for at in range(6)]
        parts[:2] = _directory(_of_preview(size, len(parts[5]), places[5], places[2]), places[1])
        parts[2:4] = _directory(_of_sensor(len(sensor), places[4]), places[3])
    file.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(parts))
    return file


def _of_preview(size: tuple[int, int], count: int, place: int, sensor_directory: int) -> dict:
    width, height = size
    one, none = (1, 1), (0, 1)
    return {
        254: (_LONG, [1]), 256: (_LONG, [width]), 257: (_LONG, [height]), 258: (_SHORT, [8, 8, 8]), 259: (_SHORT, [7]),
        262: (_SHORT, [6]), 271: (_TEXT, b"Made\0"), 272: (_TEXT, b"By hand\0"), 273: (_LONG, [place]),
        274: (_SHORT, [1]), 277: (_SHORT, [3]), 278: (_LONG, [height]), 279: (_LONG, [count]),
        306: (_TEXT, b"2023:02:03 04:05:06\0"), 330: (_LONG, [sensor_directory]),
        # DNG 1.4, its camera and how the sensor's colors are to be read.
        50706: (_BYTE, [1, 4, 0, 0]), 50707: (_BYTE, [1, 1, 0, 0]), 50708: (_TEXT, b"By hand\0"),
        50721: (_SIGNED_RATIONAL, [one, none, none, none, one, none, none, none, one]),
        50728: (_RATIONAL, [one, one, one]), 50778: (_SHORT, [21]),
    }  # fmt: skip


def _of_sensor(count: int, place: int) -> dict:
    return {
        254: (_LONG, [0]), 256: (_LONG, [_EDGE]), 257: (_LONG, [_EDGE]), 258: (_SHORT, [16]), 259: (_SHORT, [1]),
        262: (_SHORT, [32803]), 273: (_LONG, [place]), 277: (_SHORT, [1]), 278: (_LONG, [_EDGE]),
        279: (_LONG, [count]),
        284: (_SHORT, [1]), 33421: (_SHORT, [2, 2]), 33422: (_BYTE, [0, 1, 1, 2]),
        50714: (_SHORT, [0]), 50717: (_LONG, [4000]),
    }  # fmt: skip


def _directory(tags: dict, place_of_values: int) -> tuple[bytes, bytes]:
    """A directory of TIFF, and the values that do not fit into it."""
    entries, values = struct.pack("<H", len(tags)), b""
    for tag, (kind, content) in tags.items():
        if kind == _TEXT:
            data = content
        elif kind in (_RATIONAL, _SIGNED_RATIONAL):
            data = b"".join(struct.pack("<2i", *pair) for pair in content)
        else:
            data = struct.pack(f"<{len(content)}{_CODES[kind]}", *content)
        entries += struct.pack("<HHI", tag, kind, len(content))
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", place_of_values + len(values))
            values += data + b"\0" * (len(data) % 2)
    return entries + struct.pack("<I", 0), values
