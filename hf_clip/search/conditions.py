"""What a condition in SQL may hold: one expression that ends where it should; of strangers, nothing that is costly."""

import re
from collections.abc import Collection

from .errors import SearchError

# Texts and names in quotes, comments, words, and what stands between.
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--|/\*|[^\W\d]\w*|\d[\w.]*|\s+|.""", re.DOTALL)
# Words that may stand before a parenthesis without being functions.
_KEYWORDS = {"and", "or", "not", "in", "like", "ilike", "between", "escape", "is", "when", "then", "else", "case"}
# Functions whose answer is no longer than what they are given.
PLAIN_FUNCTIONS = (
    "lower", "upper", "trim", "length", "character_length", "strpos", "starts_with", "ends_with", "contains", "substr",
    "left", "right", "split_part", "regexp_like", "regexp_match", "coalesce", "abs", "round", "floor", "ceil",
)  # fmt: skip


def check_condition(where: str, *, longest: int | None = None, functions: Collection[str] | None = None) -> None:
    """Raises SearchError for a condition that is not one expression: what is put behind it in SQL must hold too.

    Args:
        where: as a caller gave it.
        longest: characters that it may have; None: any number. Planning takes longer than their number grows.
        functions: those that it may call; None: all. Some make gigabytes of a few characters.
    """
    if longest is not None and len(where) > longest:
        raise SearchError(f"`where` has {len(where)} characters: {longest} are the most.")
    shown = where if len(where) <= 80 else f"{where[:77]}..."
    depth, before = 0, ""
    for token in _TOKEN.findall(where):
        if token.isspace():
            continue
        depth += (token == "(") - (token == ")")
        if depth < 0 or token in ("--", "/*", ";", "'", '"', "`"):
            raise SearchError(f"`where={shown}` cannot be understood: {token} has nothing to end or to begin.")
        is_call = token == "(" and (before[:1].isalpha() or before[:1] in ("_", '"', "`"))
        if is_call and functions is not None and before.lower() not in (*_KEYWORDS, *functions):
            raise SearchError(f"`where={shown}`: {before[:40]} is not called here: use {', '.join(functions)}.")
        before = token
    if depth:
        raise SearchError(f"`where={shown}` cannot be understood: {depth} of its parentheses are not closed.")
