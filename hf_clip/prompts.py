"""Class names and templates: those of the paper's data sets, and files of one's own.

The paper's 27 data sets (Radford et al. 2021, table 9) stand in `prompts/`, one JSON file each, with source and
license: 26 from OpenAI's `data/prompts.md`, ImageNet's cleaned names, 80 templates and best seven from its
prompt-engineering notebook. The folder is data: `tools/make_prompts.py` writes it.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("assets") / "prompts"
_KEYS = {"name", "classes", "templates", "best_templates", "source", "license"}
_FORM = "write one text a line under `templates`, each after a dash"


@dataclass(frozen=True)
class Prompts:
    """How a data set's classes are put into words.

    Attributes:
        name: of the data set.
        templates: texts in which `{}` stands for a class's name.
        classes: the classes in the order of their indices, each by one name or more; empty where a file gives
            templates alone and the names come with the data.
        best_templates: a few that do nearly as well as all (ImageNet's seven); empty where none were published.
        source: where the words come from.
        license: under which they do.
    """

    name: str
    templates: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...] = ()
    best_templates: tuple[str, ...] = ()
    source: str = ""
    license: str = ""

    def __post_init__(self):
        for key in ("templates", "best_templates"):
            for template in getattr(self, key):
                if not isinstance(template, str) or "{}" not in template:
                    raise ValueError(
                        f"{self.name}: {template!r} in `{key}` has no '{{}}': put '{{}}' where the label belongs."
                    )
        if not self.templates:
            raise ValueError(f"{self.name} has no templates: give at least one, such as 'a photo of a {{}}.'.")

    @property
    def labels(self) -> tuple[str, ...]:
        """The first name of each class."""
        return tuple(names[0] for names in self.classes)


def describe_templates(templates: Sequence[str]) -> str:
    """The line of a table that says which templates a number was measured with: how many, and the first."""
    return (
        f'1 template: "{templates[0]}"'
        if len(templates) == 1
        else f'{len(templates)} templates: "{templates[0]}", ...'
    )


def list_prompts() -> list[str]:
    """The paper's data sets, sorted."""
    return sorted((file.stem for file in _FOLDER.glob("*.json")), key=str.lower)


def load_prompts(name: str | Path) -> Prompts:
    """The prompts of one of the paper's data sets (in any case, with or without dashes), or of a YAML or JSON file.

    A file holds `templates` and, where it has them, `classes` (a name, or a list of names, each), `name`, `source`,
    `license` and `best_templates`. All of these are texts: a number, or a word that YAML takes for a boolean (`no`),
    stands in quotes.

    Raises:
        ValueError: for a name that is neither, with the nearest known ones; for a file that cannot be read, that has
            no templates or other keys, or that holds something else than texts, with its line.
    """
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _from_file(path)
    known = {_simple(each): each for each in list_prompts()}
    if _simple(str(name)) not in known:
        near = difflib.get_close_matches(_simple(str(name)), known, n=3, cutoff=0.4) or known
        raise ValueError(
            f"{str(name)!r} is not a data set with known prompts. Nearest: {', '.join(known[key] for key in near)}. "
            "list_prompts() and hf-clip prompts list all; a YAML file with templates does as well."
        )
    return _from_file(_FOLDER / f"{known[_simple(str(name))]}.json")


def describe_prompts(prompts: Prompts) -> str:
    """Prompts as plain text for a terminal: source, license, templates, and one class a line with its index."""
    templates = "1 template" if len(prompts.templates) == 1 else f"{len(prompts.templates)} templates"
    lines = [f"{prompts.name}: {len(prompts.classes)} classes, {templates}"]
    lines += [f"{key}: {value}" for key, value in (("source", prompts.source), ("license", prompts.license)) if value]
    lines += ["", "templates", *(f"  {template}" for template in prompts.templates)]
    if prompts.best_templates:
        lines += ["", "best templates", *(f"  {template}" for template in prompts.best_templates)]
    if prompts.classes:
        lines += ["", "classes", *(f"{index:6}  {', '.join(names)}" for index, names in enumerate(prompts.classes))]
    return "\n".join(lines)


def _simple(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _from_file(path: Path) -> Prompts:
    if not path.is_file():
        raise ValueError(f"There is no file {path} to read prompts from.")
    content, places = _parsed(path)
    if not isinstance(content, dict) or "templates" not in content:
        raise ValueError(f"{path} holds no prompts: it needs a key `templates` with a list of texts.")
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        raise ValueError(f"{path}: unknown key {', '.join(unknown)}. Known: {', '.join(sorted(_KEYS))}.")
    for key in ("classes", "templates", "best_templates"):
        if not isinstance(content.get(key, []), list):
            raise ValueError(f"{path}: `{key}` is not a list: write one entry a line, each after a dash.")
    file = _File(path, places)
    return Prompts(
        name=file.text(content.get("name", path.stem), "name"),
        templates=tuple(file.texts(content["templates"], "templates")),
        classes=tuple(file.names(entry, "classes", index) for index, entry in enumerate(content.get("classes", []))),
        best_templates=tuple(file.texts(content.get("best_templates", []), "best_templates")),
        source=file.text(content.get("source", str(path)), "source"),
        license=file.text(content.get("license", ""), "license"),
    )


@dataclass(frozen=True)
class _File:
    """A file's values as texts, and never the `str` of something else: `places` tells line and spelling of each."""

    path: Path
    places: dict[tuple, tuple[int, str]]

    def text(self, value: Any, *keys: str | int) -> str:
        if isinstance(value, str) and (value.strip() or keys[0] in ("source", "license")):
            return value
        line, spelling = self.places.get(keys, (0, repr(value)))
        where = f"{self.path}, line {line}" if line else f"{self.path}, {' '.join(map(str, keys))}"
        if isinstance(value, str) or value is None:
            raise ValueError(f"{where}: an entry of `{keys[0]}` is empty: write a text, or remove it.")
        raise ValueError(
            f"{where}: {spelling} in `{keys[0]}` is read as {type(value).__name__}, which is not a text: write it in "
            "quotes."
        )

    def texts(self, values: list, key: str) -> list[str]:
        return [self.text(value, key, index) for index, value in enumerate(values)]

    def names(self, entry: Any, key: str, index: int) -> tuple[str, ...]:
        if isinstance(entry, list) and entry:
            return tuple(self.text(name, key, index, number) for number, name in enumerate(entry))
        return (self.text(entry, key, index),)


def _parsed(path: Path) -> tuple[Any, dict[tuple, tuple[int, str]]]:
    """What a file holds, and where: the line and the spelling of each value, by its keys; none for JSON."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8: {error}.") from None
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text), {}
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from None
        except RecursionError:
            raise ValueError(f"{path} is nested too deeply: {_FORM}.") from None
    import yaml

    try:
        # First, for PyYAML says where a key stands that is a list.
        content = yaml.safe_load(text)
        return content, dict(_places(yaml.compose(text, yaml.SafeLoader)))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply: {_FORM}.") from None
    # What PyYAML makes no error of its own of, such as dates that are none.
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None


def _places(node: Any, keys: tuple = ()) -> Iterator[tuple[tuple, tuple[int, str]]]:
    if node is None:
        return
    yield keys, (node.start_mark.line + 1, node.value if node.id == "scalar" else f"a {node.id}")
    if node.id == "mapping":
        for key, value in node.value:
            yield from _places(value, (*keys, key.value))
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            yield from _places(value, (*keys, index))
