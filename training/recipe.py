"""Recipes: YAML files and overrides, read into a checked `TrainConfig`, and written again.

Nothing of the environment is put in: `${` is text. A key of text takes text alone; what YAML reads as a truth value or
a number is refused with the quoted form that would be text.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from hf_clip.messages import in_callers_words

from .config import TrainConfig
from .recipe_error import RecipeError, require
from .recipe_keys import SHAPES, check_known

RECIPES = files("hf_clip.training") / "recipes"

# What a resumed run may have otherwise than it began: none of it changes a weight.
MAY_CHANGE = (
    "log_every",
    "log_with",
    "eval_every",
    "eval_at_start",
    "templates",
    "checkpoints",
    "evaluations",
    "card",
    "data.max_bad_fraction",
    "gradient_checkpointing",
    "max_bad_steps",
    "timeout_minutes",
    "device_teraflops",
    "data.workers",
    "data.decoded_cache_gb",
)

_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+")
_FLOAT_TAG, _INT_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml"))


def load_recipe(recipe: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """A checked config from a recipe and overrides such as `optimizer.learning_rate=1e-3`.

    Args:
        recipe: the name of one that comes with the package, or the path of a YAML file.
        overrides: `key=value`, dots between levels, values in YAML (`data.train=[a.parquet,b.parquet]`). A table or a
            list replaces the recipe's; null takes a key's default, and switches an evaluation off.

    Raises:
        RecipeError: an unknown recipe or key (the nearest is named), a value of the wrong kind or out of range.
    """
    try:
        given = _read(recipe)
        for override in overrides or []:
            _override(given, override)
        return _build(TrainConfig, given, "")
    except RecipeError:
        raise
    except RecursionError as error:
        raise RecipeError(f"Recipe {recipe} is nested too deeply: remove brackets.") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RecipeError(f"Recipe {recipe}: {' '.join(str(error).split())}") from error


def recipe_text(config: TrainConfig) -> str:
    """The whole config as YAML, from which `load_recipe` makes an equal one."""
    return yaml.dump(asdict(config), Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)


def recipe_changes(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two recipes differ, with both values; of keys within lists and free tables, the whole one."""
    return dict(_changes("", before, now))


def _changes(name: str, before: Any, now: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if is_dataclass(before) and is_dataclass(now):
        before, now = vars(before), vars(now)
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name, (before, now)
        return
    for key in {**before, **now}:
        yield from _changes(f"{name}.{key}" if name else key, before.get(key), now.get(key))


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of a key of the recipe."""
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def keys_that_stay(message: str) -> list[str]:
    """The keys of recipes in a message that a resumed run cannot have otherwise than it began."""
    words = dict.fromkeys(re.findall(r"[a-z]\w*(?:\.[a-z]\w*)*", message))
    return [word for word in words if word in _KEYS and not may_change(word)]


class _Reader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2: 1e3 is one, 12:30 and 2026-11-27 are text. No key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            # One that is a list or a table is refused below, with its place.
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Writer(yaml.SafeDumper):
    """Quotes what either version of YAML would read as no text."""


def _match_all(pattern: re.Pattern) -> re.Pattern:
    return re.compile(f"(?:{pattern.pattern})$")


_NOT_OURS = (_FLOAT_TAG, _INT_TAG, "tag:yaml.org,2002:timestamp")
_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_OURS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Reader, _Writer):
    _kind.add_implicit_resolver(_INT_TAG, _match_all(_INTEGER), list("-+0123456789"))
    _kind.add_implicit_resolver(_FLOAT_TAG, _match_all(_NUMBER), list("-+0123456789."))


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Reader)


def _read(recipe: str | Path) -> dict[str, Any]:
    file = RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        file = Path(recipe)
    if not file.is_file():
        raise RecipeError(
            f"There is no recipe {str(recipe)!r}: name one that comes with the package ({', '.join(list_recipes())}), "
            "or give the path of a YAML file."
        )
    content = _parse(file.read_text(encoding="utf-8"))
    if not isinstance(content or {}, dict):
        raise RecipeError(f"Recipe {recipe} is not a table of keys and values.")
    return content or {}


def _override(given: dict[str, Any], override: str) -> None:
    """Sets one `key=value`."""
    key, equals, text = override.partition("=")
    require(bool(equals and key), f"`overrides`: {override!r} is not key=value.")
    *above, last = key.split(".")
    table = given
    for name in above:
        inner = table.get(name)
        table[name] = {} if inner is None else inner
        require(isinstance(table[name], dict), f"`overrides`: {key} cannot be set, as {name} is no table.")
        table = table[name]
    table[last] = _parse(text)


def _build(kind: Any, given: Any, prefix: str) -> Any:
    """A dataclass of recipes from a table of YAML."""
    require(isinstance(given, dict), f"{prefix.rstrip('.')}={given} is not a table of keys and values.")
    check_known(given, kind, prefix)
    hints = get_type_hints(kind)
    values = {}
    for entry in fields(kind):
        value, name = given.get(entry.name), f"{prefix}{entry.name}"
        if value is not None or _takes_no_null(hints[entry.name], entry.name in given):
            values[entry.name] = _convert(hints[entry.name], value, name)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise RecipeError(f"{name} is missing: every recipe must set it.")
    try:
        return kind(**values)
    except RecipeError as error:
        names = {entry.name: f"{prefix}{entry.name}" for entry in fields(kind)}
        raise RecipeError(in_callers_words(str(error), names)) from None


def _takes_no_null(kind: Any, is_given: bool) -> bool:
    """Whether null, which takes the default elsewhere, is a mistake: for a list, whose default may not be empty."""
    return is_given and get_origin(kind) is list


def _convert(kind: Any, value: Any, key: str) -> Any:
    """A value of YAML as the kind of a field, or a RecipeError that names the key."""
    if isinstance(kind, UnionType):
        if value is None:
            return None
        [kind] = [each for each in get_args(kind) if each is not NoneType]
    if is_dataclass(kind):
        return _build(kind, value, f"{key}.")
    if get_origin(kind) is list:
        require(isinstance(value, list), f"{key}={value} is not a list: write [{value}].")
        return [_convert(get_args(kind)[0], item, key) for item in value]
    if get_origin(kind) is dict:
        return _convert_table(get_args(kind)[1], value, key)
    convert = {str: _as_text, bool: _as_truth, int: _as_integer, float: _as_float}.get(kind)
    return value if convert is None else convert(value, key)


def _convert_table(kind: Any, value: Any, key: str) -> dict[str, Any]:
    require(isinstance(value, dict), f"{key}={value} is not a table of keys and values.")
    for name in value:
        require(isinstance(name, str), f"{key}: {_shown(name)} is no text, as a key must be: write '{_shown(name)}'.")
    if is_dataclass(kind):
        # null switches an evaluation off.
        return {name: _build(kind, item, f"{key}.{name}.") for name, item in value.items() if item is not None}
    if f"{key}." in SHAPES:
        return _convert_shape(value, f"{key}.")
    return value


def _convert_shape(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A free table of the model's shape: its keys are checked, and whole numbers may be written as 1e3."""
    check_known(given, None, prefix)
    hints = {entry.name: str(entry.type) for entry in fields(SHAPES[prefix])}
    converted = {}
    for name, value in given.items():
        if f"{prefix}{name}." in SHAPES and isinstance(value, dict):
            value = _convert_shape(value, f"{prefix}{name}.")
        elif isinstance(value, float) and value.is_integer() and "int" in hints[name] and "float" not in hints[name]:
            value = int(value)
        converted[name] = value
    return converted


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _as_text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if key == "mixed_precision" and value is False:
        # YAML 1.1 takes a bare `no` for a truth value.
        return "no"
    kind = "a truth value" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else "no text"
    raise RecipeError(
        f"{key}={_shown(value)} is {kind} in YAML, and the key takes text: put it in quotes, or write null for none."
    )


def _as_truth(value: Any, key: str) -> bool:
    require(isinstance(value, bool), f"{key}={value!r} is not true or false.")
    return value


def _as_float(value: Any, key: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_written = isinstance(value, str) and _NUMBER.fullmatch(value)
    require(bool(is_number or is_written), f"{key}={value!r} is not a number.")
    return float(value)


def _as_integer(value: Any, key: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _as_float(value, key) if not isinstance(value, str) or _NUMBER.fullmatch(value) else math.nan
    require(math.isfinite(number) and number.is_integer(), f"{key}={value!r} is not a whole number.")
    return int(number)


def _all_keys(kind: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}"
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        for inner in filter(is_dataclass, kinds):
            yield from _all_keys(inner, f"{prefix}{name}.")


_KEYS = frozenset(_all_keys(TrainConfig, ""))
