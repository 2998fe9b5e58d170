"""Errors in the caller's language: arguments in Python, flags at the command, keys in a recipe.

The library knows the names of its own arguments alone. It writes one in backticks where a caller can set it, `name` or
`name=value`; the command and the recipe, which know what their users wrote, replace it by that.
"""

import re
from collections.abc import Mapping

_ARGUMENT = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


def in_callers_words(message: str, names: Mapping[str, str], *, between: str = "=") -> str:
    """The message with the arguments in it called as the caller knows them.

    Args:
        message: an error's text, arguments in backticks.
        names: what the caller calls an argument, such as {"label_column": "--label-column"}. Others stay as they are.
        between: what stands between a name and its value: " " after flags, "=" in Python, ": " in YAML.
    """

    def named(found: re.Match) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        return names[name] if value is None else f"{names[name]}{between}{value}"

    return _ARGUMENT.sub(named, message)
