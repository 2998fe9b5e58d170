"""Results of every evaluation task, as the Hub's model-index and as tables."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from .markdown import escape, one_line, slug, table

Result = Mapping[str, Any]
# Metric on the Hub, its name, value, and the counts it rests on.
Number = tuple[str, str, float | None, dict[str, int]]

NOT_EVALUATED = "This model was not evaluated when this card was written."
MEASURED = """\
Each number was measured on this model by the code that wrote it, in float32 unless a line says otherwise. R@k is the
fraction of queries with a correct match among the first k candidates; ties count against the model. Compare recalls
only at equal numbers of candidates."""
# Of more templates than this a table shows the first ones and the number of all.
TEMPLATES_SHOWN = 3

DIRECTIONS = ("image_to_text", "text_to_image")
RETRIEVAL_METRICS = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "median_rank": "median rank",
    "mean_reciprocal_rank": "mean reciprocal rank",
}
CLASS_METRICS = {
    "top_1": ("accuracy", "top-1 accuracy"),
    "top_5": ("top_5_accuracy", "top-5 accuracy"),
    "mean_per_class": ("mean_per_class_accuracy", "mean per-class accuracy"),
    "mean_average_precision": ("mean_average_precision", "mean average precision"),
    "mean_average_precision_11": ("mean_average_precision_11", "mean average precision, 11 points"),
    "calibration_error": ("expected_calibration_error", "expected calibration error"),
}
CAPTION_METRICS = {
    "bleu_4": ("bleu", "BLEU-4"),
    "rouge_l": ("rouge", "ROUGE-L"),
    "cider_d": ("cider", "CIDEr-D"),
    "exact": ("exact_match", "captions that are a reference"),
}
# `top_1` of robustness is a zero-shot evaluation's.
ROBUSTNESS_METRICS = {
    "corrupted_top_1": ("corrupted_accuracy", "top-1 accuracy, mean of corruptions"),
    "shifted_top_1": ("shifted_accuracy", "top-1 accuracy, shifted data"),
    "effective_robustness": ("effective_robustness", "effective robustness"),
}
SEGMENTATION_METRICS = {
    "mean_iou": ("mean_iou", "mean IoU"),
    "pixel_accuracy": ("pixel_accuracy", "pixel accuracy"),
}


def is_measured(value) -> bool:
    return value is not None and math.isfinite(value)


def require_known(results: Sequence[Result]) -> None:
    """Raises ValueError for an unknown task, and where two results of one task have one title."""
    for result in results:
        if result["task"] not in TASKS:
            raise ValueError(f"`task={result['task']}` is not known: use one of {', '.join(TASKS)}.")
    titles = [(result["task"], one_line(result["title"])) for result in results]
    # The Hub merges results whose task and data set agree; the title, as its configuration, keeps them apart.
    if len(set(titles)) < len(titles):
        raise ValueError(
            f"two results have one title among {[result['title'] for result in results]}: give each evaluation of a "
            "task a title of its own."
        )


def eval_results(results: Sequence[Result]) -> list[EvalResult]:
    """What was measured, for a card's front matter."""
    require_known(results)
    found = []
    for result in results:
        task, numbers, _, _ = TASKS[result["task"]]
        title = one_line(result["title"])
        found += [
            EvalResult(
                task_type=task,
                dataset_type=result.get("dataset") or slug(title),
                dataset_name=title,
                dataset_config=title,
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(value), 4),
                metric_args=counts,
            )
            for metric, name, value, counts in numbers(result)
            if is_measured(value)
        ]
    return found


def metric_kinds(result: Result) -> set[str]:
    """The `metric_kind` of every metric that the result's task has for its data set, measured or not."""
    return {metric_kind(metric) for metric, *_ in TASKS[result["task"]][1](result)}


def metric_kind(metric: str) -> str:
    """A metric without its numbers: accuracy_4_shot is of one kind with accuracy_16_shot."""
    return re.sub(r"\d+", "N", metric)


def result_tables(results: Sequence[Result]) -> str:
    """One table a task, and a line for each result that needs one; empty without results."""
    tables = []
    for task, (_, _, header, rows) in TASKS.items():
        found = [row for result in results if result["task"] == task for row in rows(result)]
        if found:
            tables.append(table(header, found))
    notes = [line for result in results if (line := note_of(result))]
    return "\n\n".join([*tables, *(["\n".join(notes)] if notes else [])])


def change_table(before: Sequence[Result], after: Sequence[Result]) -> str:
    """The leading numbers of both where task and title agree, and how they changed; empty where none do."""
    earlier = {(result["task"], result["title"]): dict(leading_numbers(result)) for result in before}
    rows = []
    for result in after:
        known = earlier.get((result["task"], result["title"]), {})
        for name, value in leading_numbers(result):
            if name in known:
                rows.append((result["title"], name, _shown(known[name]), _shown(value), f"{value - known[name]:+.3f}"))
    return table(("evaluation", "", "before training", "after", "change"), rows) if rows else ""


def leading_numbers(result: Result) -> Iterable[tuple[str, float]]:
    """The names and values by which results of a task are mostly told apart: R@1 each way, or accuracies."""
    for metric, name, value, _ in TASKS[result["task"]][1](result):
        is_leading = metric.endswith("recall_at_1") or metric in ("accuracy", "accuracy_0_shot", "corrupted_accuracy")
        if is_leading and value is not None and math.isfinite(value):
            yield name, value


def note_of(result: Result) -> str:
    """A line that names a precision other than float32, and counts the images that were skipped; empty without."""
    said = []
    if result.get("dtype", "float32") != "float32":
        said.append(f"computed in {escape(result['dtype'])}")
    if result.get("skipped"):
        counts = (f"{count} ({reason.replace('_', ' ')})" for reason, count in sorted(result["skipped"].items()))
        said.append(f"skipped {escape(', '.join(counts))}")
    return f"{start_of_note(result)} {'; '.join(said)}." if said else ""


def start_of_note(result: Result) -> str:
    return f"- {escape(result['title'])}, {result['task']}:"


def _shown(value, pattern: str = "{:.3f}") -> str:
    return pattern.format(value) if is_measured(value) else "-"


def _templates(result: Result) -> str:
    """The templates that class names were put into, each in quotes."""
    templates = [f'"{template}"' for template in result.get("templates", ())]
    if len(templates) <= TEMPLATES_SHOWN:
        return ", ".join(templates) or "-"
    return f"{', '.join(templates[:TEMPLATES_SHOWN])}, ... ({len(templates)} templates)"


def _retrieval_numbers(result: Result) -> Iterable[Number]:
    for direction in DIRECTIONS:
        if direction in result:
            numbers = result[direction]
            counts = {key: numbers[key] for key in ("queries", "candidates")}
            for key, name in RETRIEVAL_METRICS.items():
                yield f"{direction}_{key}", f"{direction.replace('_', ' ')} {name}", numbers.get(key), counts


def _retrieval_rows(result: Result) -> Iterable[tuple]:
    for direction in DIRECTIONS:
        if direction in result:
            numbers = result[direction]
            yield (
                result["title"],
                direction.replace("_", " "),
                *(_shown(numbers.get(key)) for key in ("recall_at_1", "recall_at_5", "recall_at_10")),
                _shown(numbers.get("median_rank"), "{:g}"),
                numbers["queries"],
                numbers["candidates"],
                _shown(numbers.get("chance_at_1"), "{:.4f}"),
            )


def _numbers_of(metrics: Mapping[str, tuple[str, str]], *counts: str) -> Callable[[Result], Iterable[Number]]:
    """The numbers of results that have them by name."""

    def numbers(result: Result) -> Iterable[Number]:
        rests_on = {key: result[key] for key in counts if result.get(key) is not None}
        for key, (metric, name) in metrics.items():
            yield metric, name, result.get(key), rests_on

    return numbers


def _zero_shot_rows(result: Result) -> Iterable[tuple]:
    yield (
        result["title"],
        *(_shown(result.get(key)) for key in ("top_1", "top_5", "mean_per_class", "chance")),
        result["images"],
        result["classes"],
        _templates(result),
    )


def _probe_rows(result: Result) -> Iterable[tuple]:
    yield (
        result["title"],
        *(_shown(result.get(key)) for key in ("top_1", "top_5", "mean_per_class")),
        _shown(result.get("penalty"), "{:.3g}"),
        *(result[key] for key in ("train_images", "images", "classes")),
    )


def _few_shot_numbers(result: Result) -> Iterable[Number]:
    counts = {key: result[key] for key in ("images", "classes", "num_seeds")}
    by_name = {key: result[key] for key in ("images", "classes")}
    yield "accuracy_0_shot", "top-1 accuracy, zero-shot", result.get("zero_shot_top_1"), by_name
    for row in result["shots"]:
        metric, name = f"accuracy_{row['shots']}_shot", f"top-1 accuracy, {row['shots']} images a class"
        yield metric, name, row["mean"], counts
        yield f"{metric}_deviation", f"{name}, standard deviation", row.get("standard_deviation"), counts


def _few_shot_rows(result: Result) -> Iterable[tuple]:
    if is_measured(result.get("zero_shot_top_1")):
        shown = _shown(result["zero_shot_top_1"])
        yield (
            result["title"],
            "0 (zero-shot)",
            shown,
            "-",
            "-",
            result["images"],
            result["classes"],
            _templates(result),
        )
    for row in result["shots"]:
        scores = (_shown(row["mean"]), _shown(row.get("standard_deviation")))
        yield result["title"], row["shots"], *scores, result["num_seeds"], result["images"], result["classes"], "-"


def _robustness_rows(result: Result) -> Iterable[tuple]:
    yield (
        result["title"],
        *(_shown(result.get(key)) for key in ("top_1", "corrupted_top_1")),
        result.get("shifted_title") or "-",
        *(_shown(result.get(key)) for key in ("shifted_top_1", "expected_top_1")),
        _shown(result.get("effective_robustness"), "{:+.3f}"),
        result["images"],
        result["classes"],
        _templates(result),
    )


def _segmentation_rows(result: Result) -> Iterable[tuple]:
    yield (
        result["title"],
        *(_shown(result.get(key)) for key in ("mean_iou", "pixel_accuracy")),
        result["attention"],
        result["images"],
        result["classes"],
        _templates(result),
    )


def _no_numbers(result: Result) -> Iterable[Number]:
    """Rates of labels are no measure of how good a model is: they stand in the card's table alone."""
    return ()


def _groups_rows(result: Result) -> Iterable[tuple]:
    everyone = {"all images": {"all images": result["overall"]}}
    for column, values in {**everyone, **result["by"]}.items():
        for value, rows in values.items():
            group = value if column == value else f"{column}: {value}"
            for row in rows:
                shown = f"{_shown(row['low'])} to {_shown(row['high'])}"
                yield (
                    result["title"],
                    group,
                    row["label"],
                    _shown(row["rate"]),
                    shown,
                    row["images"],
                    _templates(result),
                )


def _language_numbers(result: Result) -> Iterable[Number]:
    for direction in DIRECTIONS:
        counts = {"languages": len(result["languages"])}
        name = f"{direction.replace('_', ' ')} R@1"
        found = result[direction]
        yield f"{direction}_recall_at_1", f"{name}, {result['reference']}", found["reference"], counts
        yield f"{direction}_recall_at_1_median", f"{name}, median of the other languages", found["median"], counts


def _language_rows(result: Result) -> Iterable[tuple]:
    for language, found in result["languages"].items():
        recalls = (_shown(found[direction][f"recall_at_{k}"]) for direction in DIRECTIONS for k in (1, 5))
        counts = found["image_to_text"]
        yield result["title"], language, *recalls, counts["queries"], counts["candidates"]
    recalls = (cell for direction in DIRECTIONS for cell in (_shown(result[direction]["median"]), "-"))
    yield result["title"], f"median without {result['reference']}", *recalls, "-", "-"
    ratios = (cell for direction in DIRECTIONS for cell in (_shown(result[direction]["ratio"], "{:.2f}"), "-"))
    yield result["title"], f"median / {result['reference']}", *ratios, "-", "-"


def _caption_rows(result: Result) -> Iterable[tuple]:
    yield result["title"], *(_shown(result.get(key)) for key in CAPTION_METRICS), result["images"]


# The task's name on the Hub, the numbers of a result, and the header and rows of its table.
TASKS: dict[str, tuple[str, Callable, tuple[str, ...], Callable]] = {
    "retrieval": (
        "image-text-retrieval",
        _retrieval_numbers,
        ("retrieval", "from, to", "R@1", "R@5", "R@10", "median rank", "queries", "candidates", "chance R@1"),
        _retrieval_rows,
    ),
    "languages": (
        "image-text-retrieval",
        _language_numbers,
        ("languages", "language", "image to text R@1", "R@5", "text to image R@1", "R@5", "images", "texts"),
        _language_rows,
    ),
    "zero-shot": (
        "zero-shot-image-classification",
        _numbers_of(CLASS_METRICS, "images", "classes"),
        ("zero-shot", "top-1", "top-5", "mean per class", "chance", "images", "classes", "templates"),
        _zero_shot_rows,
    ),
    "linear-probe": (
        "image-classification",
        _numbers_of(CLASS_METRICS, "images", "classes", "train_images"),
        ("linear probe", "top-1", "top-5", "mean per class", "penalty", "trained on", "images", "classes"),
        _probe_rows,
    ),
    "few-shot": (
        "image-classification",
        _few_shot_numbers,
        ("few-shot", "shots a class", "top-1", "deviation", "trials", "images", "classes", "templates"),
        _few_shot_rows,
    ),
    "captions": (
        "image-to-text",
        _numbers_of(CAPTION_METRICS, "images"),
        ("captions", "BLEU-4", "ROUGE-L", "CIDEr-D", "exact", "images"),
        _caption_rows,
    ),
    "robustness": (
        "zero-shot-image-classification",
        _numbers_of(ROBUSTNESS_METRICS, "images", "classes"),
        (
            "robustness",
            "top-1",
            "corrupted",
            "shifted data",
            "shifted top-1",
            "expected",
            "effective",
            "images",
            "classes",
            "templates",
        ),
        _robustness_rows,
    ),
    "segmentation": (
        "image-segmentation",
        _numbers_of(SEGMENTATION_METRICS, "images", "classes"),
        ("segmentation", "mean IoU", "pixel accuracy", "attention", "images", "classes", "templates"),
        _segmentation_rows,
    ),
    "groups": (
        "zero-shot-image-classification",
        _no_numbers,
        ("groups", "group", "label", "rate", "interval", "images", "templates"),
        _groups_rows,
    ),
}
