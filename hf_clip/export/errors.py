"""The errors of this package, and what to install where a library of the extra `export` is missing."""

from importlib import import_module
from typing import Any


class ExportError(ValueError):
    """A model that cannot be exported, or an exported folder that cannot be used. The message says how to fix it."""


def optional(name: str) -> Any:
    """A module of the extra `export`. Raises ImportError, with what to install, where it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"exported models need {name.partition('.')[0]} ({error}): pip install 'hf_clip[export]'."
        ) from error
