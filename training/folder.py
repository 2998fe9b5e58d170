"""The run's folder: one run a folder, and enough room for it."""

import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from .checkpoint import CheckpointError
from .config import TrainConfig, load_recipe, recipe_text

RECIPE = "recipe.yaml"
RESULTS = "results.json"


class FolderError(ValueError):
    """The output folder does not fit what was asked for."""


def claim_folder(folder: Path, config: TrainConfig, resume: bool, accelerator: Accelerator) -> Path:
    """Makes the run's folder and keeps the recipe in it, or checks that the run there is the one to resume.

    Raises:
        FolderError: the folder holds something, and `resume` is False; there is no run to resume, or it is another
        one, or it is finished; it cannot be made.
    """
    problem = None
    if accelerator.is_main_process:
        try:
            _check(folder, config, resume)
            if not resume:
                _keep_recipe(folder, config)
        # Whatever it is (a recipe that cannot be read as well), or the other ranks would wait for ever.
        except (OSError, ValueError) as error:
            problem = str(error)
    # Every rank must learn of it, or the others wait for the first.
    if accelerator.num_processes > 1:
        problem = broadcast_object_list([problem])[0]
    if problem is not None:
        raise FolderError(problem)
    return folder


def _check(folder: Path, config: TrainConfig, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file: give --output-dir a folder.")
    has_content = folder.is_dir() and any(folder.iterdir())
    if not resume:
        if has_content:
            raise FolderError(
                f"{folder} is not empty: go on with the run in it by --resume, or choose another --output-dir."
            )
        return
    if not (folder / RECIPE).is_file():
        raise FolderError(f"There is no run to resume in {folder}: start it without --resume.")
    if (folder / RESULTS).is_file():
        raise FolderError(f"The run in {folder} is finished: train another one in another --output-dir.")
    if load_recipe(folder / RECIPE) != config:
        raise FolderError(
            f"The run in {folder} has another recipe: resume it without --recipe and --set (it keeps its own in "
            f"{RECIPE}), or start the changed one in another --output-dir."
        )


def _keep_recipe(folder: Path, config: TrainConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / RECIPE).write_text(recipe_text(config), encoding="utf-8")
    except OSError:
        (folder / RECIPE).unlink(missing_ok=True)
        raise


def release_folder(folder: Path) -> None:
    """Removes a folder claimed for a new run that never made a step: the next try finds it free."""
    shutil.rmtree(folder, ignore_errors=True)


def require_space(folder: Path, model: nn.Module, keep_checkpoints: int) -> None:
    """Raises CheckpointError where the disk cannot hold the checkpoints, before hours are spent."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # Weights and two moments a checkpoint, one checkpoint more while it is written, and the final model.
    needed = weights * (3 * (keep_checkpoints + 1) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.2f} GB of free disk, the run's checkpoints need {needed / 1e9:.2f} GB: free "
            "some, lower keep_checkpoints, or choose an --output-dir elsewhere."
        )
