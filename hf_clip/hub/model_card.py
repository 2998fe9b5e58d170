"""Model cards: a `README.md` that the Hub accepts, whose numbers were measured and whose snippets were run."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hf_clip.model.configuration_hf_clip import HFCLIPConfig

from .architecture_table import describe, image_sizes
from .card_text import CardError, parse_card, read_card_text
from .data_license import LICENSES, card_license
from .markdown import escape, one_line, slug, table
from .package_version import made_with
from .result_tables import MEASURED, NOT_EVALUATED, change_table, eval_results, is_measured, result_tables
from .snippets import HEADING, Example, draw_example, usage

TEMPLATE = Path(__file__).parents[1] / "assets" / "model_card_template.md"
PIPELINE_TAG, LIBRARY = "zero-shot-image-classification", "transformers"

logger = logging.getLogger(__name__)


@dataclass
class CardFacts:
    """What a model card says beyond what the model's folder says by itself.

    Attributes:
        model_name: the title.
        training_data: one mapping for each file or data set, with `name` and, where known, `file`,
            `images`, `captions`, `license` (SPDX), `attribution`, `source`, `changes`, and `dataset` (its id on the
            Hub).
        evaluation_data: the same for data that the model was evaluated on.
        results: `to_dict()` of each evaluation's result; titles must differ within a task.
        results_at_start: likewise, of the model before it was trained: the card shows how they changed.
        recipe: settings of the run; nested mappings are printed with dotted names.
        training: what the run took (steps, seconds, device, ...), as measured.
        plots: (file, what it shows) of images in the folder.
        languages: ISO 639 codes of the training texts, where they are known.
        example_labels, example_template: for the snippets and the Hub's widget.
        example_image: file in the folder that they are shown on; without one, a red circle is drawn.
        base_models: ids on the Hub of what the training started from.
        repo_id: where the model will be found; by default the snippets name the folder.
    """

    model_name: str
    training_data: Sequence[Mapping[str, Any]]
    evaluation_data: Sequence[Mapping[str, Any]] = ()
    results: Sequence[Mapping[str, Any]] = ()
    results_at_start: Sequence[Mapping[str, Any]] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    plots: Sequence[tuple[str, str]] = ()
    languages: Sequence[str] = ()
    example_labels: Sequence[str] = Example.labels
    example_template: str = Example.template
    example_image: str | None = None
    base_models: Sequence[str] = ()
    repo_id: str | None = None

    @property
    def example(self) -> Example:
        return Example(tuple(self.example_labels), self.example_template, self.example_image or Example.image)


def write_model_card(
    folder: str | Path, facts: CardFacts, *, runs_snippets: bool = True, may_lack_parts: bool = False
) -> Path:
    """Writes `README.md` into the folder of a saved model, checked by `check_model_card`.

    Architecture and numbers of parameters are read from the folder's `config.json` and weights. A value that
    is None or NaN was not measured and is not shown. The snippets are run on the folder, and the card shows what they
    printed.

    Args:
        folder: of the saved model.
        facts: what the card says besides.
        runs_snippets: whether the snippets are run; if not, the card shows their code alone.
        may_lack_parts: whether the card is written without a part of it that fails (an image, the results, a snippet's
            output, a field of the front matter), which is then logged as a warning. By default such a failure raises.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: if the folder holds no `config.json`, no weights, or not an image that `facts` names.
        SnippetError: if a snippet does not run.
        ValueError: if the Hub would not accept the card, or two results have one title.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no config.json: save the model there before its card.")
    facts = _usable(facts, folder, may_lack_parts)
    metadata, body = _metadata(facts), _body(facts, folder, HFCLIPConfig.from_pretrained(folder))
    _front_matter(facts)
    # The card names the image whether its snippets are run or not.
    runs = _has_example(folder, facts.example, may_lack_parts) and runs_snippets
    name = facts.repo_id or folder.absolute().name
    shown = usage(folder, name, facts.example, runs=runs, may_lack_output=may_lack_parts)
    card = ModelCard.from_template(metadata, template_path=str(TEMPLATE), usage=shown, **body)
    text = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"
    check_model_card(text)
    return _write(folder / "README.md", text)


def adapt_card(folder: str | Path, repo_id: str, *, may_lack_parts: bool = False) -> Path:
    """Makes the card in a folder that of the model as it is there, under a name on the Hub.

    The snippets are written and run again; all else stays as it is. A card that this package did not write keeps its
    text; its front matter says that transformers loads the model.

    Args:
        folder: of the model and its card.
        repo_id: the name on the Hub that the snippets use.
        may_lack_parts: as `write_model_card` takes it.

    Returns:
        The path of the card.

    Raises:
        CardError: if the card cannot be read, or the Hub would refuse its front matter.
        SnippetError: if a snippet does not run.
    """
    folder = Path(folder)
    path = folder / "README.md"
    card = parse_card(read_card_text(path), str(path))
    data = cast(ModelCardData, card.data)
    data.library_name, data.pipeline_tag = LIBRARY, PIPELINE_TAG
    text = str(card)
    section = re.search(rf"^{HEADING}$.*?(?=^## |\Z)", text, re.M | re.S)
    if section and PIPELINE_TAG in section[0]:
        example = Example.of_card(section[0], data.to_dict().get("widget"))
        runs = _has_example(folder, example, may_lack_parts)
        text = (
            text[: section.start()]
            + usage(folder, repo_id, example, runs=runs, may_lack_output=may_lack_parts)
            + "\n\n"
            + text[section.end() :]
        )
    return _write(path, text)


def check_model_card(text: str, name: str = "README.md") -> ModelCard:
    """The card of `text`, if its front matter is one that the Hub takes; checked without the network.

    Raises:
        CardError: naming the card, the field, its value and what it must be.
    """
    card = parse_card(text, name)
    data = card.data.to_dict()
    for key, expected in (("pipeline_tag", PIPELINE_TAG), ("library_name", LIBRARY)):
        if data.get(key) != expected:
            raise CardError(f"{name}: {key} is {data.get(key)!r} in the front matter: it must be {expected!r}.")
    license = data.get("license")
    if license is not None and license not in (*LICENSES, "other"):
        raise CardError(
            f"{name}: license is {license!r} in the front matter: use one of {', '.join(LICENSES)}, other."
        )
    for language in _as_list(data.get("language")):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", language):
            raise CardError(f"{name}: language {language!r} is not an ISO 639 code: write 'en' for English, say.")
    for dataset in _as_list(data.get("datasets")):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset, re.ASCII):
            raise CardError(
                f"{name}: data set {dataset!r} is not a name on the Hub: use letters, digits, '-', '_', '.', one '/'."
            )
    if "model-index" in data:
        model, results = model_index_to_eval_results(data["model-index"])
        if eval_results_to_model_index(model, results) != data["model-index"]:
            raise CardError(
                f"{name}: the model-index does not survive reading and writing: give each result its own title."
            )
    return card


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _write(path: Path, text: str) -> Path:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _usable(facts: CardFacts, folder: Path, may_lack_parts: bool) -> CardFacts:
    """The facts without those that no card can be made of, each of which is logged, or raises."""
    for file in [file for file, _ in facts.plots] + [file for file in [facts.example_image] if file]:
        if not (folder / file).is_file():
            missing = f"image {file!r} is not in {str(folder)!r}"
            if not may_lack_parts:
                raise FileNotFoundError(f"{missing}: draw it there first, or do not name it.")
            logger.warning(f"The card is written without an image: {missing}.")
            kept = [(plot, shown) for plot, shown in facts.plots if plot != file]
            example = None if facts.example_image == file else facts.example_image
            facts = replace(facts, plots=kept, example_image=example)
    if not may_lack_parts:
        return facts
    bare = CardFacts(facts.model_name, training_data=())
    for key, written in WRITTEN.items():
        try:
            written(replace(bare, **{key: getattr(facts, key)}))
        # Whatever it is: facts come from files that people write.
        except Exception as error:
            logger.warning(f"The card is written without {key}: {one_line(error) or type(error).__name__}")
            facts = replace(facts, **{key: getattr(bare, key)})
    return facts


def _has_example(folder: Path, example: Example, may_lack_parts: bool) -> bool:
    """Whether the folder has the image that the snippets show; it is drawn where it is missing."""
    try:
        if not (folder / example.image).is_file():
            draw_example(folder / example.image)
        return True
    # Whatever it is: disks, fonts, folders that the name has.
    except Exception as error:
        if not may_lack_parts:
            raise
        logger.warning(f"The card is written without outputs: {example.image} could not be drawn ({one_line(error)}).")
        return False


def _metadata(facts: CardFacts) -> ModelCardData:
    license, _ = card_license(facts.training_data)
    named = [slug(str(item["license"])) for item in facts.training_data if item.get("license")]
    return ModelCardData(
        language=list(facts.languages) or None,
        license=license,
        license_name="-and-".join(dict.fromkeys(named)) if license == "other" else None,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE_TAG,
        tags=["clip", "hf_clip", "image-text-retrieval"],
        # A name that is none of the Hub's would lead nowhere there.
        datasets=list(dict.fromkeys(item["dataset"] for item in facts.training_data if item.get("dataset"))) or None,
        base_model=list(facts.base_models) or None,
        model_name=one_line(facts.model_name),
        eval_results=eval_results(facts.results) or None,
        widget=facts.example.widget,
    )


def _front_matter(facts: CardFacts) -> str:
    """The front matter, checked."""
    text = f"---\n{_metadata(facts)}\n---\n"
    check_model_card(text)
    return text


def _body(facts: CardFacts, folder: Path, config: HFCLIPConfig) -> dict[str, Any]:
    """The template's variables, escaped for where they stand."""
    made = made_with()
    tables = result_tables(facts.results)
    if changes := change_table(facts.results_at_start, facts.results):
        tables = f"{tables}\n\n{changes}"
    return {
        "title": escape(facts.model_name),
        "projection_dim": config.projection_dim,
        "results": f"{tables}\n\n{MEASURED}" if tables else NOT_EVALUATED,
        "plots": [{"file": quote(file), "alt": escape(shown)} for file, shown in facts.plots],
        "architecture": table(("", ""), describe(folder, config)),
        "training_data": _data_table(facts.training_data),
        "evaluation_data": _data_table(facts.evaluation_data) if facts.evaluation_data else "",
        "license": card_license(facts.training_data)[1],
        "training": _settings_table(facts.training),
        "recipe": _settings_table(facts.recipe),
        "is_trained_here": bool(facts.recipe or facts.training),
        "made_with": f"hf_clip {made['hf_clip']}" + (f", revision {made['revision']}" if "revision" in made else ""),
        "languages": escape(", ".join(facts.languages)),
        "has_sigmoid": config.logit_bias_init_value is not None,
        "max_tokens": config.text_config.max_position_embeddings,
        "image_sizes": image_sizes(config.vision_config),
    }


def _data_table(data: Sequence[Mapping[str, Any]]) -> str:
    if not data:
        return "The training data was not recorded."
    columns = ("name", "file", "images", "captions", "license", "attribution", "source", "changes")
    used = [column for column in columns if any(item.get(column) is not None for item in data)]
    return table(used, [[item.get(column, "") for column in used] for item in data])


def _settings_table(settings: Mapping[str, Any]) -> str:
    rows = [(name, value) for name, value in _flatten(settings) if _is_known(value)]
    return table(("", ""), rows) if rows else ""


def _is_known(value: Any) -> bool:
    return is_measured(value) if isinstance(value, float) else value is not None


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# What is made of each fact; a fact of which it cannot be made is missing from a card that must be written.
WRITTEN: dict[str, Callable[[CardFacts], Any]] = {
    "training_data": lambda facts: (_front_matter(facts), _data_table(facts.training_data)),
    "evaluation_data": lambda facts: _data_table(facts.evaluation_data),
    "results": lambda facts: (_front_matter(facts), result_tables(facts.results)),
    "results_at_start": lambda facts: change_table(facts.results_at_start, facts.results_at_start),
    "recipe": lambda facts: _settings_table(facts.recipe),
    "training": lambda facts: _settings_table(facts.training),
    "languages": _front_matter,
    "example_labels": _front_matter,
}
