"""Contact sheets: images in rows, with their best labels below each; and groups, each with its best image first."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hf_clip.model.image_decoding_hf_clip import decode_image

# Sizes in pixels.
THUMBNAIL, MARGIN, LINE, LINES = 160, 8, 14, 2


def write_sheet(shown: Iterable[tuple[str | Image.Image, list[dict]]], file: Path) -> None:
    """Writes the sheet of (image, labels with their scores) as a PNG that says who drew it."""
    _save(draw_sheet(shown), file)


def _save(sheet: Image.Image, file: Path) -> None:
    mark = PngInfo()
    # As `outputs.PNG_MARK` has it, by which a sheet is known from an image of somebody's.
    mark.add_text("Software", "hf-clip")
    sheet.save(file, "PNG", pnginfo=mark)


def write_groups(rows: Sequence[Sequence[tuple[Image.Image, str, str]]], file: Path) -> None:
    """Writes groups of (image, first line, second line), a row each; the first image of a row has a frame."""
    width, height = THUMBNAIL + MARGIN, THUMBNAIL + MARGIN + LINE * LINES
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * width + MARGIN, len(rows) * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, row in enumerate(rows):
        for place, (image, first, second) in enumerate(row):
            left, top = MARGIN + place * width, MARGIN + index * height
            at = _paste(sheet, image, left, top)
            if not place:
                draw.rectangle((at[0] - 3, at[1] - 3, at[2] + 2, at[3] + 2), outline="green", width=2)
            for line, text in enumerate((first, second)):
                color = "black" if line == 0 else "gray"
                draw.text((left, top + THUMBNAIL + line * LINE), _shortened(text, font), color, font)
    _save(sheet, file)


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> tuple[int, int, int, int]:
    """Draws an image in the middle of its place, and says where it is."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    at = left + (THUMBNAIL - small.width) // 2, top + (THUMBNAIL - small.height) // 2
    sheet.paste(small, at)
    return (*at, at[0] + small.width, at[1] + small.height)


def draw_sheet(shown: Iterable[tuple[str | Image.Image, list[dict]]]) -> Image.Image:
    """Thumbnails in rows, with the best labels and their scores below each."""
    shown = list(shown)
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown)))))
    width, height = THUMBNAIL + MARGIN, THUMBNAIL + MARGIN + LINE * LINES
    sheet = Image.new("RGB", (columns * width + MARGIN, math.ceil(len(shown) / columns) * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, guess) in enumerate(shown):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        _paste(sheet, decode_image(image), left, top)
        texts = [(f"{one['score']:.2f}", str(one["label"])) for one in guess[:LINES]] or [("-", "")]
        for line, (score, label) in enumerate(texts):
            at, color = top + THUMBNAIL + line * LINE, "black" if line == 0 else "gray"
            # The font's own space is hardly one.
            indent = math.ceil(font.getlength(score)) + 6
            draw.text((left, at), score, color, font)
            draw.text((left + indent, at), _shortened(label, font, THUMBNAIL - indent), color, font)
    return sheet


def _shortened(text: str, font, width: int = THUMBNAIL) -> str:
    # What does not fit on one line of a sheet, such as a line break, is a space.
    text = " ".join(text.split())
    while font.getlength(text) > width:
        text = text.removesuffix("...")[:-1] + "..."
    return text
