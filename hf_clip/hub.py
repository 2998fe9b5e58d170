"""Model cards: a `README.md` that the Hub accepts, whose numbers were measured."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from safetensors import safe_open

TEMPLATE = Path(__file__).parent / "model_card_template.md"

# The Hub's names of licences, from the least to the most demanding: a work made from several bears the last.
LICENCES = (
    "cc0-1.0",
    "unlicense",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "apache-2.0",
    "cc-by-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
)

TASKS = {"retrieval": "image-text-retrieval", "zero-shot": "zero-shot-image-classification"}
DIRECTIONS = ("image_to_text", "text_to_image")
RETRIEVAL_METRICS = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "median_rank": "median rank",
}
ZERO_SHOT_METRICS = {
    "top_1": ("accuracy", "top-1 accuracy"),
    "top_5": ("top_5_accuracy", "top-5 accuracy"),
    "mean_per_class": ("mean_per_class_accuracy", "mean per-class accuracy"),
}


@dataclass
class CardFacts:
    """What a model card says beyond what the model's folder says by itself.

    Attributes:
        model_name: the title.
        training_data: one mapping for each file or data set, with `name` and, where known, `file`,
            `pictures`, `licence` (SPDX), `attribution`, `source`, `changes`, and `dataset` (its id on the
            Hub).
        evaluation_data: the same for data that was tested on.
        results: `to_dict()` of each evaluation's result; titles must differ.
        recipe: settings of the run; nested mappings are printed with dotted names.
        training: what the run took (steps, seconds, device, ...), as measured.
        plots: (file, what it shows) of pictures that stand in the folder.
        languages: ISO 639 codes of the texts trained on.
        example_labels, example_template: for the snippets.
        repo_id: where the model will be found; by default the snippets name the folder.
    """

    model_name: str
    training_data: Sequence[Mapping[str, Any]]
    evaluation_data: Sequence[Mapping[str, Any]] = ()
    results: Sequence[Mapping[str, Any]] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    plots: Sequence[tuple[str, str]] = ()
    languages: Sequence[str] = ("en",)
    example_labels: Sequence[str] = ("a cat", "a dog")
    example_template: str = "{}"
    repo_id: str | None = None


def write_model_card(folder: str | Path, facts: CardFacts) -> Path:
    """Write `README.md` into the folder of a saved model, checked by `check_model_card`.

    Architecture and numbers of parameters are read from the folder's `config.json` and weights. A value that
    is None or NaN was not measured and is left out.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: if the folder holds no `config.json`, no weights, or not a plot that `facts` names.
        ValueError: if the card would not be accepted by the Hub, or two results bear one title.
    """
    folder = Path(folder)
    for file, _ in facts.plots:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"plot {file!r} is not in {str(folder)!r}: draw it there first, or leave it out.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no config.json: save the model there before its card.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = ModelCard.from_template(
        _metadata(facts),
        template_path=str(TEMPLATE),
        **_body(facts, folder, config),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"
    check_model_card(text)
    path = folder / "README.md"
    unfinished = folder / "README.md.tmp"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def check_model_card(text: str) -> ModelCard:
    """The card of `text`, if its front matter is one that the Hub takes; checked without the network.

    Raises:
        ValueError: naming the field, its value and what it must be.
    """
    card = ModelCard(text)
    data = card.data.to_dict()
    for key, expected in (
        ("pipeline_tag", "zero-shot-image-classification"),
        ("library_name", "transformers"),
    ):
        if data.get(key) != expected:
            raise ValueError(f"{key} is {data.get(key)!r} in the card's front matter: it must be {expected!r}.")
    licence = data.get("license")
    if licence is not None and licence not in (*LICENCES, "other"):
        raise ValueError(
            f"license is {licence!r} in the card's front matter: use one of {', '.join(LICENCES)}, other."
        )
    for language in data.get("language") or []:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", language):
            raise ValueError(f"language {language!r} is no ISO 639 code: write 'en' for English, for instance.")
    for dataset in data.get("datasets") or []:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset, re.ASCII):
            raise ValueError(
                f"data set {dataset!r} is no name the Hub can have: letters, digits, '-', '_', '.', one '/'."
            )
    if "model-index" in data:
        name, results = model_index_to_eval_results(data["model-index"])
        if eval_results_to_model_index(name, results) != data["model-index"]:
            raise ValueError(
                "the model-index does not survive reading and writing: give each result a title of its own."
            )
    return card


def card_licence(training_data: Iterable[Mapping[str, Any]]) -> tuple[str | None, str]:
    """The Hub's name of the licence for a model trained on such data, and a sentence that says why.

    Whether weights inherit the licences of their data is not settled; declared is the most demanding one of
    them, whose terms include those of the others. None if some data comes without a licence, "other" if one
    is not in `LICENCES`.
    """
    given = [item.get("licence") for item in training_data]
    names = sorted({str(licence) for licence in given if licence})
    listed = ", ".join(names)
    if not given or not all(given):
        return None, "The licence of some of the data is not known, so none is declared for the model."
    known = [name.lower() for name in names if name.lower() in LICENCES]
    if len(known) < len(names):
        return "other", f"The data comes under {listed}; who uses the model should observe all of them."
    chosen = max(known, key=LICENCES.index)
    if len(names) == 1:
        return chosen, f"All of the data comes under {listed}, and so the model is given under it too."
    return chosen, (
        f"The data comes under {listed}; the model is given under the most demanding of these, {chosen}, and the "
        "attributions above go along with it."
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    licence, _ = card_licence(facts.training_data)
    named = [_slug(str(item["licence"])) for item in facts.training_data if item.get("licence")]
    return ModelCardData(
        language=list(facts.languages),
        license=licence,
        license_name="-and-".join(dict.fromkeys(named)) if licence == "other" else None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "hf_clip", "image-text-retrieval"],
        datasets=list(dict.fromkeys(item.get("dataset") or _slug(item["name"]) for item in facts.training_data))
        or None,
        model_name=_one_line(facts.model_name),
        eval_results=_eval_results(facts.results) or None,
    )


def _eval_results(results: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    titles = [result["title"] for result in results]
    # The Hub merges results whose task and data set agree; the title's slug keeps them apart.
    if len({_slug(title) for title in titles}) < len(titles):
        raise ValueError(f"two results bear one title among {titles}: give each evaluation a title of its own.")
    found = []
    for result in results:
        if result["protocol"] not in TASKS:
            raise ValueError(f"protocol {result['protocol']!r} is not known: use one of {', '.join(TASKS)}.")
        title = _one_line(result["title"])
        found += [
            EvalResult(
                task_type=TASKS[result["protocol"]],
                dataset_type=result.get("dataset") or _slug(title),
                dataset_name=title,
                dataset_config=_slug(title),
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(value), 4),
                metric_args=counts,
            )
            for metric, name, value, counts in _numbers(result)
            if _is_measured(value)
        ]
    return found


def _numbers(result: Mapping[str, Any]) -> Iterable[tuple[str, str, float | None, dict[str, int]]]:
    """(metric, its name, value, the counts it rests on) of every number in a result."""
    if result["protocol"] == "zero-shot":
        counts = {key: result[key] for key in ("pictures", "classes")}
        for key, (metric, name) in ZERO_SHOT_METRICS.items():
            yield metric, name, result.get(key), counts
        return
    for direction in DIRECTIONS:
        if direction in result:
            numbers = result[direction]
            counts = {key: numbers[key] for key in ("queries", "candidates")}
            for key, name in RETRIEVAL_METRICS.items():
                yield f"{direction}_{key}", f"{direction.replace('_', ' ')} {name}", numbers.get(key), counts


def _is_measured(value) -> bool:
    return value is not None and math.isfinite(value)


def _body(facts: CardFacts, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The template's variables, escaped for where they stand."""
    return {
        "title": _escape(facts.model_name),
        "projection_dim": config["projection_dim"],
        "repo": json.dumps(facts.repo_id or folder.name, ensure_ascii=False),
        "labels": json.dumps(list(facts.example_labels), ensure_ascii=False),
        "template": json.dumps(facts.example_template, ensure_ascii=False),
        "results": _result_tables(facts.results),
        "plots": [{"file": quote(file), "alt": _escape(shown)} for file, shown in facts.plots],
        "architecture": _table(("", ""), _architecture(folder, config)),
        "training_data": _data_table(facts.training_data),
        "evaluation_data": _data_table(facts.evaluation_data) if facts.evaluation_data else "",
        "licence": card_licence(facts.training_data)[1],
        "training": _settings_table(facts.training),
        "recipe": _settings_table(facts.recipe) or "The recipe was not recorded.",
        "languages": _escape(", ".join(facts.languages)),
        "max_tokens": config["text_config"].get("max_position_embeddings", 77),
        "image_size": config["vision_config"].get("image_size", 224),
    }


def _result_tables(results: Sequence[Mapping[str, Any]]) -> str:
    retrieval = [
        (
            result["title"],
            direction.replace("_", " "),
            *(_number(result[direction].get(key)) for key in ("recall_at_1", "recall_at_5", "recall_at_10")),
            _number(result[direction].get("median_rank"), "{:g}"),
            result[direction]["queries"],
            result[direction]["candidates"],
            _number(result[direction].get("chance_at_1"), "{:.4f}"),
        )
        for result in results
        if result["protocol"] == "retrieval"
        for direction in DIRECTIONS
        if direction in result
    ]
    zero_shot = [
        (
            result["title"],
            *(_number(result.get(key)) for key in ("top_1", "top_5", "mean_per_class", "chance")),
            result["pictures"],
            result["classes"],
            ", ".join(f'"{template}"' for template in result.get("templates", ())),
        )
        for result in results
        if result["protocol"] == "zero-shot"
    ]
    ranks = ("retrieval", "from, to", *RETRIEVAL_METRICS.values(), "queries", "candidates", "chance R@1")
    classes = ("zero-shot", "top-1", "top-5", "mean per class", "chance", "pictures", "classes", "templates")
    tables = [_table(header, rows) for header, rows in ((ranks, retrieval), (classes, zero_shot)) if rows]
    left_out = [
        f"- {_escape(result['title'])}: left out {_escape(_counts(result['skipped']))}."
        for result in results
        if result.get("skipped")
    ]
    return "\n\n".join([*tables, *(["\n".join(left_out)] if left_out else [])])


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({reason.replace('_', ' ')})" for reason, count in sorted(skipped.items()))


def _number(value, pattern: str = "{:.3f}") -> str:
    return pattern.format(value) if _is_measured(value) else "-"


def _data_table(data: Sequence[Mapping[str, Any]]) -> str:
    if not data:
        return "The training data was not recorded."
    columns = ("name", "file", "pictures", "licence", "attribution", "source", "changes")
    used = [column for column in columns if any(item.get(column) is not None for item in data)]
    return _table(used, [[item.get(column, "") for column in used] for item in data])


def _settings_table(settings: Mapping[str, Any]) -> str:
    rows = [(name, value) for name, value in _flatten(settings) if value is not None]
    return _table(("", ""), rows) if rows else ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _architecture(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows that describe the towers, from the saved config and weights."""
    vision, text = config["vision_config"], config["text_config"]
    counts, logit_scale = _weights(folder)
    if vision.get("tower", "vit") == "vit":
        shape = [
            f"ViT, {vision.get('num_hidden_layers')} layers, width {vision.get('hidden_size')}",
            f"{vision.get('num_attention_heads')} heads, patches of {vision.get('patch_size')} pixels",
        ]
    else:
        stages = zip(vision["stage_widths"], vision["stage_depths"], strict=True)
        shape = [vision["tower"], *(f"{depth} x {width} channels" for width, depth in stages)]
    rows = [
        ("image tower", f"{', '.join(shape)}; {vision.get('image_size')} pixels a side"),
        (
            "text tower",
            f"transformer, {text.get('num_hidden_layers')} layers, width {text.get('hidden_size')}, "
            f"{text.get('num_attention_heads')} heads; {text.get('vocab_size')} tokens in the vocabulary, "
            f"{text.get('max_position_embeddings')} in a text",
        ),
        ("shared space", f"{config['projection_dim']} dimensions"),
        ("parameters", f"{sum(counts.values()):,} (image {counts['vision']:,}, text {counts['text']:,})"),
    ]
    if logit_scale is not None:
        rows.append(("factor on the cosines (1 / temperature)", f"{math.exp(logit_scale):.2f}"))
    return rows


def _weights(folder: Path) -> tuple[dict[str, int], float | None]:
    """Numbers of parameters by tower, from the headers of the weight files, and the learnt logit scale."""
    counts, logit_scale = {"vision": 0, "text": 0, "other": 0}, None
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} has no model.safetensors: save the model there before its card.")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():
                tower = "vision" if name.startswith("vis") else "text" if name.startswith("text") else "other"
                counts[tower] += math.prod(weights.get_slice(name).get_shape())
                if name == "logit_scale":
                    logit_scale = float(weights.get_tensor(name))
    return counts, logit_scale


def _table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def _escape(value: Any) -> str:
    """One line of Markdown that reads as `value`, whatever it holds: no markup, no HTML, no end of a cell."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # Underscores within words mark nothing.
    return re.sub(r"([\\`*\[\]<>|~$&#!]|\b_|_\b|(?<=_)_)", r"\\\1", _one_line(value))


def _slug(name: str) -> str:
    """A name that the Hub's ids allow: lower-case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "data"
