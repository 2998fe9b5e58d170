"""Opening a model for the command: any checkpoint that `load` takes, on a device that is there, or one line of why."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_clip.conversion import load
from hf_clip.conversion.errors import CheckpointNotFoundError
from hf_clip.export.runtime import is_exported, load_exported
from hf_clip.model.device_hf_clip import fast_dtype
from hf_clip.training.device import fastest_device

from .usage import UsageError, one_line


def usable_device(name: str | None) -> torch.device:
    """The device of that name, or the fastest. Raises UsageError if there is no such device, or nothing runs on it."""
    if name is None:
        return fastest_device()
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    # Each backend that is not there raises in its own way.
    except (RuntimeError, AssertionError, ImportError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"--device {name} cannot be used ({reason}): use {fastest_device()}, the default here."
        ) from error
    return device


def open_model(source: str, device: torch.device | str, options: Mapping[str, Any]):
    """Model and processor of a checkpoint of any format, on the device.

    Args:
        options: more arguments of `load`; a `dtype` of "auto" is what is fast on the device.

    A folder of `hf-clip export` is opened as it is, and runs on the CPU.

    Raises:
        UsageError: if the name is neither a file's, a folder's nor a repository's, and for options that an exported
            folder has no use for.
        ValueError: if it cannot be loaded; the message is one line, and names the source.
    """
    if is_exported(source):
        # The embeddings that it gives are float32, which evaluations ask for.
        given = [name for name, value in options.items() if value not in (None, "auto", "float32")]
        if given:
            raise UsageError(f"--model {source} is exported: drop --{given[0].replace('_', '-')}.")
        return load_exported(source)
    options = {**options, "dtype": fast_dtype(options.get("dtype"), device)}
    try:
        return load(source, device=device, **options)
    except CheckpointNotFoundError as error:
        raise UsageError(f"--model {source}: {one_line(error)}") from error
    # Memory that does not suffice, files that may not be read.
    except (RuntimeError, OSError) as error:
        raise ValueError(f"--model {source} cannot be loaded: {one_line(error)}") from error
