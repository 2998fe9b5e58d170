"""The errors of this package: one line each, naming the file, with the arguments of `load` in backticks."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of the reason that another library gives.
_MAX_REASON = 500


class ConversionError(ValueError):
    """A checkpoint that cannot be read, or that the asked format cannot express. The message says how to fix it."""


class CheckpointNotFoundError(ConversionError):
    """There is no file, folder or repository of the name that was given."""


def near_name(name: str) -> str:
    """A question for the file or folder that a path which is not there may have meant, or nothing."""
    path = Path(name).expanduser()
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f" Did you mean {str(path.parent / near[0])!r}?" if near else ""


def short_reason(error: BaseException) -> str:
    """The message of an error of another library, as part of a line."""
    return " ".join(str(error).split())[:_MAX_REASON].rstrip(".") or type(error).__name__


@contextmanager
def one_line_errors(source: str | Path) -> Iterator[None]:
    """Turns errors that name no source into a ConversionError that does: damaged and hostile files raise anything.

    Where a library is missing, its ImportError says what to install, and stays.
    """
    try:
        yield
    except (ImportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except ConversionError as error:
        if str(source).removeprefix("local-dir:").removeprefix("hf-hub:") in str(error):
            raise
        raise type(error)(f"{source}: {error}") from None
    # A panic of the tokenizers library, which is written in Rust, is no Exception.
    except BaseException as error:
        reason = short_reason(error)
        if "trust_remote_code" in reason:
            reason = (
                "a part of it needs code of its own, which is not run: pass `preprocessing` (its settings) and "
                "`tokenizer` (a folder or Hub id)"
            )
        elif isinstance(error, PermissionError):
            reason = f"it cannot be read ({reason}): check the rights of the file and of the folders above it"
        elif not isinstance(error, ValueError):
            kind = type(error).__name__
            reason = f"the content does not fit any model of its kind ({kind}: {reason}): fetch it again"
        raise ConversionError(f"{source}: {reason}.") from error
