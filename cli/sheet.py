"""A contact sheet: images in rows, with their best labels below each."""

import math
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hf_clip.model.image_decoding_hf_clip import decode_image

# Sizes in pixels.
THUMBNAIL, MARGIN, LINE, LINES = 160, 8, 14, 2


def write_sheet(shown: Iterable[tuple[str | Image.Image, list[dict]]], file: Path) -> None:
    """Writes the sheet of (image, labels with their scores) as a PNG that says who drew it."""
    mark = PngInfo()
    # As `outputs.PNG_MARK` has it, by which a sheet is known from an image of somebody's.
    mark.add_text("Software", "hf-clip")
    draw_sheet(shown).save(file, "PNG", pnginfo=mark)


def draw_sheet(shown: Iterable[tuple[str | Image.Image, list[dict]]]) -> Image.Image:
    """Thumbnails in rows, with the best labels and their scores below each."""
    shown = list(shown)
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown)))))
    width, height = THUMBNAIL + MARGIN, THUMBNAIL + MARGIN + LINE * LINES
    sheet = Image.new("RGB", (columns * width + MARGIN, math.ceil(len(shown) / columns) * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, guess) in enumerate(shown):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        small = decode_image(image).copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        sheet.paste(small, (left + (THUMBNAIL - small.width) // 2, top + (THUMBNAIL - small.height) // 2))
        texts = [f"{one['score']:.2f} {one['label']}" for one in guess[:LINES]] or ["-"]
        for line, text in enumerate(texts):
            at = (left, top + THUMBNAIL + line * LINE)
            draw.text(at, _shortened(text, font), "black" if line == 0 else "gray", font)
    return sheet


def _shortened(text: str, font) -> str:
    # What does not fit on one line of a sheet, such as a line break, is a space.
    text = " ".join(text.split())
    while font.getlength(text) > THUMBNAIL:
        text = text.removesuffix("...")[:-1] + "..."
    return text
