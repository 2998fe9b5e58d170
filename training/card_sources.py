"""Where data comes from, as YAML files say it for model cards."""

import re
from pathlib import Path
from typing import Any

import yaml

from .recipe_error import RecipeError, require


def read_card_sources(sources: list[str]) -> dict[str, dict[str, Any]]:
    """What the YAML files of `card.sources` say of each data file, by the file's name.

    Raises:
        RecipeError: a file is missing, is no UTF-8 or no YAML, or is not a list of entries with `file` and `name`.
    """
    known = {}
    for source in sources:
        require(Path(source).is_file(), f"card.sources: there is no file {source}.")
        try:
            entries = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"card.sources: {source} cannot be read: {' '.join(str(error).split())}") from error
        require(isinstance(entries, list), f"card.sources: {source} must be a list, one entry a data file.")
        for number, entry in enumerate(entries, start=1):
            which = f"card.sources: entry {number} of {source}"
            require(isinstance(entry, dict), f"{which} is {entry!r}: it must have the keys file and name.")
            for key in ("file", "name"):
                value = entry.get(key)
                require(isinstance(value, str) and bool(value.strip()), f"{which} has no {key}: add it.")
            name = entry.get("dataset", "owner/name")
            require(
                re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name), re.ASCII) is not None,
                f"{which}: dataset={name!r} is no name that the Hub can have: write owner/name.",
            )
            known[Path(entry["file"]).name] = entry
    return known
