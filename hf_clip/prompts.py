"""Class names and templates: those of the paper's data sets, and files of one's own.

The paper's 27 data sets (Radford et al. 2021, table 9) stand in `prompts/`, one JSON file each, with source and
license: 26 from OpenAI's `data/prompts.md`, ImageNet's cleaned names, 80 templates and best seven from its
prompt-engineering notebook. The folder is data: `tools/make_prompts.py` writes it.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("assets") / "prompts"
_KEYS = {"name", "classes", "templates", "best_templates", "source", "license"}


@dataclass(frozen=True)
class Prompts:
    """How a data set's classes are put into words.

    Attributes:
        name: of the data set.
        templates: texts in which `{}` stands for a class's name.
        classes: the classes in the order of their numbers, each by one name or more; empty where a file gives
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
                        f"{self.name}: {template!r} in {key} has no '{{}}': put '{{}}' where the class's name belongs."
                    )
        if not self.templates:
            raise ValueError(f"{self.name} has no templates: give at least one, such as 'a photo of a {{}}.'.")

    @property
    def labels(self) -> tuple[str, ...]:
        """The first name of each class."""
        return tuple(names[0] for names in self.classes)


def list_prompts() -> list[str]:
    """The paper's data sets, sorted."""
    return sorted((file.stem for file in _FOLDER.glob("*.json")), key=str.lower)


def load_prompts(name: str | Path) -> Prompts:
    """The prompts of one of the paper's data sets (in any case, with or without dashes), or of a YAML or JSON file.

    A file holds `templates` and, if it likes, `classes` (a name, or a list of names, each), `name`, `source`,
    `license` and `best_templates`. Raises ValueError for a name that is neither, with the nearest known ones, and for
    a file without templates or with other keys.
    """
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _from_file(path)
    known = {_simple(each): each for each in list_prompts()}
    if _simple(str(name)) not in known:
        near = difflib.get_close_matches(_simple(str(name)), known, n=3, cutoff=0.4) or known
        raise ValueError(
            f"{str(name)!r} is not a data set with known prompts. Nearest: {', '.join(known[key] for key in near)}. "
            "`hf-clip prompts` lists all; a YAML file with `templates` does as well."
        )
    return _from_file(_FOLDER / f"{known[_simple(str(name))]}.json")


def describe_prompts(prompts: Prompts) -> str:
    """All that is in them as plain text for a terminal: source, license, templates, and a class a line."""
    lines = [f"{prompts.name}: {len(prompts.classes)} classes, {len(prompts.templates)} templates"]
    lines += [f"{key}: {value}" for key, value in (("source", prompts.source), ("license", prompts.license)) if value]
    lines += ["", "templates", *(f"  {template}" for template in prompts.templates)]
    if prompts.best_templates:
        lines += ["", "best templates", *(f"  {template}" for template in prompts.best_templates)]
    if prompts.classes:
        lines += ["", "classes", *(f"{number:6}  {', '.join(names)}" for number, names in enumerate(prompts.classes))]
    return "\n".join(lines)


def _simple(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _from_file(path: Path) -> Prompts:
    if not path.is_file():
        raise ValueError(f"There is no file {path} to read prompts from.")
    content = _parsed(path)
    if not isinstance(content, dict) or "templates" not in content:
        raise ValueError(f"{path} holds no prompts: it needs a key `templates` with a list of texts.")
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        raise ValueError(f"{path}: unknown key {', '.join(unknown)}. Known: {', '.join(sorted(_KEYS))}.")
    for key in ("classes", "templates", "best_templates"):
        if not isinstance(content.get(key, []), list):
            raise ValueError(f"{path}: `{key}` is no list: write one entry a line, each after a dash.")
    return Prompts(
        name=content.get("name", path.stem),
        templates=tuple(content["templates"]),
        classes=tuple(_names_of_class(path, entry) for entry in content.get("classes", [])),
        best_templates=tuple(content.get("best_templates", [])),
        source=content.get("source", str(path)),
        license=content.get("license", ""),
    )


def _parsed(path: Path) -> Any:
    text = path.read_text("utf-8")
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON: {error}.") from None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None


def _names_of_class(path: Path, entry: Any) -> tuple[str, ...]:
    names = entry if isinstance(entry, list) else [entry]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: class {entry!r} is no name: write a text (in quotes where YAML takes it for a number)."
        )
    return tuple(names)
