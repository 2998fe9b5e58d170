"""Where a row begins in its file, and how a row that is none is handed on."""

from collections.abc import Iterator
from typing import Any, NamedTuple

# In the place of its columns, such a row has the end of a sentence about what is wrong with it.
PROBLEM = "__problem__"


class Mark(NamedTuple):
    """A row's position in its file: `offset` in bytes (in rows, where there are no lines), the number in its key."""

    offset: int
    number: int


# (mark, key as in `Sample`, columns) of each row.
MarkedRows = Iterator[tuple[Mark, str, dict[str, Any]]]
