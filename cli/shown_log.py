"""What the library logs, as lines of a verb."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .usage import printable


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
