"""Sheets that show images: cosines of images and captions, and the best and worst retrievals."""

# Shapes: N images, M captions.

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hf_clip.evaluation.plots.canvas import (
    FAINT,
    GREEN,
    INK,
    RED,
    WIDTH_INCHES,
    drawable,
    new_figure,
    save,
    shorten,
    style,
)
from hf_clip.evaluation.retrieval import RetrievalResult
from hf_clip.model.image_decoding_hf_clip import decode_image

THUMBNAIL_PIXELS = 144


def plot_similarity(images: Sequence, captions: Sequence[str], cosines, output: str | Path) -> Path:
    """Heat map of the cosines of N images (columns) and M captions (rows), as PNG.

    Where N equals M, `captions[i]` is taken to be that of `images[i]`, and its cell is framed. About 12 by
    12 can be read well.

    Args:
        images: of any kind that `decode_image` reads.
        cosines: (N, M) tensor or array.

    Raises:
        ImportError: without matplotlib.
        ValueError: if the shapes do not fit.
    """
    cosines_NM = np.asarray(cosines, dtype=float)
    if cosines_NM.shape != (len(images), len(captions)) or not cosines_NM.size:
        raise ValueError(
            f"`cosines` have the shape {cosines_NM.shape} for {len(images)} images x {len(captions)} captions."
        )
    columns, rows = cosines_NM.shape
    with style():
        # 2.3 inches are for the captions; cells are square; one more row is for the images.
        cell = min((WIDTH_INCHES - 2.4) / columns, 1)
        figure = new_figure(WIDTH_INCHES, cell * (rows + 1.15) + 0.35)
        axes = figure.add_subplot()
        # A scale wider than the data keeps the palest cell apart from the page, and the darkest from black.
        slack = 0.15 * (cosines_NM.max() - cosines_NM.min()) + 1e-6
        low, high = cosines_NM.min() - slack, cosines_NM.max() + slack
        heat = axes.imshow(cosines_NM.T, cmap="Blues", vmin=low, vmax=high)
        for column in range(columns):
            _show_image(axes, images[column], (column - 0.44, column + 0.44, -0.6, -1.48))
            for row in range(rows):
                # Adding 0 turns -0.00 into 0.00.
                value = round(cosines_NM[column, row], 2) + 0.0
                red, green, blue, _ = heat.to_rgba(cosines_NM[column, row])
                color = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else INK
                size = min(9, 17 * cell)
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=size)
            if rows == columns:
                axes.add_patch(_frame(column))
        axes.set_xlim(-0.52, columns - 0.48)
        axes.set_ylim(rows - 0.48, -1.6)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for row, caption in enumerate(captions):
            shorten(axes.text(-0.6, row, drawable(caption), ha="right", va="center"), 2.3)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        framed = " The framed cells belong together." if rows == columns else ""
        axes.set_xlabel(f"Cosine of each image and each caption.{framed}", color=FAINT)
        return save(figure, output)


def plot_captioned(images: Sequence, captions: Sequence[str], output: str | Path, *, columns: int = 6) -> Path:
    """Contact sheet of images with a caption below each, as PNG.

    Args:
        images: of any kind that `decode_image` reads.
        captions: one an image; those that are long are cut.

    Raises:
        ImportError: without matplotlib.
        ValueError: there is no image, or another number of captions.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions: give as many of both, at least one.")
    rows = -(-len(images) // columns)
    cell, text, margin = (WIDTH_INCHES - 0.1) / columns, 0.24, 0.05
    height = rows * (cell + text) + 2 * margin
    with style():
        figure = new_figure(WIDTH_INCHES, height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            row, column = divmod(index, columns)
            left, top = margin + column * cell, margin + row * (cell + text)
            _show_image(axes, image, (left + 0.04, left + cell - 0.04, top + cell - 0.04, top + 0.04))
            middle = left + cell / 2
            shorten(axes.text(middle, top + cell + text / 2, drawable(caption), ha="center", va="center"), cell - 0.1)
        axes.set_xlim(0, WIDTH_INCHES)
        axes.set_ylim(height, 0)
        return save(figure, output)


def _frame(index: int):
    from matplotlib.patches import Rectangle

    return Rectangle((index - 0.48, index - 0.48), 0.96, 0.96, fill=False, edgecolor=RED, linewidth=1.6)


def plot_retrievals(result: RetrievalResult, images, output: str | Path, *, count: int = 6) -> Path:
    """Contact sheet of the `count` best and worst retrievals as PNG.

    Each image stands with its true name, that name's rank, and the three names ranked first with their
    cosines, the true one marked.

    Args:
        images: gives an image by its row in the evaluated data, `images[row]`: a list of them all, a
            column of a data set, or a mapping. Images are of any kind that `decode_image` reads.

    Raises:
        ImportError: without matplotlib.
        ValueError: if fewer than two images were evaluated.
    """
    best, worst = result.best_and_worst(count)
    if not best:
        raise ValueError(f"{len(result.rows)} image was evaluated: a best and a worst one need two.")
    columns = 3
    rows = -(-len(best) // columns)
    card, heading, margin = 1.06, 0.36, 0.08
    height = 2 * (rows * card + heading) + margin
    with style():
        figure = new_figure(WIDTH_INCHES, height)
        top = height
        for title, color, indices in (
            (_heading(result, best, "Best: the true name first, by the widest margin", "highest"), GREEN, best),
            (_heading(result, worst, "Worst: the true name first, by the narrowest margin", "lowest"), RED, worst),
        ):
            place = (0.12 / WIDTH_INCHES, (top - 0.26) / height)
            figure.text(*place, title, color=color, fontsize=10.5, fontweight="bold")
            figure.text(0.988, place[1], "first three names, cosine", color=FAINT, ha="right")
            for position, index in enumerate(indices):
                row, column = divmod(position, columns)
                bottom = top - heading - (row + 1) * card
                left, width = column / columns, 1 / columns
                axes = figure.add_axes((left, bottom / height, width, card / height))
                _draw_card(axes, result, index, images[result.rows[index]], card)
            top -= heading + rows * card
        return save(figure, output)


def _heading(result: RetrievalResult, indices: Sequence[int], if_all_first: str, ranked: str) -> str:
    """What is true of all images below the heading: of a weak model the best are not all first either."""
    is_first = [int(result.ranks.ranks[index]) == 1 for index in indices]
    return if_all_first if all(is_first) else f"{if_all_first.partition(':')[0]}: the true name ranked {ranked}"


def _draw_card(axes, result: RetrievalResult, index: int, image, height: float) -> None:
    """One image and its names, in an axes whose units are inches from the top left."""
    width, edge, line = WIDTH_INCHES / 3, 0.84, 0.19
    axes.set_axis_off()
    _show_image(axes, image, (0.12, 0.12 + edge, 0.06 + edge, 0.06))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    target, rank = result.targets[index], int(result.ranks.ranks[index])
    left, right = 0.12 + edge + 0.1, width - 0.1
    title = axes.text(left, 0.14, drawable(result.names[target]), va="center", fontsize=8.5, fontweight="bold")
    shorten(title, right - left)
    place = f"rank {rank:,} of {len(result.names):,}"
    axes.text(left, 0.14 + line * 0.9, place, va="center", fontsize=7.5, color=FAINT)
    for position, (name, cosine) in enumerate(result.top_names(index, 3)):
        is_true = name == target
        style = {
            "va": "center",
            "fontsize": 8,
            "color": GREEN if is_true else INK,
            "fontweight": "bold" if is_true else "normal",
        }
        y = 0.14 + line * (2 + position)
        mark = "✓ " if is_true else ""
        shorten(axes.text(left, y, mark + drawable(result.names[name]), **style), right - left - 0.42)
        axes.text(right, y, f"{cosine:.2f}", ha="right", **style)


def _show_image(axes, image, extent: tuple[float, float, float, float]) -> None:
    """Draw an image whole, on a white square with a thin edge."""
    size = THUMBNAIL_PIXELS, THUMBNAIL_PIXELS
    square = ImageOps.pad(decode_image(image), size, Image.Resampling.LANCZOS, color="white")
    square = ImageOps.expand(square.crop((1, 1, size[0] - 1, size[1] - 1)), 1, "#d1d9e0")
    axes.imshow(square, extent=extent, interpolation="antialiased", aspect="auto")
