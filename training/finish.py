"""Judging the model on the way and at the end, and the folder that a finished run leaves."""

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
import yaml
from omegaconf import OmegaConf

from hf_clip.evaluation import (
    RetrievalResult,
    ZeroShotResult,
    evaluate_retrieval,
    evaluate_zero_shot,
    plot_retrievals,
    plot_similarity,
    plot_training,
)
from hf_clip.hub import CardFacts, write_model_card
from hf_clip.sources import Source, iterate_samples, open_source

from .checkpoint import MANIFEST, write_folder
from .config import EvaluationConfig, TrainConfig
from .folder import RESULTS

if TYPE_CHECKING:
    from .loop import Run

PICTURES_IN_HEAT_MAP = 12
PICTURES_IN_SHEET = 6


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the recipe with its data, opened: missing files show before training, not after."""

    name: str
    config: EvaluationConfig
    source: Source


def open_evaluations(config: TrainConfig) -> dict[str, Evaluation]:
    """The recipe's evaluations by name. Raises SourceError for data that is not there or lacks the column."""
    opened = {}
    for name, evaluation in config.evaluations.items():
        source = open_source(
            evaluation.data,
            split=evaluation.split,
            image_column=evaluation.image_column,
            caption_columns=evaluation.caption_columns,
            label_column=evaluation.label_column,
            concept_column=evaluation.concept_column,
            where=evaluation.where,
        )
        source = source.require_captions() if evaluation.protocol == "retrieval" else source.require_label()
        opened[name] = Evaluation(name, evaluation, source)
    return opened


def evaluate(
    run: "Run", evaluations: dict[str, Evaluation], *, during_training: bool = False
) -> dict[str, RetrievalResult | ZeroShotResult]:
    """Runs the evaluations on the main process and logs them; the other ranks wait. Empty on those."""
    results = {}
    if run.accelerator.is_main_process:
        for evaluation in evaluations.values():
            if during_training and not evaluation.config.during_training:
                continue
            title = f"{evaluation.name} at step {run.progress.step}" if during_training else evaluation.name
            results[evaluation.name] = _judge(run, evaluation, title)
            run.report.say(results[evaluation.name].table())
        if results:
            numbers = {name: result.to_dict() for name, result in results.items()}
            run.report.log_evaluations(run.progress.step, numbers)
    run.accelerator.wait_for_everyone()
    return results


def _judge(run: "Run", evaluation: Evaluation, title: str) -> RetrievalResult | ZeroShotResult:
    if evaluation.config.protocol == "retrieval":
        return evaluate_retrieval(run.model, run.processor, evaluation.source, title=title)
    return evaluate_zero_shot(
        run.model, run.processor, evaluation.source, templates=evaluation.config.templates, title=title
    )


def finish(run: "Run", evaluations: dict[str, Evaluation], bad_pairs: Counter[str]) -> dict[str, Any]:
    """Judges the model and leaves the complete folder: weights, processor, plots, card, `results.json` last.

    Returns what `results.json` holds (on the main process; empty on others). Raises CheckpointError for a full disk.
    """
    results = evaluate(run, evaluations)
    if not run.accelerator.is_main_process:
        return {}
    report = {
        "step": run.progress.step,
        "train_seconds": round(run.progress.train_seconds, 1),
        "pairs_left_out": dict(bad_pairs),
        "evaluations": {name: result.to_dict() for name, result in results.items()},
        **_circumstances(run),
    }

    def write(folder: Path) -> None:
        run.model.save_pretrained(folder)
        run.processor.save_pretrained(folder)
        plots = draw_plots(run, evaluations, results, folder)
        write_model_card(folder, _card_facts(run, results, report, plots))
        (folder / RESULTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    place = run.folder / ".model"
    write_folder(place, write)
    (place / MANIFEST).unlink()
    # results.json says that a run is finished: it moves last.
    for item in sorted(place.iterdir(), key=lambda item: item.name == RESULTS):
        target = run.folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(item, target)
    place.rmdir()
    run.report.say(f"The model and its card are in {run.folder}")
    return report


def _circumstances(run: "Run") -> dict[str, Any]:
    device = run.accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": run.accelerator.mixed_precision,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def draw_plots(
    run: "Run", evaluations: dict[str, Evaluation], results: dict[str, Any], folder: Path
) -> list[tuple[str, str]]:
    """(file, what it shows) of the plots made in `folder / "plots"`; none without matplotlib, which is then said."""
    if find_spec("matplotlib") is None:
        run.report.say("No plots: matplotlib is not installed (pip install matplotlib).")
        return []
    plots = folder / "plots"
    plots.mkdir()
    made = [("plots/loss.png", "Training loss by step, and R@1 on the way")]
    plot_training(run.folder / "metrics.jsonl", folder / made[0][0])
    for name, result in results.items():
        if not isinstance(result, RetrievalResult) or len(result.rows) < 2:
            continue
        best, worst = result.best_and_worst(PICTURES_IN_SHEET)
        shown = [index * len(result.rows) // PICTURES_IN_HEAT_MAP for index in range(PICTURES_IN_HEAT_MAP)]
        shown = list(dict.fromkeys(shown))
        wanted = {result.rows[index] for index in [*best, *worst, *shown]}
        pictures = {
            sample.index: sample.image
            for sample in iterate_samples(evaluations[name].source)
            if sample.index in wanted
        }
        title = name.replace("_", " ")
        sheet = (f"plots/{name}_best_and_worst.png", f"Best and worst retrievals, {title}")
        plot_retrievals(result, pictures, folder / sheet[0], count=PICTURES_IN_SHEET)
        heat_map = (
            f"plots/{name}_similarity.png",
            f"Cosines of {len(shown)} pictures and their names, {title}",
        )
        names = [result.targets[index] for index in shown]
        plot_similarity(
            [pictures[result.rows[index]] for index in shown],
            [result.names[index] for index in names],
            result.image_vectors_ND[shown] @ result.text_vectors_MD[names].T,
            folder / heat_map[0],
        )
        made += [heat_map, sheet]
    return made


def _card_facts(run: "Run", results: dict[str, Any], report: dict, plots: list[tuple[str, str]]) -> CardFacts:
    config = run.config
    tested = [item for evaluation in config.evaluations.values() for item in evaluation.data]
    names = [name for result in results.values() if isinstance(result, RetrievalResult) for name in result.names]
    took = (
        "step",
        "train_seconds",
        "device",
        "processes",
        "threads",
        "mixed_precision",
        "torch",
        "transformers",
    )
    return CardFacts(
        model_name=config.card.model_name or run.folder.name,
        training_data=_described(config.data.train, config.card.sources),
        evaluation_data=_described(tested, config.card.sources),
        results=[result.to_dict() for result in results.values()],
        recipe=OmegaConf.to_container(OmegaConf.structured(config)),
        training={key: report[key] for key in took},
        plots=plots,
        languages=config.card.languages,
        example_labels=names[:3] or ("a cat", "a dog"),
    )


def _described(data: list[str], sources: list[str]) -> list[dict[str, Any]]:
    """What the sources files say of each file or data set, its name alone where they say nothing."""
    known = {}
    for file in sources:
        for entry in yaml.safe_load(Path(file).read_text(encoding="utf-8")):
            known[Path(entry["file"]).name] = entry
    return [known.get(Path(item).name, {"name": item}) for item in dict.fromkeys(data)]
