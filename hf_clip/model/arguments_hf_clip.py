"""Keyword arguments that a callee does not have are refused, and the error names the nearest that it has.

transformers hands `**kwargs` from call to call, where a misspelt argument would have no effect and no error.
"""

import difflib
from collections.abc import Iterable, Mapping


def refuse_unknown_arguments(
    callee: str, given: Iterable[str], known: Iterable[str], advice: Mapping[str, str] | None = None
) -> None:
    """Nothing, if all names are known.

    Args:
        callee: the function that was called, as the error names it.
        given: names of keyword arguments.
        known: names of those that the function has.
        advice: for names of other functions' arguments, what to do instead.

    Raises:
        TypeError: for the first name that is not known. The error names the nearest.
    """
    known = sorted(known)
    for name in given:
        if name in known:
            continue
        if advice and name in advice:
            raise TypeError(f"{callee} has no argument `{name}`: {advice[name]}")
        [nearest] = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise TypeError(f"{callee} has no argument `{name}`. The nearest is `{nearest}`.")
