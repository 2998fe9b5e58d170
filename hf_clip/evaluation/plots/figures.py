"""Plots for people: what a run learnt, and what a model takes for what.

matplotlib is imported when one is drawn.
"""

# Shapes: N images, M captions.

import json
import re
import unicodedata
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hf_clip.evaluation.retrieval import RetrievalResult
from hf_clip.evaluation.template_study import WordingResult
from hf_clip.model.image_decoding_hf_clip import decode_image

# 8.5 inches at 200 dots are shown at half their size in a README, where 9 points then are 12 pixels.
WIDTH_INCHES, DOTS_PER_INCH = 8.5, 200
INK, FAINT, GREEN, RED, BLUE = "#1f2328", "#59636e", "#1a7f37", "#cf222e", "#0969da"
THUMBNAIL_PIXELS = 144
VARIATIONS = {chr(code) for code in range(0xFE00, 0xFE10)}

# DejaVu comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew. The others are used where installed.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


def plot_training(metrics: str | Path, output: str | Path) -> Path:
    """Loss by step, and R@1 where it was measured on the way, as PNG.

    Args:
        metrics: a file of JSON lines. Lines with `step` and `loss` make the loss curve; each further key that
            ends in `recall_at_1` (keys of nested objects are joined with dots, text to image is left out)
            makes a curve.
        output: path of the PNG.

    Returns:
        `output`.

    Raises:
        ImportError: without matplotlib.
        ValueError: if no line has a step and a loss.
    """
    losses, recalls = _read_curves(Path(metrics))
    if not losses:
        raise ValueError(f"{str(metrics)!r} has no line with 'step' and 'loss': log at least one training step.")
    with _style():
        figure = _figure(WIDTH_INCHES, 3.9)
        axes = figure.add_subplot()
        steps, values = np.array(sorted(losses.items()), dtype=float).T
        axes.plot(steps, values, color=BLUE, alpha=0.25 if len(steps) > 20 else 1, linewidth=1.2)
        if len(steps) > 20:
            axes.plot(steps, _smooth(values, len(values) // 25 + 1), color=BLUE, linewidth=1.8)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss", color=BLUE)
        axes.set_xlim(0, steps[-1] * 1.02)
        axes.set_ylim(bottom=min(0, np.nanmin(values)))
        if recalls:
            _plot_recalls(axes.twinx(), recalls)
        return _save(figure, output)


def _plot_recalls(axes, recalls: dict[str, dict[int, float]]) -> None:
    axes.grid(False)
    axes.spines["right"].set_visible(True)
    for color, (label, curve) in zip(cycle((GREEN, RED, "#8250df", "#9a6700")), recalls.items()):
        steps, values = zip(*sorted(curve.items()), strict=True)
        axes.plot(steps, values, color=color, marker="o", markersize=4, linewidth=1.5, label=_drawable(label))
        axes.annotate(
            f"{values[-1]:.2f}",
            (steps[-1], values[-1]),
            xytext=(-4, 6),
            textcoords="offset points",
            ha="right",
            color=color,
        )
    axes.set_ylabel("R@1, image to name", color=INK)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)


def _read_curves(path: Path) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """Loss by step, and R@1 by step for each key; the last line counts where a resumed run repeats a step."""
    losses: dict[int, float] = {}
    recalls: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = _flatten(json.loads(line))
        except (json.JSONDecodeError, AttributeError):
            # A run that was killed leaves half a line; the rest of its curve is sound.
            continue
        if "step" not in record:
            continue
        if record.get("loss") is not None:
            losses[record["step"]] = record["loss"]
        for key, value in record.items():
            if key.endswith("recall_at_1") and "text_to_image" not in key and value is not None:
                recalls.setdefault(_curve_label(key), {})[record["step"]] = value
    return losses, recalls


def _curve_label(key: str) -> str:
    """`evaluation.seen_concepts.image_to_text.recall_at_1` is the curve of the seen concepts."""
    path = key.removesuffix("recall_at_1").replace("image_to_text", "").strip("._/ ")
    return re.split(r"[./]+", path)[-1].replace("_", " ") or "R@1"


def _flatten(record: Mapping, prefix: str = "") -> dict:
    flat = {}
    for key, value in record.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over up to `width` values on either side, fewer at the ends."""
    sums = np.concatenate([[0], np.cumsum(values)])
    positions = np.arange(len(values))
    low, high = np.maximum(positions - width, 0), np.minimum(positions + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def plot_similarity(images: Sequence, captions: Sequence[str], cosines_NM, output: str | Path) -> Path:
    """Heat map of the cosines of N images (columns) and M captions (rows), as PNG.

    Where N equals M, `captions[i]` is taken to be that of `images[i]`, and its cell is framed. About 12 by
    12 can be read well.

    Args:
        images: of any kind that `decode_image` reads.
        cosines_NM: (N, M) tensor or array.

    Raises:
        ImportError: without matplotlib.
        ValueError: if the shapes do not fit.
    """
    cosines = np.asarray(cosines_NM, dtype=float)
    if cosines.shape != (len(images), len(captions)) or not cosines.size:
        raise ValueError(
            f"cosines have the shape {cosines.shape} for {len(images)} images x {len(captions)} captions."
        )
    columns, rows = cosines.shape
    with _style():
        # 2.3 inches are for the captions; cells are square; one more row is for the images.
        cell = min((WIDTH_INCHES - 2.4) / columns, 1)
        figure = _figure(WIDTH_INCHES, cell * (rows + 1.15) + 0.35)
        axes = figure.add_subplot()
        # A scale wider than the data keeps the palest cell apart from the page, and the darkest from black.
        slack = 0.15 * (cosines.max() - cosines.min()) + 1e-6
        low, high = cosines.min() - slack, cosines.max() + slack
        heat = axes.imshow(cosines.T, cmap="Blues", vmin=low, vmax=high)
        for column in range(columns):
            _show_image(axes, images[column], (column - 0.44, column + 0.44, -0.6, -1.48))
            for row in range(rows):
                # Adding 0 turns -0.00 into 0.00.
                value = round(cosines[column, row], 2) + 0.0
                red, green, blue, _ = heat.to_rgba(cosines[column, row])
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
            _shorten(axes.text(-0.6, row, _drawable(caption), ha="right", va="center"), 2.3)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        framed = " The framed cells belong together." if rows == columns else ""
        axes.set_xlabel(f"Cosine of each image and each caption.{framed}", color=FAINT)
        return _save(figure, output)


def plot_wording(result: WordingResult, output: str | Path) -> Path:
    """Accuracy by each template, best first, beside that of all together, as PNG. Raises ImportError as above."""
    ranked = sorted(result.templates, key=lambda entry: entry[1])
    with _style():
        figure = _figure(WIDTH_INCHES, 0.9 + 0.17 * len(ranked))
        axes = figure.add_subplot()
        axes.scatter([accuracy for _, accuracy in ranked], range(len(ranked)), color=BLUE, s=16)
        axes.set_yticks(range(len(ranked)), [_drawable(template[:60]) for template, _ in ranked], fontsize=7)
        axes.set_ylim(-0.8, len(ranked) - 0.2)
        axes.axvline(result.ensemble, color=GREEN, linewidth=1.2, label=f"all together: {result.ensemble:.3f}")
        axes.axvline(
            result.mean, color=FAINT, linestyle="--", label=f"mean: {result.mean:.3f} ± {result.deviation:.3f}"
        )
        axes.set_xlabel(f"top-1 over {result.images} images of {result.classes} classes")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.6 / (0.9 + 0.17 * len(ranked))), ncols=2)
        return _save(figure, output)


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
    with _style():
        figure = _figure(WIDTH_INCHES, height)
        top = height
        for title, color, indices in (
            ("Best: the true name first, by the widest margin", GREEN, best),
            ("Worst: the true name placed last", RED, worst),
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
        return _save(figure, output)


def _draw_card(axes, result: RetrievalResult, index: int, image, height: float) -> None:
    """One image and its names, in an axes whose units are inches from the top left."""
    width, edge, line = WIDTH_INCHES / 3, 0.84, 0.19
    axes.set_axis_off()
    _show_image(axes, image, (0.12, 0.12 + edge, 0.06 + edge, 0.06))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    target, rank = result.targets[index], int(result.ranks.ranks_N[index])
    left, right = 0.12 + edge + 0.1, width - 0.1
    title = axes.text(left, 0.14, _drawable(result.names[target]), va="center", fontsize=8.5, fontweight="bold")
    _shorten(title, right - left)
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
        _shorten(axes.text(left, y, mark + _drawable(result.names[name]), **style), right - left - 0.42)
        axes.text(right, y, f"{cosine:.2f}", ha="right", **style)


def _show_image(axes, image, extent: tuple[float, float, float, float]) -> None:
    """Draw an image whole, on a white square with a thin edge."""
    size = THUMBNAIL_PIXELS, THUMBNAIL_PIXELS
    square = ImageOps.pad(decode_image(image), size, Image.Resampling.LANCZOS, color="white")
    square = ImageOps.expand(square.crop((1, 1, size[0] - 1, size[1] - 1)), 1, "#d1d9e0")
    axes.imshow(square, extent=extent, interpolation="antialiased", aspect="auto")


def _drawable(text: str) -> str:
    """One line of letters that the fonts at hand have; others become an empty box."""
    # Emoji are joined and colored by invisible letters, which fonts without emoji draw as boxes.
    one_line = " ".join(text.split())
    visible = (c for c in one_line if unicodedata.category(c) not in ("Cc", "Cf") and c not in VARIATIONS)
    composed = unicodedata.normalize("NFC", "".join(visible))
    missing = {letter for letter in composed if ord(letter) not in _glyphs()}
    if missing:
        listed = "".join(sorted(missing))
        warnings.warn(
            f"no font at hand has {listed!r}, drawn as boxes: install one that has, such as Noto Sans CJK.",
            stacklevel=3,
        )
    return "".join("□" if letter in missing else letter for letter in composed)


def _shorten(text, max_inches: float) -> None:
    """Cut what a text artist says until it is at most `max_inches` wide."""
    renderer = text.figure.canvas.get_renderer()
    whole = text.get_text()

    def is_too_wide(kept: int) -> bool:
        text.set_text(whole if kept == len(whole) else whole[:kept].rstrip() + "…")
        return text.get_window_extent(renderer).width > max_inches * DOTS_PER_INCH

    if is_too_wide(len(whole)):
        is_too_wide(bisect_left(range(len(whole)), True, key=is_too_wide) - 1)


@cache
def _fonts() -> dict[str, str]:
    """File of each of `FONTS` that is installed, by family."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    found = [family for family in FONTS if family in installed]
    return {family: font_manager.findfont(font_manager.FontProperties(family=[family])) for family in found}


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(code for file in _fonts().values() for code in font_manager.get_font(file).get_charmap())


def _style():
    """The settings that all plots share, for the time that one is drawn."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'hf_clip[demo]'.") from error
    settings = {
        "font.family": list(_fonts()),
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#d1d9e0",
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#eaeef2",
        "xtick.color": FAINT,
        "ytick.color": INK,
        # Captions hold dollar signs, and mean them.
        "text.parse_math": False,
    }
    return matplotlib.rc_context(settings)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it holds on to figures, and picks a window system.
    figure = Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, output: str | Path) -> Path:
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, bbox_inches="tight", pad_inches=0.1)
    return output
