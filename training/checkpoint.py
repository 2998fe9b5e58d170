"""Checkpoints that are whole or not there.

A checkpoint is written to a temporary folder, flushed to disk, given a manifest with the hash of every file, and only
then renamed. A full disk or a kill leaves the last one as it was. Hashes are checked on reading, as
safetensors notices a file cut short but not a flipped bit.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .config import CheckpointConfig

MANIFEST = "manifest.json"
# Keys of settings files that name the code of a model.
_NAMES_OF_CODE = {"auto_map", "custom_pipelines"}
STATE = "training_state.pt"
# Of sharded weights, which each process writes its own part of.
SHARDS = "shards"
# A checkpoint while another of its step takes its place.
REPLACED = "replaced"
_NAME = re.compile(r"checkpoint-(\d+)")
# One file, or the shards of a large model.
_WEIGHTS = re.compile(r"model.*\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, or written; the message says which and what to do."""


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fills `folder` by `write(temporary folder)`, whole or not at all.

    Raises:
        CheckpointError: the disk is full or refuses; what was written of it is gone again, as it is where `write`
        raises anything else, which is passed on.
    """
    partial, replaced = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", REPLACED))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        inside = sorted(partial.rglob("*"))
        hashes = {str(file.relative_to(partial)): _hash(file) for file in inside if file.is_file()}
        (partial / MANIFEST).write_text(json.dumps(hashes, indent=1))
        # A folder's own entries are flushed with it, not with the files.
        for path in [*inside, partial / MANIFEST, partial]:
            _flush(path)
        if folder.exists():
            # Never without one of the two: a kill may come at any time.
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        partial.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        _put_back(folder)
        if not _is_from_disk(error):
            raise
        earlier = list_checkpoints(folder.parent)
        left = f"{earlier[-1].name} is whole: free" if earlier else "there is no earlier checkpoint: free"
        raise CheckpointError(
            f"{folder} could not be written ({str(error).splitlines()[0]}). Nothing of it is left and {left} some "
            "space, then go on with `resume`."
        ) from error


def _put_back(folder: Path) -> None:
    """What was being replaced, where what replaces it did not get its place."""
    replaced = folder.with_name(f".{folder.name}.{REPLACED}")
    # Of several processes that see it, one does it.
    with contextlib.suppress(OSError):
        if replaced.is_dir() and not folder.exists():
            replaced.rename(folder)


def _is_from_disk(error: BaseException) -> bool:
    # A file that should have been there to read.
    if isinstance(error, FileNotFoundError):
        return False
    # What is written in Rust reports the system's errors as its own: tokenizers as a bare Exception.
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


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
    has_weights = f"{SHARDS}/.metadata" in hashes or any(_WEIGHTS.fullmatch(name) for name in hashes)
    if STATE not in hashes or not has_weights:
        return f"{MANIFEST} lists no weights or no {STATE}"
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    for path in folder.glob(f".checkpoint-*.{REPLACED}"):
        _put_back(path.with_name(path.name[1:].removesuffix(f".{REPLACED}")))
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


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
        raise CheckpointError(f"All checkpoints in {folder} are damaged: start again in another `output_dir`.")
    return None


def drop_code(folder: Path) -> None:
    """Removes the code that a saved model brings, and what names it: checkpoints are read where the package is."""
    for file in folder.glob("*_hf_clip.py"):
        file.unlink()
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        kept = _without_names_of_code(content)
        if kept != content:
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_names_of_code(content: Any) -> Any:
    """Settings without what names code, in the tables within them too: each tower has its own."""
    if not isinstance(content, dict):
        return content
    return {key: _without_names_of_code(value) for key, value in content.items() if key not in _NAMES_OF_CODE}


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Raises OSError where the disk is full or refuses."""
    try:
        torch.save(state, folder / STATE)
    except RuntimeError as error:
        # So does the writer in C++ report the system's errors.
        raise OSError(f"{STATE}: {error}") from error


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint. Nothing in the file is run (`weights_only`)."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def remove_old_checkpoints(folder: Path, config: CheckpointConfig, step: int, in_use: Path | None = None) -> None:
    """Leaves the newest `keep_last` up to `step`, those of every `keep_every` steps, and the one `in_use`.

    Later ones than `step` are damaged, or the run would have gone on from there: they neither count nor go.
    """
    paths = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    for path in paths[: -config.keep_last]:
        is_kept_for_good = config.keep_every is not None and step_of(path) % config.keep_every == 0
        if path != in_use and not is_kept_for_good:
            shutil.rmtree(path, ignore_errors=True)


class SaveClock:
    """Says when `save_minutes` are over since the last checkpoint, or since the start."""

    def __init__(self, save_minutes: float | None):
        self.seconds = None if save_minutes is None else 60 * save_minutes
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def is_due(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.since >= self.seconds
