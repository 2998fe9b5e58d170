"""Opening a model for the command: any checkpoint that `load` takes, on a device that is there, or one line of why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from hf_clip.conversion import load
from hf_clip.conversion.locating import OPENAI_FILES
from hf_clip.training.device import fastest_device

from .usage import UsageError, one_line

# Long enough for a slow line; without one, an answer comes within milliseconds.
HUB_TIMEOUT_SECONDS = 10


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
        options: more arguments of `load`.

    Raises:
        UsageError: if the name is neither a file's, a folder's nor a repository's.
        ValueError: if it cannot be loaded; the message is one line, and names the source.
    """
    is_local = Path(source.removeprefix("local-dir:")).expanduser().exists() or source in OPENAI_FILES
    if not is_local and source.count("/") != 1:
        raise UsageError(f"--model {source} does not exist: give a checkpoint, or a Hub id (owner/name).")
    repository = source.removeprefix("hf-hub:")
    problem = None if is_local else _problem_with_the_hub(repository, options.get("revision"))
    try:
        return load(source, device=device, local_files_only=problem is not None, **options)
    # Damaged files make transformers, safetensors and json raise whatever they please.
    except Exception as error:
        if problem is not None:
            raise ValueError(f"--model {source} is not in the Hub's cache, and {problem}") from error
        reason = one_line(error)
        named = reason if source.rstrip("/") in reason else f"--model {source} cannot be loaded: {reason}"
        raise ValueError(named) from error


def _problem_with_the_hub(repository: str, revision: str | None) -> str | None:
    """Why a repository cannot be fetched, asked once: fetching itself would try again for a minute first."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it, or give a local folder."
    try:
        HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except GatedRepoError:
        return "its owner must grant access first: ask for it on its page, and log in with `hf auth login`."
    except RepositoryNotFoundError:
        return "the Hub has no such model that may be seen: check the name, or log in with `hf auth login`."
    except HfHubHTTPError as error:
        return f"the Hub answers with an error ({one_line(error)[:160]}): try again later."
    except Exception as error:
        return (
            f"the Hub cannot be reached ({one_line(error)[:160]}): check the network (HF_ENDPOINT, proxies), or set "
            "HF_HUB_OFFLINE=1 to use only what is here."
        )
    return None
