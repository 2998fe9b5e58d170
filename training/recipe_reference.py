"""The reference of a recipe's keys, from the dataclasses and the texts below their fields."""

import ast
import inspect
from dataclasses import MISSING, Field, fields, is_dataclass
from types import ModuleType
from typing import Any, cast, get_args, get_type_hints

from . import config as _config
from . import data_config as _data_config
from . import distillation as _distillation
from . import lora_config as _lora_config
from . import stage_config as _stage_config
from .config import TrainConfig
from .recipe_error import require
from .recipe_keys import check_known

_MODULES = (_config, _data_config, _distillation, _lora_config, _stage_config)


def recipe_reference() -> str:
    """All keys of a recipe as Markdown: a table for each section, with kind, default and meaning of each key."""
    texts = field_texts(*_MODULES)
    parts: list[str] = []
    _add_section(TrainConfig, "", texts, parts)
    return "\n".join(parts).rstrip() + "\n"


def field_texts(*modules: ModuleType) -> dict[str, dict[str, str]]:
    """The text below each field of the modules' classes, by class and field."""
    found: dict[str, dict[str, str]] = {}
    for node in (node for module in modules for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            # Some stand under `if TYPE_CHECKING`, where type checkers are told more.
            bodies = [node.body, *(inner.body for inner in node.body if isinstance(inner, ast.If))]
            pairs = [pair for body in bodies for pair in zip(body, body[1:], strict=False)]
            found[node.name] = {
                entry.target.id: " ".join(str(below.value.value).split())
                for entry, below in pairs
                if isinstance(entry, ast.AnnAssign)
                and isinstance(entry.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            }
    return found


def _add_section(kind: Any, key: str, texts: dict[str, dict[str, str]], parts: list[str]) -> None:
    hints = get_type_hints(kind)
    parts += [f"## {f'`{key}`' if key else 'Top level'}", "", " ".join((inspect.getdoc(kind) or "").split()), ""]
    parts += ["| key | kind | default | meaning |", "| --- | --- | --- | --- |"]
    sections = []
    for entry in fields(kind):
        inner = [each for each in (hints[entry.name], *get_args(hints[entry.name])) if is_dataclass(each)]
        if inner:
            is_named = getattr(hints[entry.name], "__origin__", None) is dict
            sections.append((inner[0], ".".join(filter(None, [key, entry.name, "NAME" if is_named else ""]))))
        row = (f"`{entry.name}`", _kind(hints[entry.name]), _default(entry), texts[kind.__name__][entry.name])
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    parts.append("")
    for inner_kind, inner_key in sections:
        _add_section(inner_kind, inner_key, texts, parts)


def _kind(hint: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if is_dataclass(hint):
        return "table"
    arguments = get_args(hint)
    origin = getattr(hint, "__origin__", None)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return "tables by name" if is_dataclass(arguments[1]) else "table"
    return " or ".join(_kind(each) for each in arguments)


def _default(entry: Field) -> str:
    if entry.default is not MISSING:
        value = entry.default
    elif entry.default_factory is not MISSING:
        value = entry.default_factory()
    else:
        return "must be set"
    if is_dataclass(value) or value == {}:
        return ""
    shown = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return f"`{shown[value] if is_word else value}`"


def explain_key(key: str) -> str:
    """What a key of recipes is, as text: its kind, default and meaning, and for a table those of the keys in it.

    Args:
        key: with dots between levels, such as `optimizer.learning_rate`; "" for the top level.

    Raises:
        RecipeError: there is no such key; the nearest is named.
    """
    kind: Any = TrainConfig
    hint: Any = kind
    texts, within = field_texts(*_MODULES), ""
    lines: list[str] = []
    for name in filter(None, key.split(".")):
        if _is_by_name(hint):
            # The name of an evaluation: any.
            within, hint = f"{within}{name}.", kind
            lines = [f"{key}: table", f"  {' '.join((inspect.getdoc(kind) or '').split())}"]
            continue
        require(is_dataclass(kind), f"{key} is not a key of a recipe: {within.rstrip('.')} has no keys of its own.")
        kind = cast(type, kind)
        check_known({name: None}, kind, within)
        entry = next(one for one in fields(kind) if one.name == name)
        hint = get_type_hints(kind)[name]
        lines = [f"{key}: {_kind(hint)}{_said_default(entry)}", f"  {texts[kind.__name__][name]}"]
        kind, within = _inner_kind(hint) or hint, f"{within}{name}."
    shown = within + "NAME." * _is_by_name(hint)
    hints = get_type_hints(kind) if is_dataclass(kind) else {}
    for one in fields(kind) if hints else ():
        lines.append(f"{shown}{one.name}: {_kind(hints[one.name])}{_said_default(one)}")
        lines.append(f"  {texts[cast(type, kind).__name__][one.name]}")
    return "\n".join(lines)


def _inner_kind(hint: Any) -> Any:
    """The dataclass of a table, or of each of the tables by name; None for other kinds."""
    return next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)


def _is_by_name(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is dict and _inner_kind(hint) is not None


def _said_default(entry: Field) -> str:
    default = _default(entry).strip("`")
    return f" (default {default})" if default and default != "must be set" else f" ({default})" if default else ""
