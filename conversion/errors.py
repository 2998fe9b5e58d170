"""The one error of this room."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConversionError(ValueError):
    """A checkpoint that cannot be read, or not be expressed in the format asked for. The message says the mend."""


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Gives errors that name no source as a ConversionError that does: damaged and hostile files raise whatever.

    Where a library is missing, its ImportError says what to install, and stays.
    """
    try:
        yield
    except (ConversionError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        if "trust_remote_code" in reason:
            reason = "a part of it needs code that came along, which is not run: pass preprocessing= and tokenizer=."
        elif not isinstance(error, ValueError):
            reason = (
                f"it cannot be used ({type(error).__name__}: {reason}): it is damaged, or fits no model of its kind."
            )
        raise ConversionError(f"{source}: {reason}") from error
