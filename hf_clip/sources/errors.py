"""The one error of this room, and the phrases that its messages share."""

from collections.abc import Mapping, Sequence


class SourceError(ValueError):
    """The data cannot be opened or read. The message says what was given, what is there, and the mend."""


def column_error(name: str, option: str, columns: Sequence[str] | Mapping, wanted: str | None = None) -> SourceError:
    role = option.removesuffix("s").removesuffix("_column")
    if wanted is None:
        problem = f"{name!r} has no column that looks like {'an' if role[0] in 'aeiou' else 'a'} {role}"
    else:
        problem = f"{option}: {name!r} has no column {wanted!r}"
    return SourceError(f"{problem}. Columns: {', '.join(columns) or 'none'}. {how_to_set(option)}.")


def differs(file: str, columns: Sequence[str] | Mapping, other: str, other_columns: Sequence[str]) -> SourceError:
    return SourceError(
        f"the files differ in their columns: {file!r} has {', '.join(columns)}, {other!r} has "
        f"{', '.join(other_columns)}. Name the files that belong together."
    )


def how_to_set(option: str) -> str:
    if option == "where":
        return "Set --set data.where.COLUMN=VALUE with a column that is there"
    flag = option.removesuffix("s").replace("_", "-")
    return f"Set it with --set data.{option}=... (train) or --{flag} ... (eval)"


def some(names: Sequence[str], limit: int = 8) -> str:
    more = len(names) - limit
    return ", ".join(map(str, names[:limit])) + (f" and {more} more" if more > 0 else "")


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
