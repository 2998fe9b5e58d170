"""Results of several models on one task, in one table; `plots.result_charts.plot_comparison` draws them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_clip.prompts import describe_templates

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
    "languages": {
        f"{where.replace('_', ' ')} {name}": f"{where}.{name}"
        for where in ("image_to_text", "text_to_image")
        for name in ("reference", "median", "ratio")
    },
    "linear-probe": {"top-1": "top_1", "top-5": "top_5", "mean per class": "mean_per_class"},
    "clip-score": {"CLIP score": "score"},
    "segmentation": {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy"},
    "captions": {"BLEU-4": "bleu_4", "ROUGE-L": "rouge_l", "CIDEr-D": "cider_d", "exact": "exact"},
    "robustness": {"top-1": "top_1", "corrupted": "corrupted_top_1", "shifted": "shifted_top_1"},
}


def compare(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The main numbers of several models by column, as tables and plots show them.

    Args:
        results: of one task: `to_dict()` of each model's result, and under "model" what the model is called.

    Returns:
        For each model its number in each column, None where it was not measured; no column that no model has.

    Raises:
        ValueError: if there are no results, they are of several tasks, or two are of one model.
    """
    tasks, models = {result["task"] for result in results}, [result["model"] for result in results]
    if len(tasks) != 1 or len(set(models)) != len(models):
        raise ValueError(
            f"results of tasks {', '.join(sorted(tasks)) or 'none'} by models {', '.join(models) or 'none'}: give one "
            "result of one task for each model."
        )
    numbers = {result["model"]: numbers_of(result) for result in results}
    columns = list(dict.fromkeys(column for row in numbers.values() for column in row))
    used = [column for column in columns if any(row.get(column) is not None for row in numbers.values())]
    return {model: {column: row.get(column) for column in used} for model, row in numbers.items()}


def numbers_of(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The main numbers of one result by column, None where one was not measured. Raises KeyError for no known task."""
    if result["task"] == "few-shot":
        row = {"zero-shot": result["zero_shot_top_1"]}
        return row | {f"{one['shots']} shots": one["mean"] for one in result["shots"]}
    if result["task"] == "groups":
        return {row["label"]: row["rate"] for row in result["overall"]}
    return {column: _at(result, path) for column, path in COLUMNS[result["task"]].items()}


def _at(result: Any, path: str) -> float | None:
    for key in path.split("."):
        if not isinstance(result, Mapping) or key not in result:
            return None
        result = result[key]
    return result


def comparison_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model, and the templates it was measured with. Arguments and errors are those of `compare`."""
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
            lines.append(f"{result['model']}: {describe_templates(templates)}")
    return "\n".join(lines)
