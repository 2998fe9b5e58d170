"""The curves of a training run: its loss, and what was measured on the way."""

import json
import re
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import numpy as np

from hf_clip.evaluation.plots.canvas import BLUE, GREEN, INK, RED, WIDTH_INCHES, drawable, new_figure, save, style

# Of the number at a curve's end, in units of R@1.
LABEL_HEIGHT = 0.06


def plot_training(metrics: str | Path, output: str | Path) -> Path:
    """Loss by step, and R@1 where it was measured on the way, as PNG.

    Args:
        metrics: a file of JSON lines. Lines with `step` and `loss` make the loss curve; each further key that
            ends in `recall_at_1` (keys of nested objects are joined with dots, not those of text to image)
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
    with style():
        figure = new_figure(WIDTH_INCHES, 3.9)
        axes = figure.add_subplot()
        steps, values = np.array(sorted(losses.items()), dtype=float).T
        axes.plot(steps, values, color=BLUE, alpha=0.25 if len(steps) > 20 else 1, linewidth=1.2)
        if len(steps) > 20:
            axes.plot(steps, _smooth(values, len(values) // 25 + 1), color=BLUE, linewidth=1.8)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss", color=BLUE)
        # Evaluations may come before the first logged step and behind the last.
        last = max(steps[-1], *(max(curve) for curve in recalls.values()), 1)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.margins(y=0.08)
        if recalls:
            _plot_recalls(axes.twinx(), recalls)
        return save(figure, output)


def _plot_recalls(axes, recalls: dict[str, dict[int, float]]) -> None:
    axes.grid(False)
    axes.spines["right"].set_visible(True)
    heights: list[float] = []
    for color, (label, curve) in zip(cycle((GREEN, RED, "#8250df", "#9a6700")), recalls.items()):
        steps, values = zip(*sorted(curve.items()), strict=True)
        axes.plot(steps, values, color=color, marker="o", markersize=4, linewidth=1.5, label=drawable(label))
        # Above the last point, and above what stands there already.
        height = max([values[-1], *(one + LABEL_HEIGHT for one in heights if abs(one - values[-1]) < LABEL_HEIGHT)])
        heights.append(height)
        axes.annotate(
            f"{values[-1]:.2f}",
            (steps[-1], height),
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
