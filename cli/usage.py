"""How a command was called and what it answers: wrong usage, text for terminals, the library behind the verbs.

A search that a server answers takes less time than Python's larger modules: they are imported where they are used.
"""

import os

# Codes of no letter: in a terminal they would move the cursor, or worse.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class UsageError(ValueError):
    """Arguments that cannot be meant, or not together."""

    exit_code = 2


def printable(text: str) -> str:
    """The text with control characters as escapes, for terminals: names of files may hold any."""
    return text.translate(_ESCAPES)


def one_line(error: BaseException) -> str:
    """An error's text on one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def start_library() -> None:
    """Imports the library and keeps other libraries' bars and notes out of the command's lines; warnings stay.

    Raises ImportError with one line where a package that it needs is broken.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import hf_clip  # noqa: F401
    # A package built for another torch fails in ways of its own.
    except Exception as error:
        raise ImportError(
            f"hf_clip cannot be imported ({one_line(error)[:200]}): `hf-clip doctor` shows which package is at fault."
        ) from error
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("datasets").setLevel(logging.ERROR)
