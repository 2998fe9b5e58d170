"""The one error of this package, the phrases that its messages share, and lines about single rows."""

import logging
from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)
# What was said of a source once is not said again of its other rows, nor at its next pass.
_reported: set[tuple[str, str]] = set()


class SourceError(ValueError):
    """The data cannot be opened or read. The message says what was given, what is there, and the fix."""


class UnlikeColumnsError(SourceError):
    """Files that are to be read as one differ in their columns."""


def column_error(name: str, option: str, columns: Sequence[str] | Mapping, wanted: str | None = None) -> SourceError:
    role = option.removesuffix("s").removesuffix("_column")
    if wanted is None:
        problem = f"{name!r} has no column that looks like {'an' if role[0] in 'aeiou' else 'a'} {role}"
    else:
        problem = f"`{option}`: {name!r} has no column {wanted!r}"
    return SourceError(f"{problem}. Columns: {', '.join(columns) or 'none'}. {how_to_set(option)}.")


def different_columns(
    file: str, columns: Sequence[str] | Mapping, other: str, other_columns: Sequence[str]
) -> SourceError:
    return UnlikeColumnsError(
        f"the files differ in their columns: {file!r} has {', '.join(columns)}, {other!r} has "
        f"{', '.join(other_columns)}. Name the files that belong together."
    )


def how_to_set(option: str) -> str:
    return f"Set `{option}` to {'some' if option in ('where', 'caption_columns') else 'one'} of them"


def first_names(names: Sequence[str], limit: int = 8) -> str:
    more = len(names) - limit
    return ", ".join(map(str, names[:limit])) + (f" and {more} more" if more > 0 else "")


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def report_row(key: str, problem: str, group: str) -> None:
    """Log why a row, or a value of it, is not used: the first of a kind that a source has; all are counted elsewhere.

    Args:
        key: names the row, as in `Sample`.
        problem: the rest of the sentence.
        group: rows of one group are of one source and have one kind of problem.
    """
    if (group, problem.partition(" ")[0]) not in _reported:
        _reported.add((group, problem.partition(" ")[0]))
        logger.warning("%s %s Such rows are skipped; this is the first.", key, problem)
