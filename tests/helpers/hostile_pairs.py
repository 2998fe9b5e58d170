"""Pairs as the web and full disks leave them: files that no training run may stumble over.

Each has a name, an image, a caption, and the reason for which it is skipped; None where it can be read after all.
"""

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ImageLike = dict[str, Any] | None


class HostilePair(NamedTuple):
    name: str
    image: ImageLike
    caption: Any
    reason: str | None


def pixels(size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encode(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(pixels())).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _bad_images(folder: Path) -> list[tuple[str, ImageLike, str]]:
    """(name, image, reason)."""
    whole = {kind: encode(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "EPS")}
    progressive = encode("JPEG", progressive=True)
    lab = encode("TIFF", Image.fromarray(pixels()).convert("LAB"))
    wild = encode("TIFF", Image.fromarray(np.full((9, 9), -7.5, np.float32)))
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>404 Not Found</html>")
    (folder / "folder.png").mkdir()
    given: list[tuple[str, bytes, str]] = [
        ("no bytes", b"", "empty"),
        ("an error page", b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "unknown_format"),
        ("an answer in JSON", b'{"error": "rate limit"}', "unknown_format"),
        ("zeros", bytes(4096), "unknown_format"),
        ("noise", pixels().tobytes(), "unknown_format"),
        ("a gzipped image", gzip.compress(whole["PNG"]), "unknown_format"),
        ("a zip", b"PK\x03\x04" + bytes(60), "unknown_format"),
        ("a PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(60), "unknown_format"),
        ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "unknown_format"),
        ("a video", b"\x00\x00\x00\x18ftypmp42" + bytes(60), "unknown_format"),
        ("an icon", whole["ICO"], "unknown_format"),
        ("PostScript", whole["EPS"], "unknown_format"),
        ("a signature alone", whole["PNG"][:8], "unknown_format"),
        ("a PNG of another signature", b"\x88" + whole["PNG"][1:], "unknown_format"),
        ("a PNG cut in its header", whole["PNG"][:20], "truncated"),
        ("a PNG cut in its pixels", half(whole["PNG"]), "truncated"),
        ("a PNG with a damaged header", flipped(whole["PNG"], 18), "unknown_format"),
        ("a PNG with damaged pixels", flipped(whole["PNG"], 60), "broken"),
        ("a PNG without pixels", png(0, 40), "unknown_format"),
        ("a bomb", png(30_000, 30_000), "too_large"),
        ("a bomb beyond integers", png(2**31 - 1, 2**31 - 1), "too_large"),
        ("a JPEG cut in its header", whole["JPEG"][:30], "truncated"),
        ("a JPEG cut in its pixels", half(whole["JPEG"]), "truncated"),
        ("a progressive JPEG cut in its pixels", half(progressive), "truncated"),
        ("a JPEG of its markers alone", b"\xff\xd8\xff\xd9", "unknown_format"),
        ("a GIF cut in its pixels", half(whole["GIF"]), "truncated"),
        ("a BMP cut in its pixels", half(whole["BMP"]), "truncated"),
        ("a BMP of a wild depth", whole["BMP"][:28] + b"\x63\x00" + whole["BMP"][30:], "broken"),
        ("a TIFF cut before its table", whole["TIFF"][:100], "unknown_format"),
        ("a TIFF in Lab colors", lab, "unsupported_mode"),
        ("a TIFF of negative light", wild, "out_of_range"),
        ("a WEBP cut in its pixels", half(whole["WEBP"]), "broken"),
        ("a WEBP of noise", whole["WEBP"][:16] + pixels().tobytes()[:500], "broken"),
        ("a PPM cut in its pixels", half(whole["PPM"]), "truncated"),
        ("a PPM beyond the limit", b"P6 20000 20000 255\n" + bytes(30), "too_large"),
    ]
    return [(name, {"bytes": content, "path": None}, reason) for name, content, reason in given] + [
        ("no image", None, "missing"),
        ("neither bytes nor path", {"bytes": None, "path": None}, "missing"),
        ("a path to nothing", {"bytes": None, "path": str(folder / "gone.png")}, "missing"),
        ("a path to an empty file", {"bytes": None, "path": str(folder / "empty.png")}, "empty"),
        ("a path to an error page", {"bytes": None, "path": str(folder / "page.jpg")}, "unknown_format"),
        ("a path to a folder", {"bytes": None, "path": str(folder / "folder.png")}, "unreadable"),
        ("an address", {"bytes": None, "path": "https://example.org/cat.jpg"}, "url"),
    ]


BAD_CAPTIONS: dict[str, Any] = {
    "no caption": None,
    "an empty caption": "",
    "a caption of blanks": " \t\n ",
    "a number that is none": float("nan"),
    "no captions": [],
    "empty captions": ["", None, "  "],
    "a JSON list of nothing": "[]",
    "a JSON list of empty captions": '["", null]',
    "bytes that are no UTF-8": b"caf\xe9",
    "half a surrogate pair": "a cat \ud83d",
    "captions that are all undecodable": ["\udcff", b"\xff\xfe"],
}

GOOD_CAPTIONS: dict[str, Any] = {
    "a caption with an end token": "a cat <|endoftext|> a dog",
    "a caption of 100,000 words": "word " * 100_000,
    "a caption from right to left": "\u202e\u05d7\u05ea\u05d5\u05dc",
    "a caption with a null": "a\x00cat",
    "a good caption among bad ones": ["", "\ud800", "a cat"],
}


def _good_images() -> dict[str, bytes]:
    """Odd, but images."""
    rgb = Image.fromarray(pixels())
    deep = Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "a PNG of 16 bits": encode("PNG", deep),
        "a PNG with alpha": encode("PNG", rgb.convert("RGBA")),
        "a palette": encode("PNG", rgb.convert("P")),
        "a CMYK JPEG": encode("JPEG", rgb.convert("CMYK")),
        "a photograph on its side": encode("JPEG", rgb, exif=turned),
        "a JPEG with a tail": encode("JPEG", rgb) + b"appended by a camera",
        "an animation": encode("GIF", rgb, save_all=True, append_images=[rgb.rotate(90)]),
        "one pixel": encode("PNG", rgb.crop((0, 0, 1, 1))),
        "a hair": encode("PNG", Image.new("RGB", (1, 5000), "red")),
    }


def zoo(folder: Path) -> list[HostilePair]:
    """All of them; files that must lie on a disk lie in `folder`."""
    fine = {"bytes": encode("PNG"), "path": None}
    return (
        [HostilePair(name, image, name, reason) for name, image, reason in _bad_images(folder)]
        + [HostilePair(name, fine, caption, "no_caption") for name, caption in BAD_CAPTIONS.items()]
        + [HostilePair(name, {"bytes": content, "path": None}, name, None) for name, content in _good_images().items()]
        + [HostilePair(name, fine, caption, None) for name, caption in GOOD_CAPTIONS.items()]
    )
