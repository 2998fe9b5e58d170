"""The run's folder: one run a folder, one process at a time in it, and enough free space for it."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, Timeout
from torch import nn

from .checkpoint import CheckpointError, list_checkpoints
from .config import CheckpointConfig, TrainConfig
from .decisions import Decisions
from .recipe import load_recipe, may_change, recipe_changes, recipe_text

RECIPE = "recipe.yaml"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
BAD_BATCHES = "bad_batches.jsonl"
TENSORBOARD = "tensorboard"
# Keys of a recipe of which a run that goes on may have more than it began with.
LENGTHS = ("steps", "epochs")
# A run that a scheduler starts again may come before the one before it has cleaned up.
LOCK_SECONDS = 60.0
_LOCK = ".lock"
_UNFINISHED_RECIPE = f".{RECIPE}.partial"


class FolderError(ValueError):
    """The output folder does not fit what was asked for."""


class RunFolder:
    """A run's folder while a process trains in it. Made by `claim_folder`; `close` gives it free.

    `path` is the folder; `notes` says what a resumed run has otherwise than it began; `resumes` is whether it goes on
    with a run; `results` are those of a finished one, with which nothing is left to do.
    """

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self.resumes = False
        self.results: dict[str, Any] | None = None
        self._lock: BaseFileLock | None = None
        self._is_made_here = False

    def lock(self, seconds: float = 0.0) -> None:
        """Makes the folder where there is none.

        Raises FolderError where another process trains in it, and still does after so many seconds.
        """
        while self._lock is None:
            try:
                self.path.mkdir(parents=True)
                self._is_made_here = True
            except FileExistsError:
                if not self.path.is_dir():
                    raise FolderError(f"{self.path} is a file: `output_dir` must be a folder.") from None
            lock = FileLock(self.path / _LOCK, timeout=seconds)
            try:
                lock.acquire()
            except Timeout:
                raise FolderError(
                    f"Another process trains in {self.path}: wait for it or stop it, or choose another `output_dir`."
                ) from None
            except FileNotFoundError:
                # Another process that had made the folder has just removed it.
                continue
            except OSError as error:
                # Some network file systems have no locks: there the user has to take care.
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
            self._lock = lock

    def check(self, config: TrainConfig, resume: bool | Literal["auto"]) -> None:
        """Finds out whether a run is resumed here, or is finished.

        Raises FolderError where the folder is not free for a new run, or not that of the run to resume.
        """
        has_content = any(item.name not in (_LOCK, _UNFINISHED_RECIPE) for item in self.path.iterdir())
        self.resumes = (self.path / RECIPE).is_file() if resume == "auto" else resume
        if not self.resumes:
            if has_content:
                raise FolderError(
                    f"{self.path} is not empty: go on with the run in it by `resume`, or choose another `output_dir`."
                )
            return
        if not (self.path / RECIPE).is_file():
            raise FolderError(f"There is no run to resume in {self.path}: start it without `resume`.")
        changes = recipe_changes(load_recipe(self.path / RECIPE), config)
        longer = [key for key, (before, now) in changes.items() if key in LENGTHS and before and now and now > before]
        is_finished = (self.path / RESULTS).is_file() and not longer
        if is_finished and resume != "auto":
            raise FolderError(
                f"The run in {self.path} is finished: go on with more steps (steps or epochs of its recipe), or train "
                "another one in another `output_dir`."
            )
        shown = {key: f"{key} was {before!r} and is {now!r} now" for key, (before, now) in changes.items()}
        if refused := [text for key, text in shown.items() if not may_change(key) and key not in longer]:
            raise FolderError(
                f"The run in {self.path} has another recipe: {'; '.join(refused)}. Resume it with its own "
                "(recipe.yaml in that folder), or start the changed one in another `output_dir`."
            )
        if is_finished:
            self.results = json.loads((self.path / RESULTS).read_text(encoding="utf-8"))
        self.notes = list(shown.values())
        if longer and config.optimizer.schedule != "constant":
            self.notes.append(
                "From here on the learning rates are those of the longer run at this step, not those that they had "
                "fallen to"
            )

    def keep_recipe(self, config: TrainConfig) -> None:
        unfinished = self.path / _UNFINISHED_RECIPE
        try:
            unfinished.write_text(recipe_text(config), encoding="utf-8")
            unfinished.replace(self.path / RECIPE)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def clear(self) -> None:
        """Removes what a new run that never made a step has left: the next try finds the folder as this one did."""
        if self._lock is None:
            return
        for name in (RECIPE, METRICS, _UNFINISHED_RECIPE):
            (self.path / name).unlink(missing_ok=True)
        for name in (CHECKPOINTS, TENSORBOARD):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def close(self) -> None:
        """Gives the lock back, and removes the folder where it was made here and nothing is in it."""
        if self._lock is None:
            return
        is_windows = os.name == "nt"
        if is_windows:
            # Which removes no file that is open.
            self._lock.release()
        (self.path / _LOCK).unlink(missing_ok=True)
        if self._is_made_here and not any(self.path.iterdir()):
            self.path.rmdir()
        if not is_windows:
            # Not before: who has got the lock of a file that is removed under him has it alone no more.
            self._lock.release()
        self._lock = None


def claim_folder(path: Path, config: TrainConfig, resume: bool | Literal["auto"], decisions: Decisions) -> RunFolder:
    """Locks the run's folder and keeps the recipe in it, or checks that the run there is the one to resume.

    A resumed run may have another value of some keys (`hf_clip.training.recipe.MAY_CHANGE`). The main process alone
    holds the lock, until `close`. `resume="auto"` resumes the run that is there, if there is one.

    Raises:
        FolderError: another process trains there; the folder holds something, and `resume` is False; there is no run
        to resume, or it is another one, or it is finished; it cannot be made; `resume` is something else.
    """
    if resume not in (False, True, "auto"):
        raise FolderError(f"`resume={resume}` is unknown: use True, False or 'auto'.")
    folder, problem = RunFolder(path), None
    if decisions.is_main:
        try:
            if resume is True and not path.is_dir():
                raise FolderError(f"There is no run to resume in {path}: start it without `resume`.")
            folder.lock(LOCK_SECONDS if resume == "auto" else 0.0)
            folder.check(config, resume)
            if folder.results is None:
                if folder.notes or not folder.resumes:
                    folder.keep_recipe(config)
                # A finished run that goes on is none until it ends again.
                (path / RESULTS).unlink(missing_ok=True)
        # Whatever it is (a recipe that cannot be read as well), or the other ranks would wait for ever.
        except (OSError, ValueError) as error:
            problem = str(error)
            folder.close()
    # Every rank must learn of it, or the others wait for the first.
    found = decisions.coordinator.gather((problem, folder.resumes, folder.results))
    problem, folder.resumes, folder.results = found[0]
    if problem is not None:
        raise FolderError(problem)
    return folder


def require_space(folder: Path, model: nn.Module, steps: int, config: CheckpointConfig) -> None:
    """Raises CheckpointError where the disk cannot hold the checkpoints to come, before hours are spent."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # Weights and two moments a checkpoint, one checkpoint more while it is written, and the final model.
    kept_for_good = 0 if config.keep_every is None else steps // config.keep_every
    to_come = max(config.keep_last + kept_for_good - len(list_checkpoints(folder / CHECKPOINTS)), 0) + 1
    # The best model is written again before the one before it goes.
    needed = weights * (3 * to_come + 1 + 2 * (config.best is not None))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.2f} GB of free disk, the run's checkpoints need {needed / 1e9:.2f} GB: free "
            "some, lower checkpoints.keep_last, or choose an `output_dir` elsewhere."
        )
