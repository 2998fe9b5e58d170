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
from accelerate import Accelerator
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
from hf_clip.hub import CardFacts, made_with, write_model_card
from hf_clip.model.image_decoding_hf_clip import decode_image
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.sources import Source, iterate_samples, open_source

from .checkpoint import MANIFEST, write_folder
from .config import EvaluationConfig, TrainConfig, read_card_sources
from .run_folder import METRICS, RESULTS
from .signals import StopNow

if TYPE_CHECKING:
    from .loop import Run

IMAGES_IN_HEAT_MAP = 12
IMAGES_IN_SHEET = 6
EXAMPLE_SIZE = 512
EXAMPLE_LABELS = 3


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
    """Runs the evaluations on the main process and logs them; the other ranks wait. Empty on those.

    A signal ends them, logs none and is left to the caller: whoever sent it may not wait as long as they take.
    """
    results = {}
    due = [each for each in evaluations.values() if each.config.during_training or not during_training]
    with run.released_model() as model:
        if run.accelerator.is_main_process:
            try:
                with run.stop.at_once():
                    for evaluation in due:
                        title = evaluation.name + (f" at step {run.progress.step}" if during_training else "")
                        results[evaluation.name] = _judge(model, run.processor, evaluation, title)
                        run.report.say(results[evaluation.name].table())
            except StopNow as stop:
                run.report.say(f"{stop}: the evaluations at step {run.progress.step} are given up.")
                results = {}
            if results:
                numbers = {name: result.to_dict() for name, result in results.items()}
                run.report.log_evaluations(run.progress.step, numbers)
        run.accelerator.wait_for_everyone()
    return results


def _judge(
    model: HFCLIPModel, processor: HFCLIPProcessor, evaluation: Evaluation, title: str
) -> RetrievalResult | ZeroShotResult:
    if evaluation.config.protocol == "retrieval":
        return evaluate_retrieval(model, processor, evaluation.source, title=title)
    return evaluate_zero_shot(model, processor, evaluation.source, templates=evaluation.config.templates, title=title)


def finish(run: "Run", evaluations: dict[str, Evaluation], bad_pairs: Counter[str]) -> dict[str, Any]:
    """Judges the model and leaves the complete folder: weights, processor, plots, card, `results.json` last.

    Returns what `results.json` holds (on the main process; empty on others). Raises CheckpointError for a full disk,
    StopNow where a signal came before the folder was whole.
    """
    results = evaluate(run, evaluations)
    signal, _ = run.agree(run.stop.signal, False)
    if signal:
        raise StopNow(signal)
    with run.released_model() as model:
        return _leave(run, model, evaluations, results, bad_pairs) if run.accelerator.is_main_process else {}


def _leave(
    run: "Run",
    model: HFCLIPModel,
    evaluations: dict[str, Evaluation],
    results: dict[str, Any],
    bad_pairs: Counter[str],
) -> dict[str, Any]:
    start = run.config.model
    report = {
        "step": run.progress.step,
        "started_from": start.start_from or " and ".join(filter(None, [start.vision_tower, start.text_tower])) or None,
        "ema_decay": run.config.ema_decay,
        "bad_steps": run.updater.bad_steps,
        "train_seconds": round(run.progress.train_seconds, 1),
        "pairs_left_out": dict(bad_pairs),
        "evaluations": {name: result.to_dict() for name, result in results.items()},
        **circumstances(run.accelerator),
        **made_with(),
    }

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        run.processor.save_pretrained(folder)
        plots = draw_plots(run, evaluations, results, folder)
        facts = _card_facts(run, results, report, plots)
        facts.example_image, facts.example_labels = draw_example(evaluations, results, folder)
        _write_card(run, folder, facts)
        (folder / RESULTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    place = run.folder / ".model"
    with run.stop.at_once():
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


def circumstances(accelerator: Accelerator) -> dict[str, Any]:
    """What the bits of the weights depend on, besides recipe and data."""
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "torch": str(torch.__version__),
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
    made = []
    # Of a short run, all steps that were to be logged may have been bad ones.
    if (run.folder / METRICS).is_file():
        made.append(("plots/loss.png", "Training loss by step, and R@1 on the way"))
        plot_training(run.folder / METRICS, folder / made[0][0])
    for name, result in results.items():
        if not isinstance(result, RetrievalResult) or len(result.rows) < 2:
            continue
        best, worst = result.best_and_worst(IMAGES_IN_SHEET)
        shown = [index * len(result.rows) // IMAGES_IN_HEAT_MAP for index in range(IMAGES_IN_HEAT_MAP)]
        shown = list(dict.fromkeys(shown))
        wanted = {result.rows[index] for index in [*best, *worst, *shown]}
        images = {
            sample.index: sample.image
            for sample in iterate_samples(evaluations[name].source)
            if sample.index in wanted
        }
        title = name.replace("_", " ")
        sheet = (f"plots/{name}_best_and_worst.png", f"Best and worst retrievals, {title}")
        plot_retrievals(result, images, folder / sheet[0], count=IMAGES_IN_SHEET)
        heat_map = (
            f"plots/{name}_similarity.png",
            f"Cosines of {len(shown)} images and their names, {title}",
        )
        names = [result.targets[index] for index in shown]
        plot_similarity(
            [images[result.rows[index]] for index in shown],
            [result.names[index] for index in names],
            result.image_embeds[shown] @ result.text_embeds[names].T,
            folder / heat_map[0],
        )
        made += [heat_map, sheet]
    return made


def draw_example(
    evaluations: dict[str, Evaluation], results: dict[str, Any], folder: Path
) -> tuple[str | None, tuple[str, ...]]:
    """The card's example: a file in `folder`, and labels of which the first is right. It is the first one retrieved.

    None, and the labels of the image that the card then draws, without a retrieval.
    """
    for name, result in results.items():
        if isinstance(result, RetrievalResult):
            for sample in iterate_samples(evaluations[name].source):
                if sample.index == result.rows[0]:
                    image = decode_image(sample.image)
                    image.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE))
                    image.save(folder / "example.png")
                    names = [result.names[result.targets[0]], *result.names]
                    return "example.png", tuple(dict.fromkeys(names))[:EXAMPLE_LABELS]
    return None, CardFacts.example_labels


def _write_card(run: "Run", folder: Path, facts: CardFacts) -> None:
    try:
        write_model_card(folder, facts)
    except RuntimeError as error:
        # The weights of a long run are worth more than the outputs of its card's snippets.
        run.report.say(f"The card shows no outputs: {error}")
        write_model_card(folder, facts, runs_snippets=False)


def _card_facts(run: "Run", results: dict[str, Any], report: dict, plots: list[tuple[str, str]]) -> CardFacts:
    config = run.config
    tested = [item for evaluation in config.evaluations.values() for item in evaluation.data]
    took = (
        "started_from",
        "ema_decay",
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
        training={key: report[key] for key in took if report[key] is not None},
        plots=plots,
        languages=config.card.languages,
        # The card is written in a folder of another name, which then becomes this one.
        repo_id=run.folder.absolute().name,
    )


def _described(data: list[str], sources: list[str]) -> list[dict[str, Any]]:
    """What the sources files say of each file or data set, its name alone where they say nothing."""
    known = read_card_sources(sources)
    return [known.get(Path(item).name, {"name": item}) for item in dict.fromkeys(data)]
