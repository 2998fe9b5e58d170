"""Checkpoints that are whole or not there.

A checkpoint is written to a folder beside its place, flushed to disk, given a manifest with the hash of every file,
and only then renamed. A full disk or a kill leaves the last one as it was. Hashes are checked on reading, as
safetensors notices a file cut short but not a flipped bit.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"
STATE = "training_state.pt"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, or written; the message says which and what to do."""


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fills `folder` by `write(temporary folder)`, whole or not at all.

    Raises:
        CheckpointError: the disk is full or refuses; what was written of it is gone again.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        hashes = {str(file.relative_to(partial)): _hash(file) for file in files}
        (partial / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for file in [*files, partial / MANIFEST]:
            _flush(file)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _flush(folder.parent)
    # Writers in C report a full disk as a RuntimeError (torch) or an error of their own (safetensors).
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder} could not be written ({str(error).splitlines()[0]}). Nothing of it is left and earlier "
            "checkpoints are whole: free some space, then run again with --resume."
        ) from error


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        for name, digest in hashes.items():
            if _hash(folder / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{error}"
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        problem = damage(path)
        if problem is None:
            return path
        warn(f"{path} is damaged ({problem}): going back to the one before.")
    if paths:
        raise CheckpointError(f"All checkpoints in {folder} are damaged: start again in another --output-dir.")
    return None


def save_state(folder: Path, state: dict[str, Any]) -> None:
    torch.save(state, folder / STATE)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint. Nothing in the file is run (`weights_only`)."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path)
