"""A model card's text and front matter, read so that every error names the file, the place and the fix in one line."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(?:\n|\Z)", re.M | re.S)

# Fields whose kind the Hub, or its library, relies on.
FIELDS: dict[str, tuple[type, ...]] = {
    "language": (str, list),
    "license": (str,),
    "library_name": (str,),
    "pipeline_tag": (str,),
    "tags": (list,),
    "datasets": (str, list),
    "widget": (list,),
    "model-index": (list,),
}
KINDS = {dict: "a table", list: "a list", str: "a text"}


class CardError(ValueError):
    """A model card that cannot be read, or that the Hub would refuse; the message names the card."""


def read_card_text(path: Path) -> str:
    """The text of a card's file, with its ends of lines as they are, and without a byte order mark.

    Raises:
        CardError: if it cannot be read as UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CardError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise CardError(f"{path} cannot be read ({error.strerror}).") from None


def read_front_matter(text: str, name: str) -> dict[str, Any]:
    """The front matter of a card, empty where it has none.

    Args:
        text: of the card. name: what errors call it.

    Raises:
        CardError: if it is not YAML, or a field is of a kind that the Hub does not take.
    """
    found = FRONT_MATTER.match(text.removeprefix("\ufeff").replace("\r\n", "\n"))
    try:
        data = yaml.safe_load(found["yaml"]) if found else None
    except yaml.YAMLError as error:
        raise CardError(f"{name}: the front matter is not YAML ({_place(error)}): fix it there.") from None
    except RecursionError:
        raise CardError(f"{name}: the front matter is nested too deeply: remove brackets.") from None
    # What PyYAML makes no error of its own of, such as dates that are none.
    except (TypeError, ValueError) as error:
        raise CardError(f"{name}: the front matter cannot be read ({error}): correct that value.") from None
    data = {} if data is None else data
    _require(data, (dict,), "the front matter", name)
    for key, value in data.items():
        _require(key, (str,), f"the key {key!r} of the front matter", name)
        if key in FIELDS and value is not None:
            _require(value, FIELDS[key], f"{key!r} in the front matter", name)
    for key in ("language", "tags", "datasets"):
        for item in data[key] if isinstance(data.get(key), list) else ():
            _require(item, (str,), f"{item!r} of {key!r} in the front matter", name)
    _check_model_index(data.get("model-index") or [], name)
    return data


def parse_card(text: str, name: str) -> ModelCard:
    """The card of a text. Raises CardError as `read_front_matter` does."""
    read_front_matter(text, name)
    try:
        return ModelCard(text.removeprefix("\ufeff"))
    # Whatever it is: what people write reaches code of the Hub's library that trusts it.
    except Exception as error:
        raise CardError(f"{name}: the front matter cannot be read ({' '.join(str(error).split())[:300]}).") from None


def _check_model_index(models: list, name: str) -> None:
    if len(models) > 1:
        raise CardError(f"{name}: 'model-index' in the front matter has {len(models)} models: a card describes one.")
    for model in models:
        _require(model, (dict,), "the entry of 'model-index'", name)
        _require(model.get("results"), (list,), "'results' of 'model-index'", name)
        for result in model["results"]:
            _require(result, (dict,), "a result of 'model-index'", name)
            for key, kind in (("task", dict), ("dataset", dict), ("metrics", list)):
                _require(result.get(key) or kind(), (kind,), f"{key!r} of a result of 'model-index'", name)
            for metric in result.get("metrics") or ():
                _require(metric, (dict,), "a metric of 'model-index'", name)


def _require(value: Any, kinds: tuple[type, ...], what: str, name: str) -> None:
    if not isinstance(value, kinds):
        found = KINDS.get(type(value), repr(value))
        raise CardError(f"{name}: {what} is {found}: it must be {' or '.join(KINDS[kind] for kind in kinds)}.")


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
    # The front matter begins below the card's first line.
    return f"line {mark.line + 2}: {problem}" if mark else problem
