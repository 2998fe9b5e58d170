"""Results of several models on one task: one table, one plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Column of the table: where its number stands in a result's JSON.
COLUMNS = {
    "zero-shot": {
        "top-1": "top_1",
        "top-5": "top_5",
        "mean per class": "mean_per_class",
        "mAP": "mean_average_precision",
    },
    "retrieval": {
        f"{where.replace('_', ' ')} R@{k}": f"{where}.recall_at_{k}"
        for where in ("image_to_text", "text_to_image")
        for k in (1, 5)
    },
    "linear-probe": {"top-1": "top_1", "top-5": "top_5", "mean per class": "mean_per_class"},
    "robustness": {"top-1": "top_1", "corrupted": "corrupted_top_1", "shifted": "shifted_top_1"},
}


def compare(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The numbers of each column by model, from results as `--output` writes them. Columns without any are dropped."""
    numbers = {result["model"]: _numbers(result) for result in results}
    columns = list(dict.fromkeys(column for row in numbers.values() for column in row))
    used = [column for column in columns if any(row.get(column) is not None for row in numbers.values())]
    return {model: {column: row.get(column) for column in used} for model, row in numbers.items()}


def _numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    if result["task"] == "few-shot":
        row = {"zero-shot": result["zero_shot_top_1"]}
        return row | {f"{one['shots']} shots": one["mean"] for one in result["shots"]}
    return {column: _at(result, path) for column, path in COLUMNS[result["task"]].items()}


def _at(result: Any, path: str) -> float | None:
    for key in path.split("."):
        if not isinstance(result, Mapping) or key not in result:
            return None
        result = result[key]
    return result


def comparison_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model."""
    numbers = compare(results)
    columns = list(next(iter(numbers.values())))
    width = max(len("model"), *map(len, numbers))
    widths = [max(len(column), 5) for column in columns]
    head = "  ".join(f"{column:>{size}}" for column, size in zip(columns, widths, strict=True))
    lines = [str(results[0]["title"]), f"{'model':{width}}  {head}"]
    for model, row in numbers.items():
        cells = ["-" if value is None else f"{value:.3f}" for value in row.values()]
        lines.append(
            f"{model:{width}}  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        )
    for result in results:
        templates = result.get("templates")
        if templates:
            more = f" and {len(templates) - 1} more templates" if len(templates) > 1 else ""
            lines.append(f"{result['model']}: {templates[0]!r}{more}")
    return "\n".join(lines)


def plot_comparison(results: Sequence[Mapping[str, Any]], file: Path) -> Path:
    """A group of bars for each column, a bar for each model, as PNG. Raises ImportError without matplotlib."""
    from hf_clip.evaluation.plots import canvas

    numbers = compare(results)
    columns = list(next(iter(numbers.values())))
    height = 0.8 / len(numbers)
    with canvas.style():
        figure = canvas.new_figure(7, 1.2 + 0.3 * len(columns) * max(len(numbers), 2))
        axes = figure.add_subplot()
        for index, (model, row) in enumerate(numbers.items()):
            places = [rank + (index - (len(numbers) - 1) / 2) * height for rank in range(len(columns))]
            bars = axes.barh(places, [row[column] or 0 for column in columns], height * 0.9, label=model)
            labels = ["-" if row[column] is None else f"{row[column]:.3f}" for column in columns]
            axes.bar_label(bars, labels, padding=2, fontsize=7)
        axes.set_yticks(range(len(columns)), columns)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(canvas.drawable(str(results[0]["title"])))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        return canvas.save(figure, file)
