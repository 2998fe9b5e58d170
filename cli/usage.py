"""How a command was called and what it answers: wrong usage, text for terminals, the library behind the verbs."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("datasets").setLevel(logging.ERROR)


class _Lines(logging.Handler):
    """Log lines to standard error as it is when they come."""

    def __init__(self, prefix: str):
        super().__init__()
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.prefix + self.format(record)), file=sys.stderr)


@contextmanager
def shown_log(name: str, prefix: str = "") -> Iterator[None]:
    """Within it, what the library logs under a name is shown, from INFO on: it is what the verb has to tell."""
    logger, handler = logging.getLogger(name), _Lines(prefix)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
