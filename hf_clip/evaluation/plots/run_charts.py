"""Plots of runs side by side, and of mixtures of weights. matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from hf_clip.evaluation.plots.canvas import (
    BLUE,
    FAINT,
    GREEN,
    RED,
    WIDTH_INCHES,
    drawable,
    new_figure,
    save,
    style,
)

COLORS = (FAINT, BLUE, GREEN, RED, "#8250df", "#9a6700")


def plot_runs(rows: Mapping[str, Sequence[float | None]], names: Sequence[str], output: str | Path) -> Path:
    """A row of bars for each number, one bar a run, as PNG.

    Args:
        rows: by the name of a number in 0 to 1, its value in each run; None where it was not measured.
        names: of the runs.
        output: path of the PNG.

    Raises:
        ImportError: without matplotlib. ValueError: there is no number.
    """
    if not rows:
        raise ValueError("there is no number to draw: evaluate the runs on the same data.")
    with style():
        figure = new_figure(WIDTH_INCHES, 0.9 + len(rows) * (0.24 * len(names) + 0.14))
        axes = figure.add_subplot()
        height = 0.84 / len(names)
        for place, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
            for row, values in enumerate(rows.values()):
                value, at = values[place], row + (place - (len(names) - 1) / 2) * height
                label = drawable(name) if row == 0 else None
                axes.barh(at, value or 0.0, height * 0.92, color=color, label=label)
                shown = "-" if value is None else f"{value:.3f}"
                axes.annotate(shown, (value or 0.0, at), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axes.set_yticks(range(len(rows)), [drawable(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, max([0.1, *(value or 0.0 for values in rows.values() for value in values)]) * 1.12)
        axes.grid(False, axis="y")
        # Above the bars, which may fill the whole.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), frameon=False)
        return save(figure, output)


def plot_mixture(curve: Sequence[Mapping[str, Any]], best: Mapping[str, Any], output: str | Path) -> Path:
    """Every number by the fraction of the fine-tuned weights, with a line at the best mixture, as PNG.

    Args:
        curve: mixtures of two models, each with `weights` and `numbers`.
        best: the one that was picked.
        output: path of the PNG.

    Raises:
        ImportError: without matplotlib.
    """
    fractions = [entry["weights"][1] for entry in curve]
    with style():
        figure = new_figure(WIDTH_INCHES, 3.9)
        axes = figure.add_subplot()
        for color, name in zip(cycle(COLORS[1:]), best["numbers"], strict=False):
            values = [entry["numbers"][name] for entry in curve]
            axes.plot(fractions, values, color=color, marker="o", markersize=4, linewidth=1.5, label=drawable(name))
        axes.axvline(best["weights"][1], color=FAINT, linewidth=1, linestyle=":")
        axes.set_xlabel("fraction of the fine-tuned weights")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        return save(figure, output)
