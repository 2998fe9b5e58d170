"""The one error of this package, and exceptions of LanceDB as lines."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# LanceDB names the place in its own sources.
_PLACE_IN_SOURCES = re.compile(r",? */\S+\.rs:\d+:\d+")
_FULL = ("No space left", "os error 28", "File too large", "os error 27", "quota", "os error 122")
_REFUSED = ("Read-only file system", "os error 30", "Permission denied", "os error 13", "Operation not permitted")


class SearchError(ValueError):
    """An index cannot be made, read or asked. The message says what was given, what is there, and the fix."""


def one_line(error: BaseException) -> str:
    """An exception's text on one line, without places in other packages' sources."""
    text = _PLACE_IN_SOURCES.sub("", " ".join(str(error).split()))
    return text[:300] or type(error).__name__


@contextmanager
def writing(folder: str | Path, argument: str = "index") -> Iterator[None]:
    """The body writes below a folder: what the disk or the rights refuse is one line, and what was there stays whole.

    Args:
        argument: that of the caller which says where.
    """
    try:
        yield
    except SearchError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        text = str(error)
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) or any(word in text for word in _FULL):
            raise SearchError(
                f"{folder} cannot be written to: the disk is full, or a quota is used up. All that was there is "
                f"whole. Free some space, or name another place with `{argument}`, and go on."
            ) from error
        refused = (errno.EROFS, errno.EACCES, errno.EPERM)
        if str(getattr(error, "filename", "") or "").startswith(str(folder)):
            # A file stands where a folder is to be made, or above it.
            refused += (errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
        if number in refused or any(word in text for word in _REFUSED):
            raise SearchError(
                f"{folder} cannot be written to ({one_line(error)}): name a place of yours with `{argument}`."
            ) from error
        raise
