"""Where numbers are shown besides metrics.jsonl: TensorBoard, W&B, trackio, MLflow, and what else Accelerate knows."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from .recipe_error import RecipeError
from .run_folder import TENSORBOARD

# Of runs of this package, where a tracker sorts runs by projects.
PROJECT = "hf_clip"


def trackers_of(log_with: list[str] | None) -> list[str]:
    """The trackers of a recipe's `log_with`; TensorBoard where it is installed, if it is null.

    Raises:
        RecipeError: one is not known to Accelerate, or its package is not installed.
    """
    if log_with is None:
        return ["tensorboard"] if find_spec("tensorboard") is not None else []
    for name in log_with:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(f"log_with: {name!r} is not known: use some of {', '.join(LOGGER_TYPE_TO_CLASS)}.")
        if find_spec(name) is None:
            raise RecipeError(f"log_with: {name} is not installed: pip install {name}, or remove it.")
    return log_with


def open_tracker(name: str, folder: Path, step: int) -> GeneralTracker:
    """Accelerate's tracker of a run's folder, started, before the step behind `step`.

    A tracker is opened by itself, not by `Accelerator.init_trackers`: one that fails must not take the others along.
    """
    run = folder.absolute().name
    given: dict[str, Any] = {
        "tensorboard": {"run_name": TENSORBOARD, "logging_dir": folder, "purge_step": step + 1 if step else None},
        "wandb": {"run_name": PROJECT, "name": run, "dir": str(folder)},
        "trackio": {"run_name": PROJECT, "name": run, "resume": "allow"},
        "mlflow": {"experiment_name": PROJECT, "run_name": run},
    }.get(name, {"run_name": run})
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        given.setdefault("logging_dir", str(folder))
    tracker = kind(**given)
    tracker.start()
    return tracker
