"""Values of the user's data as text: which kinds are taken, which text and which index of a class they stand for.

Labels, concepts, captions and the values of `where` come as text, whole numbers, floats, booleans or dates, by what
the file can hold. Nothing else has a text of its own: the `str` of a list or an object would be a word of Python.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

_WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_BOOLEANS = {"false": 0, "true": 1}


class ValueKindError(ValueError):
    """A value is of a kind that has no text; the message says of which, and is the end of a sentence on its column."""


@dataclass(frozen=True)
class Unread:
    """Stands in the place of a value that is too large to be read: its size and the largest, in bytes."""

    size: int
    limit: int


def as_text(value: Any) -> str | None:
    """A single value as text; None for None, NaN and pandas' NaT.

    Text stays as it is. A number that is whole is written without a point, for pandas makes 3 of a column with gaps a
    3.0; booleans are "true" and "false", as in JSON and YAML; dates are ISO 8601; bytes are UTF-8.

    Raises:
        ValueKindError: for lists, objects and everything else.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", errors="surrogateescape")
    # numpy's scalars, and tensors and arrays of no axis.
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        if value != value:
            return None
        return str(int(value)) if abs(value) < 2**53 and value == int(value) else str(value)
    if isinstance(value, date | datetime | time):
        # pandas' NaT is a datetime that is not itself.
        return value.isoformat() if value == value else None
    raise ValueKindError(f"holds {describe(value)}")


def class_index(text: str) -> int | None:
    """The index of a class that a label stands for: "3", "003" and "3.0" are 3, "false" and "True" are 0 and 1.

    None for a name, and for -1, with which data sets mark rows without a label.
    """
    text = text.strip()
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    index = whole_number(text)
    return index if index is not None and index >= 0 else None


def spellings(text: str) -> set[str]:
    """The text, and the one spelling that booleans and whole numbers with a point have in `as_text`."""
    found = {text}
    if text.lower() in _BOOLEANS:
        found.add(text.lower())
    elif _WHOLE_NUMBER.fullmatch(text) and "." in text:
        found.add(text.partition(".")[0])
    return found


def whole_number(text: str) -> int | None:
    """The number that a text is, if it is whole: -1 for "-1.0"; None for words."""
    text = text.strip()
    return int(text.partition(".")[0]) if _WHOLE_NUMBER.fullmatch(text) else None


def is_single(value: Any) -> bool:
    """Whether a value is neither a list nor an object nor anything else without a text."""
    try:
        as_text(value)
    except ValueKindError:
        return False
    return True


def describe(value: Any) -> str:
    """What a value is, in words for a message."""
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        return (
            f"an object (keys {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})" if keys else "an empty object"
        )
    if isinstance(value, list | tuple | set):
        kinds = sorted({"an object" if isinstance(item, Mapping) else type(item).__name__ for item in value})
        return f"a list of {len(value)} ({', '.join(kinds)})" if kinds else "an empty list"
    if isinstance(value, Unread):
        return f"{value.size / 2**20:.0f} MB (at most {value.limit / 2**20:.0f} MB are read)"
    return f"a value of type {type(value).__name__}"
