"""The folder that a finished run leaves: model and processor first, then plots and card, `results.json` last."""

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_clip.conversion.sentence_files import write_sentence_files
from hf_clip.evaluation import LanguagesResult, RetrievalResult, plot_retrievals, plot_similarity, plot_training
from hf_clip.evaluation.plots.result_charts import plot_languages
from hf_clip.hub import CardFacts, made_with, write_model_card
from hf_clip.model.image_decoding_hf_clip import decode_image
from hf_clip.sources import Source, iterate_samples
from hf_clip.sources.files import is_hub_id

from .best import FACTS, best_folder
from .checkpoint import MANIFEST, write_folder
from .config import ModelConfig, read_card_sources
from .evaluate import IMAGES_IN_SHEET, Evaluation
from .progress import evaluation_at, one_line
from .run_folder import METRICS, RESULTS
from .trainer import Trainer

IMAGES_IN_HEAT_MAP = 12
EXAMPLE_SIZE = 512
EXAMPLE_LABELS = 3

# What the card says of the run's course, of `results.json`.
FACTS_OF_TRAINING = (
    "started_from",
    "ema_decay",
    "step",
    "best",
    "train_seconds",
    "device",
    "processes",
    "threads",
    "mixed_precision",
    "torch",
    "transformers",
)


def export_model(trainer: Trainer) -> None:
    """Weights, config and processor in the run's folder. Collective where weights are sharded.

    Raises:
        CheckpointError: the disk is full.
    """
    with trainer.released_model() as model:
        if not trainer.decisions.is_main:
            return

        def write(folder: Path) -> None:
            if trainer.best_model is None:
                trainer.write_release(model, folder)
            else:
                shutil.copytree(best_folder(trainer.folder), folder, dirs_exist_ok=True)
                (folder / FACTS).unlink()
            write_sentence_files(folder)

        unfinished = trainer.folder / ".model"
        write_folder(unfinished, write)
        (unfinished / MANIFEST).unlink()
        for item in unfinished.iterdir():
            if item.is_dir():
                shutil.rmtree(trainer.folder / item.name, ignore_errors=True)
            os.replace(item, trainer.folder / item.name)
        unfinished.rmdir()
    trainer.log.say(f"The model is in {trainer.folder}.")


def gather_results(trainer: Trainer, evaluated: dict[str, Any], skipped: Counter[str]) -> dict[str, Any]:
    """What `results.json` holds, as measured."""
    start = trainer.config.model
    progress = trainer.progress
    before = evaluation_at(trainer.folder, 0) if trainer.config.eval_at_start else None
    best = {"step": progress.best_step, "number": trainer.config.checkpoints.best, "value": progress.best_value}
    return {
        "step": progress.step,
        "best": best if trainer.best_model is not None else None,
        "started_from": " and ".join(_starts(start)) or None,
        "ema_decay": trainer.config.ema_decay,
        "bad_steps": trainer.train_step.bad_steps,
        "train_seconds": round(progress.train_seconds, 1),
        "pairs_skipped": dict(skipped),
        "evaluations": {name: result.to_dict() for name, result in evaluated.items()},
        "evaluations_at_start": {name: {**each, "title": name} for name, each in (before or {}).items()},
        **trainer.decisions.circumstances(),
        **made_with(),
    }


def write_results(trainer: Trainer, results: dict[str, Any]) -> None:
    """`results.json`, which says that the run is finished. Raises OSError where it cannot be written."""
    if trainer.log.failures:
        results["failed"] = trainer.log.failures
    unfinished = trainer.folder / f".{RESULTS}.partial"
    unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(trainer.folder / RESULTS)


def describe_model(
    trainer: Trainer, evaluations: dict[str, Evaluation], evaluated: dict[str, Any], results: dict[str, Any]
) -> None:
    """Plots and the model card, in the run's folder. What fails of them is a line: the model needs none of it.

    Raises:
        StopNow: a signal came.
    """
    with trainer.stop.at_once():
        plots = draw_plots(trainer, evaluations, evaluated)
        trainer.log.attempt("The model card", lambda: _write_card(trainer, evaluations, evaluated, results, plots))


def draw_plots(
    trainer: Trainer, evaluations: dict[str, Evaluation], evaluated: dict[str, Any]
) -> list[tuple[str, str]]:
    """(file, what it shows) of the plots made in the run's `plots`; none without matplotlib, which is then said."""
    log, folder = trainer.log, trainer.folder
    if find_spec("matplotlib") is None:
        log.say("No plots: matplotlib is not installed (pip install matplotlib).")
        return []
    shutil.rmtree(folder / "plots", ignore_errors=True)
    log.attempt("The folder of plots", (folder / "plots").mkdir)
    made: list[tuple[str, str]] = []
    # Of a short run, all steps that were to be logged may have been bad ones.
    if (folder / METRICS).is_file():
        log.attempt("The plot of the loss", lambda: made.append(_plot_loss(folder)))
    for name, result in evaluated.items():
        if isinstance(result, RetrievalResult) and len(result.rows) > 1:
            plot = partial(_plot_retrieval, folder, name, result, evaluations[name].source, made)
            log.attempt(f"The plots of {name}", plot)
        elif isinstance(result, LanguagesResult):
            log.attempt(f"The plot of {name}", partial(_plot_languages, folder, name, result, made))
    return made


def _plot_loss(folder: Path) -> tuple[str, str]:
    plot_training(folder / METRICS, folder / "plots/loss.png")
    has_recalls = '"recall_at_1"' in (folder / METRICS).read_text(encoding="utf-8")
    return "plots/loss.png", "Training loss by step" + ", and R@1 on the way" * has_recalls


def _plot_languages(folder: Path, name: str, result: LanguagesResult, made: list[tuple[str, str]]) -> None:
    file = f"plots/{name}.png"
    plot_languages(result, folder / file)
    made.append((file, f"R@1 by language, {name.replace('_', ' ')}"))


def _plot_retrieval(
    folder: Path, name: str, result: RetrievalResult, source: Source, made: list[tuple[str, str]]
) -> None:
    best, worst = result.best_and_worst(IMAGES_IN_SHEET)
    shown = [index * len(result.rows) // IMAGES_IN_HEAT_MAP for index in range(IMAGES_IN_HEAT_MAP)]
    shown = list(dict.fromkeys(shown))
    wanted = {result.rows[index] for index in [*best, *worst, *shown]}
    images = {sample.index: sample.image for sample in iterate_samples(source) if sample.index in wanted}
    title = name.replace("_", " ")
    sheet = (f"plots/{name}_best_and_worst.png", f"Best and worst retrievals, {title}")
    plot_retrievals(result, images, folder / sheet[0], count=IMAGES_IN_SHEET)
    heat_map = (f"plots/{name}_similarity.png", f"Cosines of {len(shown)} images and their names, {title}")
    names = [result.targets[index] for index in shown]
    plot_similarity(
        [images[result.rows[index]] for index in shown],
        [result.names[index] for index in names],
        result.image_embeds[shown] @ result.text_embeds[names].T,
        folder / heat_map[0],
    )
    made += [heat_map, sheet]


def _write_card(
    trainer: Trainer,
    evaluations: dict[str, Evaluation],
    evaluated: dict[str, Any],
    results: dict[str, Any],
    plots: list[tuple[str, str]],
) -> None:
    facts = _card_facts(trainer, evaluated, results, plots)

    def add_example() -> None:
        facts.example_image, facts.example_labels = draw_example(evaluations, evaluated, trainer.folder)

    trainer.log.attempt("The card's example", add_example)
    try:
        write_model_card(trainer.folder, facts)
    except Exception as error:
        trainer.log.say(f"The card shows no outputs of its snippets ({one_line(error)}).")
        write_model_card(trainer.folder, facts, runs_snippets=False)


def draw_example(
    evaluations: dict[str, Evaluation], evaluated: dict[str, Any], folder: Path
) -> tuple[str | None, tuple[str, ...]]:
    """The card's example: a file in `folder`, and labels of which the first is right. It is the first one retrieved.

    None, and the labels of the image that the card then draws, without a retrieval.
    """
    for name, result in evaluated.items():
        if isinstance(result, RetrievalResult):
            for sample in iterate_samples(evaluations[name].source):
                if sample.index == result.rows[0]:
                    image = decode_image(sample.image)
                    image.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE))
                    image.save(folder / "example.png")
                    names = [result.names[result.targets[0]], *result.names]
                    return "example.png", tuple(dict.fromkeys(names))[:EXAMPLE_LABELS]
    return None, tuple(CardFacts.example_labels)


def _card_facts(
    trainer: Trainer, evaluated: dict[str, Any], results: dict[str, Any], plots: list[tuple[str, str]]
) -> CardFacts:
    config = trainer.config
    evaluation_data = [item for evaluation in config.evaluations.values() for item in evaluation.data]
    return CardFacts(
        model_name=config.card.model_name or trainer.folder.name,
        training_data=_described(config.data.files, config.card.sources),
        evaluation_data=_described(evaluation_data, config.card.sources),
        results=[result.to_dict() for result in evaluated.values()],
        results_at_start=list(results["evaluations_at_start"].values()),
        recipe=asdict(config),
        training={key: results[key] for key in FACTS_OF_TRAINING if results[key] is not None},
        plots=plots,
        languages=config.card.languages,
        base_models=[start for start in _starts(config.model) if is_hub_id(start)],
        example_template=config.templates[0] if config.templates else CardFacts.example_template,
        repo_id=trainer.folder.absolute().name,
    )


def _starts(model: ModelConfig) -> list[str]:
    return [start for start in (model.start_from, model.vision_tower, model.text_tower) if start]


def _described(data: list[str], sources: list[str]) -> list[dict[str, Any]]:
    """What the sources files say of each file or data set; its name, and its id on the Hub, where they say nothing."""
    known = read_card_sources(sources)
    return [
        known.get(Path(item).name, {"name": item, **({"dataset": item} if is_hub_id(item) else {})})
        for item in dict.fromkeys(data)
    ]
