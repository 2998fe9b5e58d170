"""The best model of a run by one number of its evaluations: kept while others come, handed out at the end."""

import json
from pathlib import Path
from typing import Any, cast

from torch import nn

from .build import build_again
from .checkpoint import MANIFEST, write_folder
from .config import LESS_IS_BETTER
from .evaluate import number_of
from .run_folder import CHECKPOINTS
from .trainer import Trainer

BEST = "best"
FACTS = "best.json"


def best_folder(run: Path) -> Path:
    return run / CHECKPOINTS / BEST


def keep_best(trainer: Trainer, results: dict[str, Any]) -> None:
    """Keeps the model of this step where its number is the best so far, and counts evaluations that brought none.

    `results` are those of `run_evaluations`. Collective.

    Raises:
        CheckpointError: the disk is full.
    """
    name = trainer.config.checkpoints.best
    if name is None:
        return
    progress = trainer.progress
    value = number_of(results, name)
    is_better = value is not None and (progress.best_value is None or _is_better(name, value, progress.best_value))
    # An evaluation that failed, or was given up, counts for nothing.
    is_better, is_measured = trainer.decisions.on_any_process(is_better, value is not None)
    if name.partition(".")[0] in results and value is None:
        trainer.log.say(f"checkpoints.best={name} is no number of this data: no best model is kept.")
    if not is_better:
        progress.evaluations_without_better += is_measured
        return
    progress.best_step, progress.best_value, progress.evaluations_without_better = progress.step, value, 0
    with trainer.released_model() as model:
        if trainer.decisions.is_main:

            def write(folder: Path) -> None:
                trainer.write_release(model, folder)
                facts = {"step": progress.step, "number": name, "value": value}
                (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")

            write_folder(best_folder(trainer.folder), write)
            trainer.log.say(f"The best model so far, by {name}={value:.4g}, is that of step {progress.step}.")
        trainer.decisions.coordinator.wait()


def take_over_best(trainer: Trainer) -> None:
    """What a resumed run knows of its best model: where that on disk is of an earlier step, it is the one."""
    try:
        facts = json.loads((best_folder(trainer.folder) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if facts["step"] <= trainer.progress.step and facts["number"] == trainer.config.checkpoints.best:
        trainer.progress.best_step, trainer.progress.best_value = facts["step"], facts["value"]


def release_best(trainer: Trainer) -> None:
    """Has `released_model` hand out the best model from now on, where one was kept. Collective."""
    folder, config, progress = best_folder(trainer.folder), trainer.config.checkpoints, trainer.progress
    if config.best is None:
        return
    [is_there] = trainer.decisions.on_any_process(trainer.decisions.is_main and (folder / MANIFEST).is_file())
    if not is_there or progress.best_step is None:
        trainer.log.say("No best model was kept: that of the last step is exported.")
        return
    best, _ = build_again(folder)
    cast(nn.Module, best).to(trainer.decisions.device)
    trainer.best_model = best.eval()
    trainer.log.say(f"The model of step {progress.best_step} is exported: {config.best}={progress.best_value:.4g}.")


def _is_better(name: str, value: float, than: float) -> bool:
    return value < than if name.rpartition(".")[2] in LESS_IS_BETTER else value > than
