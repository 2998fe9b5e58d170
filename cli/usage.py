"""How a command was called and what it answers: wrong usage, files to write, text for terminals."""

import os
from pathlib import Path

# Codes of no letter: in a terminal they would move the cursor, or worse.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class UsageError(ValueError):
    """Arguments that cannot be meant, or not together."""

    exit_code = 2


def check_file(option: str, file: Path, example: str) -> None:
    """Raises UsageError unless `option` names a file that can be written; `example` is a name for one in a folder."""
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {file.parent}.")
    if file.is_dir():
        raise UsageError(f"{option} {file} is a folder: name a file, such as {file / example}.")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise UsageError(f"{option} {file} cannot be written: name another place.")


def printable(text: str) -> str:
    """The text with control characters as escapes, for terminals: names of files may hold any."""
    return text.translate(_ESCAPES)
