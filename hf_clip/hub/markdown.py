"""Text as Markdown that reads as the text, whatever it holds."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code, in a fence longer than any within."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def one_line(text: Any) -> str:
    return " ".join(str(text).split())


def escape(value: Any) -> str:
    """One line of Markdown that reads as `value`, whatever it holds: no markup, no HTML, no end of a cell."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # Underscores within words mark nothing.
    return re.sub(r"([\\`*\[\]<>|~$&#!]|\b_|_\b|(?<=_)_)", r"\\\1", one_line(value))


def slug(name: str) -> str:
    """A name that the Hub's ids allow: lower-case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "data"
