"""Standard streams that may be closed, full, or read by nobody: none of that ends work that goes on without them."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# A reader that has left, or a stream that was never there: what is written has no reader, and nothing has failed.
_NO_READER = (errno.EPIPE, errno.EBADF)


class GuardedStream:
    """A text stream whose failures are kept instead of raised; what is written after one goes nowhere.

    Attributes:
        error: the first failure, or None.
        stops: whether a failure is raised as well, which ends the verb: where its lines are all that it is for.
    """

    def __init__(self, stream, stops: bool = False):
        self._stream = stream
        self.error: Exception | None = None
        self.stops = stops

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = error
        try:
            # Or Python, at its end, would try to write what is left, and complain.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass
        if self.stops:
            raise error

    @property
    def has_no_reader(self) -> bool:
        return isinstance(self.error, OSError) and self.error.errno in _NO_READER


@contextmanager
def guarded_streams() -> Iterator[tuple[GuardedStream, bool]]:
    """Puts guards before both output streams; gives that of standard output, and whether that was closed.

    A closed one becomes the null device first: a file opened later would take its number, and get what is printed.
    """
    was_closed = sys.stdout is None
    _fill_closed_streams()
    streams = sys.stdout, sys.stderr
    for stream in streams:
        # Names of files may be no text, and terminals may lack letters.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    guards = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    # Typed as files, of which the guards have all that is used.
    sys.stdout, sys.stderr = guards  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield guards[0], was_closed
    finally:
        sys.stdout, sys.stderr = streams


def _fill_closed_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
