"""Plots of results: confusions, calibration, few-shot curves, robustness. matplotlib is imported when one is drawn."""

# Shapes: C classes.

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_clip.evaluation import metrics
from hf_clip.evaluation.comparison import compare
from hf_clip.evaluation.few_shot import FewShotResult
from hf_clip.evaluation.languages import WAYS, LanguagesResult
from hf_clip.evaluation.linear_probe import LinearProbeResult
from hf_clip.evaluation.plots.canvas import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    RED,
    WIDTH_INCHES,
    drawable,
    new_figure,
    save,
    style,
)
from hf_clip.evaluation.retrieval import RetrievalResult
from hf_clip.evaluation.robustness import RobustnessResult
from hf_clip.evaluation.template_study import PerTemplateAccuracy
from hf_clip.evaluation.zero_shot import ZeroShotResult

logger = logging.getLogger(__name__)

# More rows than these cannot be read.
CLASSES_SHOWN = 30


def plot_confusion(result: ZeroShotResult, output: str | Path) -> Path:
    """Fractions of each class's images by the class that came first, as PNG.

    Of more than 30 classes those that are confused most are shown. Raises ImportError without matplotlib, and
    ValueError for a result of images with several labels.
    """
    if result.confusion_matrix is None:
        raise ValueError("images with several labels have no confusion: see `per_class` instead.")
    counts_CC = result.confusion_matrix
    wrong_CC = counts_CC * (1 - np.eye(len(counts_CC), dtype=counts_CC.dtype))
    busiest = np.argsort(-(wrong_CC.sum(0) + wrong_CC.sum(1)), kind="stable")[:CLASSES_SHOWN]
    shown_C = np.sort(busiest)
    fractions_CC = counts_CC[np.ix_(shown_C, shown_C)] / np.maximum(counts_CC[shown_C].sum(1, keepdims=True), 1)
    names = [drawable(result.labels[index][:24]) for index in shown_C]
    with style():
        cell = (WIDTH_INCHES - 2.4) / max(len(names), 8)
        figure = new_figure(WIDTH_INCHES, cell * len(names) + 1.6)
        axes = figure.add_subplot()
        axes.imshow(fractions_CC, cmap="Blues", vmin=0, vmax=1)
        size = min(8, 60 * cell)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.grid(False)
        for row, column in np.argwhere(fractions_CC >= 0.005):
            color = "white" if fractions_CC[row, column] > 0.6 else INK
            text = f"{100 * fractions_CC[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size * 0.8)
        shown = "" if len(names) == len(counts_CC) else f"; {len(names)} of {len(counts_CC)} classes"
        axes.set_xlabel(f"class that came first, % of the true class{shown}", color=FAINT)
        axes.set_ylabel("true class", color=FAINT)
        return save(figure, output)


def plot_calibration(result: ZeroShotResult, output: str | Path) -> Path:
    """Accuracy by confidence, with the fraction of the images, as PNG. Raises ImportError without matplotlib."""
    counts_G, confidences_G, hits_G = metrics.calibration_curve(result.confidences, result.is_hit)
    used = counts_G > 0
    with style():
        figure = new_figure(WIDTH_INCHES * 0.6, 4)
        axes = figure.add_subplot()
        width = 1 / len(counts_G)
        axes.bar((np.arange(len(counts_G)) + 0.5) * width, counts_G / counts_G.sum(), 0.9 * width, color="#d1d9e0")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        axes.plot(confidences_G[used], hits_G[used], color=BLUE, marker="o", markersize=4)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence (bars: fraction of the images)")
        axes.set_ylabel("accuracy")
        if result.calibration_error is not None:
            axes.set_title(f"expected calibration error {result.calibration_error:.3f}", fontsize=9)
        return save(figure, output)


def plot_recall(result: RetrievalResult, output: str | Path) -> Path:
    """Fraction of the images whose text is among the first k, for every k, as PNG. Raises ImportError as above."""
    ranks = np.sort(result.ranks.ranks.numpy())
    with style():
        figure = new_figure(WIDTH_INCHES * 0.7, 3.2)
        axes = figure.add_subplot()
        axes.step(ranks, np.arange(1, len(ranks) + 1) / len(ranks), where="post", color=BLUE)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"k, of {len(result.names):,} candidates")
        axes.set_ylabel("R@k, image to text")
        return save(figure, output)


def plot_few_shot(result: FewShotResult, output: str | Path) -> Path:
    """Accuracy by shots, a standard deviation up and down, zero-shot's beside it, as PNG.

    Raises ImportError without matplotlib.
    """
    shots = [row["shots"] for row in result.shots]
    deviations = [row["standard_deviation"] or 0 for row in result.shots]
    with style():
        figure = new_figure(WIDTH_INCHES * 0.7, 3.6)
        axes = figure.add_subplot()
        means = [row["mean"] for row in result.shots]
        axes.errorbar(shots, means, deviations, color=BLUE, marker="o", markersize=4, capsize=3)
        ticks = {count: str(count) for count in shots}
        if result.zero_shot_top_1 is not None:
            # No place on a logarithmic axis is 0: it stands half as far as the fewest shots.
            ticks[min(shots) / 2] = "0"
            axes.plot([min(shots) / 2], [result.zero_shot_top_1], color=GREEN, marker="*", markersize=9, zorder=3)
            axes.axhline(result.zero_shot_top_1, color=GREEN, linewidth=1, label="zero-shot")
            axes.legend(loc="lower right", frameon=False)
        axes.axhline(1 / result.classes, color=FAINT, linewidth=1, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks([*ticks], [*ticks.values()])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"images of each of {result.classes} classes (dashed: chance)")
        axes.set_ylabel(f"top-1, {result.num_seeds} trials")
        return save(figure, output)


def plot_sweep(result: LinearProbeResult, output: str | Path) -> Path:
    """Accuracy on the validation split by penalty, the chosen one marked, as PNG. Raises ImportError as above."""
    penalties, scores = zip(*sorted(result.sweep.items()), strict=True)
    with style():
        figure = new_figure(WIDTH_INCHES * 0.7, 3.2)
        axes = figure.add_subplot()
        axes.plot(penalties, scores, color=BLUE, marker="o", markersize=4)
        axes.plot([result.penalty], [result.validation_top_1], color=RED, marker="o", markersize=7, fillstyle="none")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("L2 penalty")
        axes.set_ylabel("top-1 on the validation split")
        return save(figure, output)


def plot_robustness(result: RobustnessResult, output: str | Path) -> Path:
    """Accuracy by severity of each corruption, or on both data sets, as PNG. Raises ImportError as above."""
    with style():
        figure = new_figure(WIDTH_INCHES * 0.8, 3.8)
        axes = figure.add_subplot()
        if result.corruptions:
            for index, (name, scores) in enumerate(result.corruptions.items()):
                marker = "os^vDPX*<>"[index % 10]
                points = [0, *scores], [result.top_1, *scores.values()]
                axes.plot(*points, marker=marker, markersize=4, label=name.replace("_", " "))
            axes.set_xlabel("severity (0: as it is)")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        else:
            bars = {"as it is": result.top_1, "shifted": result.shifted_top_1, "expected": result.expected_top_1}
            known = {name: value for name, value in bars.items() if value is not None}
            axes.bar(list(known), list(known.values()), 0.6, color=[BLUE, GREEN, "#d1d9e0"][: len(known)])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("top-1")
        return save(figure, output)


def plot_per_template_accuracy(result: PerTemplateAccuracy, output: str | Path) -> Path:
    """Accuracy by each template, best first, beside that of all together, as PNG. Raises ImportError as above."""
    ranked = sorted(result.templates, key=lambda entry: entry[1])
    with style():
        figure = new_figure(WIDTH_INCHES, 0.9 + 0.17 * len(ranked))
        axes = figure.add_subplot()
        axes.scatter([accuracy for _, accuracy in ranked], range(len(ranked)), color=BLUE, s=16)
        axes.set_yticks(range(len(ranked)), [drawable(template[:60]) for template, _ in ranked], fontsize=7)
        axes.set_ylim(-0.8, len(ranked) - 0.2)
        axes.axvline(result.ensemble, color=GREEN, linewidth=1.2, label=f"all together: {result.ensemble:.3f}")
        axes.axvline(
            result.mean,
            color=FAINT,
            linestyle="--",
            label=f"mean: {result.mean:.3f} ± {result.standard_deviation:.3f}",
        )
        axes.set_xlabel(f"top-1 over {result.images} images of {result.classes} classes")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.6 / (0.9 + 0.17 * len(ranked))), ncols=2)
        return save(figure, output)


def plot_languages(result: LanguagesResult, output: str | Path) -> Path:
    """R@1 both ways in each language, the best first, half of the reference's marked, as PNG.

    Raises ImportError without matplotlib.
    """
    languages = result.ranked()
    with style():
        figure = new_figure(WIDTH_INCHES * 0.8, 1.2 + 0.24 * len(languages))
        axes = figure.add_subplot()
        for index, (way, color) in enumerate(zip(WAYS, (BLUE, GREEN), strict=True)):
            centers = [rank + (index - 0.5) * 0.4 for rank in range(len(languages))]
            recalls = [result.languages[language][way]["recall_at_1"] for language in languages]
            axes.barh(centers, recalls, 0.36, color=color, label=way.replace("_", " "))
            half = (result.summary(way)["reference"] or 0) / 2
            axes.axvline(half, color=color, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(languages)), [drawable(language) for language in languages], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(f"R@1 (dashed: half of that of {drawable(result.reference)})")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        return save(figure, output)


def plot_comparison(results: Sequence[Mapping[str, Any]], output: str | Path) -> Path:
    """Numbers of several models on one task, a group of bars for each column, as PNG.

    Arguments and errors are those of `comparison.compare`; ImportError without matplotlib.
    """
    numbers = compare(results)
    columns = list(next(iter(numbers.values())))
    height = 0.8 / len(numbers)
    with style():
        figure = new_figure(WIDTH_INCHES * 0.8, 1.2 + 0.3 * len(columns) * max(len(numbers), 2))
        axes = figure.add_subplot()
        for index, (model, row) in enumerate(numbers.items()):
            centers = [rank + (index - (len(numbers) - 1) / 2) * height for rank in range(len(columns))]
            values = [row[column] for column in columns]
            bars = axes.barh(centers, [value or 0 for value in values], height * 0.9, label=drawable(model))
            texts = ["-" if value is None else f"{value:.3f}" for value in values]
            axes.bar_label(bars, texts, padding=2, fontsize=7)
        axes.set_yticks(range(len(columns)), columns)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(drawable(str(results[0]["title"])))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        return save(figure, output)


def charts_of(result) -> dict[str, Callable[[Path], Path]]:
    """The plots that a result has: each one's file name, and a function that draws it into a file."""
    charts: dict[str, Callable[[Path], Path]] = {}
    if isinstance(result, ZeroShotResult) and result.confusion_matrix is not None:
        charts |= {
            "confusion.png": partial(plot_confusion, result),
            "calibration.png": partial(plot_calibration, result),
        }
        if result.per_template is not None:
            charts["per_template.png"] = partial(plot_per_template_accuracy, result.per_template)
    elif isinstance(result, RetrievalResult):
        charts["recall.png"] = partial(plot_recall, result)
    elif isinstance(result, LanguagesResult):
        charts["languages.png"] = partial(plot_languages, result)
    elif isinstance(result, LinearProbeResult):
        charts["sweep.png"] = partial(plot_sweep, result)
    elif isinstance(result, FewShotResult):
        charts["few_shot.png"] = partial(plot_few_shot, result)
    elif isinstance(result, RobustnessResult):
        charts["robustness.png"] = partial(plot_robustness, result)
    return charts
