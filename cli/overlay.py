"""The sheet of `hf-clip locate`: images, beside them their heat maps and boxes, and a legend below."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

# Sizes in pixels.
SIDE, MARGIN, LINE, SWATCH = 224, 8, 16, 10
COLUMNS = 3
# Those that people with any color vision tell apart (Okabe and Ito 2008), dark enough for white letters.
COLORS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (180, 140, 0), (86, 140, 200), (120, 60, 160),
    (90, 90, 90), (170, 30, 60), (60, 110, 40),
)  # fmt: skip
# Of the heat map over the image where a score is 1.
OPACITY = 0.6


def color_of(index: int) -> tuple[int, int, int]:
    """The color of a label by its index: behind the first ones, hues that are far apart."""
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.8, 0.6)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_located(
    image: Image.Image, scores: torch.Tensor, boxes: Sequence[dict], labels: Sequence[str], threshold: float
) -> Image.Image:
    """The image, and beside it what was found in it.

    Args:
        scores: (L, H, V) of the labels, and of the rejection class behind them.
        boxes: as `ZeroShotClassifier.boxes` gives them.
        labels: all L.
        threshold: places with lower scores have no color.
    """
    scale = SIDE / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    small = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    best_HV, index_HV = torch.nn.functional.interpolate(scores[None], size=size[::-1], mode="bilinear")[0].max(dim=0)
    is_found_HV = (best_HV >= threshold) & (index_HV < len(labels))
    palette = torch.tensor([color_of(at) for at in range(len(scores))], dtype=torch.uint8)
    heat = Image.fromarray(palette[index_HV].numpy())
    opacity = Image.fromarray((best_HV * is_found_HV * OPACITY * 255).round().to(torch.uint8).numpy())
    found = Image.composite(heat, small, opacity)
    draw, font = ImageDraw.Draw(found), ImageFont.load_default(11)
    # The best lies on top.
    for one in reversed(boxes):
        left, top, right, bottom = (one["box"][name] * scale for name in ("xmin", "ymin", "xmax", "ymax"))
        color, text = color_of(labels.index(one["label"])), f"{one['score']:.2f}"
        draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=color, width=2)
        draw.rectangle((left, top, left + font.getlength(text) + 4, top + 13), fill=color)
        draw.text((left + 2, top), text, "white", font)
    pair = Image.new("RGB", (2 * SIDE + MARGIN // 2, SIDE), "white")
    for place, each in enumerate((small, found)):
        left, top = place * (SIDE + MARGIN // 2) + (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
        pair.paste(each, (left, top))
        # White images would have no edge on the sheet.
        ImageDraw.Draw(pair).rectangle((left, top, left + size[0] - 1, top + size[1] - 1), outline="lightgray")
    return pair


def write_located(pairs: Sequence[Image.Image], shown: Sequence[str], labels: Sequence[str], file: Path) -> None:
    """Writes the pairs of `draw_located` and a legend of the labels in them, as a PNG that says who drew it."""
    columns = min(len(pairs), COLUMNS)
    width = columns * (pairs[0].width + 2 * MARGIN)
    rows = math.ceil(len(pairs) / columns)
    font = ImageFont.load_default(12)
    places, left, line = [], MARGIN, 0
    for label in shown:
        text = " ".join(label.split())
        length = SWATCH + 4 + font.getlength(text) + 2 * MARGIN
        if left + length > width and left > MARGIN:
            left, line = MARGIN, line + 1
        places.append((text, label, left, line))
        left += length
    top = rows * (SIDE + 2 * MARGIN)
    sheet = Image.new("RGB", (width, top + (line + 1) * LINE + MARGIN), "white")
    for index, pair in enumerate(pairs):
        at = index % columns * (pair.width + 2 * MARGIN) + MARGIN, index // columns * (SIDE + 2 * MARGIN) + MARGIN
        sheet.paste(pair, at)
    draw = ImageDraw.Draw(sheet)
    for text, label, left, line in places:
        y = top + line * LINE
        draw.rectangle((left, y + 3, left + SWATCH, y + 3 + SWATCH), fill=color_of(labels.index(label)))
        draw.text((left + SWATCH + 4, y), text, "black", font)
    mark = PngInfo()
    # As `outputs.PNG_MARK` has it, by which a sheet is known from an image of somebody's.
    mark.add_text("Software", "hf-clip")
    sheet.save(file, "PNG", pnginfo=mark)
