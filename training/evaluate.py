"""The evaluations of a recipe: checked before the first step, run on the way and at the end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from hf_clip.evaluation import (
    Encoding,
    LanguagesResult,
    RetrievalResult,
    ZeroShotResult,
    evaluate_languages,
    evaluate_retrieval,
    evaluate_zero_shot,
    plot_retrievals,
)
from hf_clip.evaluation.captions import CaptionResult, evaluate_captions
from hf_clip.evaluation.labeled_images import names_of_labels
from hf_clip.messages import in_callers_words
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.zero_shot_hf_clip import templates_of
from hf_clip.sources import Source, SourceError, iterate_samples

from .config import VALIDATION, EvaluationConfig, TrainConfig
from .progress import one_line
from .recipe_error import RecipeError
from .signals import StopNow
from .stream import open_training_source
from .stream.validation import held_out_part, held_out_parts
from .trainer import Trainer

# Labels looked at before the first step.
LABELS_TO_CHECK = 1000
# Of the best retrievals, and of the worst.
IMAGES_IN_SHEET = 6
# What scores captions, as it is imported.
SCORERS = ("sacrebleu", "rouge_score")

Result = RetrievalResult | LanguagesResult | ZeroShotResult | CaptionResult


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the recipe with its data, opened: missing files show before training, not after."""

    name: str
    config: EvaluationConfig
    source: Source


def open_evaluations(config: TrainConfig) -> dict[str, Evaluation]:
    """The recipe's evaluations by name.

    Raises:
        SourceError: data is not there, lacks a column, or has labels that cannot be classes; in the recipe's words.
        RecipeError: captions are to be evaluated, and what scores them is not installed.
    """
    opened = {}
    for name, evaluation in config.evaluations.items():
        try:
            source = _open_source(config, name)
            if evaluation.task == "captions":
                _require_scorers(name)
            if evaluation.task in ("retrieval", "languages", "captions"):
                source = source.require_captions()
            else:
                source = source.require_label()
                _check_labels(source)
        except SourceError as error:
            raise SourceError(_in_recipes_words(name, error)) from error
        opened[name] = Evaluation(name, evaluation, source)
    return opened


def _require_scorers(name: str) -> None:
    if missing := [module for module in SCORERS if find_spec(module) is None]:
        raise RecipeError(
            f"evaluations.{name}: captions are scored by {' and '.join(missing)}, not installed: pip install "
            "'hf_clip[captions]'."
        )


def _open_source(config: TrainConfig, name: str) -> Source:
    fraction = config.data.validation_fraction
    if name != VALIDATION or fraction is None:
        return config.evaluations[name].spec().open()
    if config.data.weights is not None and config.data.label_templates is None:
        # Sources of their own, which need not have the same columns.
        return held_out_parts(open_training_source(config.data).sources, fraction)
    return held_out_part(config.evaluations[name].spec().open(), fraction)


def _check_labels(source: Source) -> None:
    """Raises SourceError for labels of which the evaluation would make nothing, hours later."""
    if names_of_labels(source) is not None:
        return
    column = source.label_column
    assert column is not None
    rows = source.dataset.select_columns([column]).take(LABELS_TO_CHECK)
    labels = [row[column] for row in rows if row[column] not in (None, "")]
    if several := [label for label in labels if isinstance(label, list | tuple) and len(set(map(str, label))) > 1]:
        raise SourceError(
            f"{source.name}: column {column!r} has rows of several labels, such as {several[0]!r:.80}: set "
            "`label_column` to a column of single labels."
        )
    if not labels:
        raise SourceError(f"{source.name}: column {column!r} has no label in its first rows: set `label_column`.")
    if all(isinstance(label, int | float) or str(label).lstrip("-").isdigit() for label in labels):
        raise SourceError(
            f"{source.name}: the labels in column {column!r} are numbers without names, such as {labels[0]!r}: set "
            "`label_column` to a column of class names."
        )


def _in_recipes_words(name: str, error: BaseException) -> str:
    """An error of an evaluation with the recipe's keys in place of arguments."""
    arguments = EvaluationConfig.__dataclass_fields__
    return in_callers_words(one_line(error), {each: f"evaluations.{name}.{each}" for each in arguments})


def run_evaluations(
    trainer: Trainer, evaluations: dict[str, Evaluation], *, during_training: bool = False
) -> dict[str, Result]:
    """Runs the evaluations and logs them. Each process encodes a part, and all get the results.

    One that fails is reported and lacks. A signal ends them, logs none and is left to the caller: whoever sent it may
    not wait as long as they take.
    """
    due = [each for each in evaluations.values() if each.config.during_training or not during_training]
    results: dict[str, Result] = {}
    decisions = trainer.decisions
    # The main process may still write: that is not to be waited for in a sum of tensors.
    decisions.coordinator.wait()
    with trainer.released_model(everywhere=True) as model:
        try:
            if decisions.processes > 1:
                share_buffers(model)
                encoding = _encoding_together(trainer)
                for evaluation in due:
                    _run_one(trainer, model, evaluation, during_training, results, encoding)
            else:
                with trainer.stop.at_once():
                    for evaluation in due:
                        _run_one(trainer, model, evaluation, during_training, results)
        except StopNow as stop:
            trainer.log.say(f"{stop}: the evaluations at step {trainer.progress.step} are given up.")
            results = {}
    if results and decisions.is_main:
        numbers = {name: result.to_dict() for name, result in results.items()}
        trainer.log.log_evaluations(trainer.progress.step, numbers)
        for name, result in results.items():
            _show_retrievals(trainer, name, result, evaluations[name].source)
    decisions.coordinator.wait()
    return results


def _show_retrievals(trainer: Trainer, name: str, result: Result, source: Source) -> None:
    """The best and the worst retrievals as an image of the run's tracker, where there is one that shows images."""
    if not trainer.log.shows_images or not isinstance(result, RetrievalResult) or len(result.rows) < 2:
        return

    def draw() -> None:
        best, worst = result.best_and_worst(IMAGES_IN_SHEET)
        wanted = {result.rows[index] for index in [*best, *worst]}
        images = {sample.index: sample.image for sample in iterate_samples(source) if sample.index in wanted}
        with TemporaryDirectory() as folder:
            sheet = plot_retrievals(result, images, Path(folder) / "sheet.png", count=IMAGES_IN_SHEET)
            trainer.log.log_image(trainer.progress.step, f"{name}/best and worst", sheet)

    trainer.log.attempt("The tracker's images", draw)


def _run_one(
    trainer: Trainer,
    model: HFCLIPModel,
    evaluation: Evaluation,
    during_training: bool,
    results: dict[str, Any],
    encoding: Encoding | None = None,
) -> None:
    """Of several processes all agree on how it ended. Raises StopNow where a signal came to any."""
    step = f" at step {trainer.progress.step}"
    title = evaluation.name + (step if during_training else "")
    result = problem = None
    measure = partial(evaluate_one, model, trainer.train_step.processor, evaluation, title, encoding)
    try:
        # What generates captions does not deal its images to processes.
        is_dealt = evaluation.config.task != "captions"
        result = measure() if is_dealt else trainer.decisions.coordinator.share(measure)
    except StopNow:
        # The others' parts have ended with this one.
        pass
    except Exception as error:
        problem = _in_recipes_words(evaluation.name, error)
    signal, _ = trainer.agree(trainer.stop.signal)
    if signal:
        raise StopNow(signal)
    problem = next(filter(None, trainer.decisions.coordinator.gather(problem)), None)
    if result is None or problem is not None:
        trainer.log.fail(f"The evaluation {evaluation.name}{step} failed ({problem}).")
    else:
        trainer.log.say(result.table())
        results[evaluation.name] = result


def _encoding_together(trainer: Trainer) -> Encoding:
    """A signal to one process is looked for between batches: amid them it would leave the others waiting."""

    def look() -> None:
        if trainer.stop.signal is not None:
            raise StopNow(trainer.stop.signal)

    return Encoding(processes=PartialState(), before_batch=look)


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's statistics of batch norms, which is whose are saved. Collective."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.broadcast(buffer, 0)


def number_of(results: Mapping[str, Result], name: str) -> float | None:
    """A number by the name of its evaluation and its own, as `checkpoints.best` has it; None where it is not there."""
    evaluation, *path = name.split(".")
    if evaluation not in results:
        return None
    value: Any = results[evaluation].to_dict()
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def evaluate_one(
    model: HFCLIPModel,
    processor: HFCLIPProcessor,
    evaluation: Evaluation,
    title: str,
    encoding: Encoding | None = None,
) -> Result:
    """The result of one evaluation of a recipe."""
    more: dict[str, Any] = {"title": title, "encoding": encoding}
    if evaluation.config.task == "retrieval":
        return evaluate_retrieval(model, processor, evaluation.source, **more)
    if evaluation.config.task == "languages":
        return evaluate_languages(
            model, processor, evaluation.source, reference=evaluation.config.reference_language, **more
        )
    if evaluation.config.task == "captions":
        return evaluate_captions(model, processor, evaluation.source, title=title)
    templates = evaluation.config.templates or templates_of(model)
    return evaluate_zero_shot(model, processor, evaluation.source, templates=templates, **more)
