"""Training from its start to its end: what happens, in the order in which it happens.

Shape suffixes: B pairs of this rank, H and W rows and columns, C = 3 colors, T tokens.
"""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from hf_clip.messages import in_callers_words
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.sources import SourceError
from hf_clip.sources.columns import Share, on_its_own

from .best import keep_best, release_best, take_over_best
from .build import build_again, build_start
from .checkpoint import CheckpointError, SaveClock, newest_checkpoint
from .config import DataConfig, TrainConfig
from .data_fingerprint import fingerprint
from .decisions import Decisions, decide
from .device import arrange_for_speed
from .ema import WeightAverage
from .evaluate import Evaluation, open_evaluations, run_evaluations
from .export import describe_model, export_model, gather_results, write_results
from .hub_checkpoints import CheckpointPusher
from .lengths import resolve_epochs
from .prepare import note_on_batch_statistics, prepare
from .progress import ProgressLog, one_line
from .recipe import keys_that_stay
from .recipe_error import RecipeError
from .run_folder import CHECKPOINTS, RECIPE, RunFolder, claim_folder, require_space
from .signals import StopNow
from .speed import SpeedMeter
from .stages import Stage, common_batch_size, stage_processor, stages_of
from .step import TrainStep
from .stream import DataError, PairStream, TrainingData, open_training_source
from .stream.data import describe_fetching
from .texts import tokens_of
from .trackers import trackers_of
from .trainer import Progress, Trainer, TrainingDiverged


class TrainingStopped(Exception):
    """A signal ended the run after it saved; it can be resumed."""

    exit_code = 3


class TrainingIncomplete(RuntimeError):
    """The model is trained and exported, but an evaluation or a push that the recipe asks for failed."""

    exit_code = 1


def train(config: TrainConfig, output_dir: str | Path, *, resume: bool | Literal["auto"] = False) -> dict[str, Any]:
    """Trains a dual encoder and leaves a complete model folder.

    Args:
        config: from `load_recipe`.
        output_dir: where the model, its card, `metrics.jsonl`, `recipe.yaml`, `results.json` and `checkpoints/` go.
        resume: go on with the run that is there, from its newest whole checkpoint; the steps that follow are those
            that an uninterrupted run would have made. "auto" starts where the folder has no run, goes on where it has
            one, and does nothing where that is finished: one call for a job that a scheduler may start again. A new
            run that fails before its first step leaves nothing.

    Returns:
        What `results.json` holds: measured numbers by evaluation, steps, seconds.

    Raises:
        FolderError: the folder holds another run, another process trains in it, or there is nothing to resume.
        SourceError, DataError: the data cannot be read or is too small. DataChangedError: it is not that with which
        the run began. CheckpointError: the disk is full. TrainingDiverged: loss or weights are not finite.
        TrainingStopped: a signal came; a checkpoint was saved. RecipeError: what only device and data can tell.
        TrainingIncomplete: the model is exported, but an evaluation or a push failed.
    """
    progress, run_folder = Progress(), None
    try:
        decisions = decide(config)
        run_folder = claim_folder(Path(output_dir), config, resume, decisions)
        try:
            return _train(config, decisions, run_folder, progress)
        except StopNow:
            raise
        except BaseException:
            if not run_folder.resumes and progress.step == 0:
                run_folder.clear()
            raise
        finally:
            run_folder.close()
    except StopNow as stop:
        if progress.saved_step < progress.step:
            raise TrainingIncomplete(
                f"{stop}: the model in {output_dir} is trained, but the checkpoint of its last step, {progress.step}, "
                "could not be written, and not all that its recipe asks for was done. Free some space, and go on with "
                f"`resume` and `output_dir={output_dir}` from step {progress.saved_step}"
            ) from None
        raise TrainingStopped(
            f"{stop}: saved at step {progress.step}. Go on with `resume` and `output_dir={output_dir}`"
        ) from None
    except (RecipeError, DataError) as error:
        before = resume is True or (resume == "auto" and (Path(output_dir) / RECIPE).is_file())
        resumes = before if run_folder is None else run_folder.resumes
        if resumes and progress.step == progress.saved_step and (kept := keys_that_stay(str(error))):
            raise type(error)(
                f"{error} But a resumed run keeps its {' and '.join(kept)}: resume it on the device and the number of "
                "processes that it began with, or start another run."
            ) from error
        raise


def _train(config: TrainConfig, decisions: Decisions, run_folder: RunFolder, progress: Progress) -> dict[str, Any]:
    log = ProgressLog(run_folder.path, config.steps or 0, decisions.is_main, trackers_of(config.log_with))
    try:
        if run_folder.results is not None:
            failed = f" It failed in part: {' '.join(each)}" if (each := run_folder.results.get("failed")) else ""
            log.say(f"The run in {run_folder.path} is finished: nothing is left to do.{failed}")
            return run_folder.results
        for note in run_folder.notes:
            log.say(f"{note}.")
        if note := decisions.note_on_launcher():
            log.say(note)
        data = open_training_data(config.data, decisions.coordinator.share)
        config = resolve_epochs(config, data)
        log.steps = config.total_steps
        evaluations = open_evaluations(config)
        trainer = _start(config, decisions, run_folder, data, log, progress)
        with trainer.stop:
            try:
                stream = run_stages(trainer, data, evaluations)
                results = finish(trainer, stream, evaluations)
            finally:
                if trainer.pusher is not None:
                    trainer.pusher.close()
            if decisions.is_main:
                write_results(trainer, results)
    finally:
        log.close()
    if log.failures:
        raise TrainingIncomplete(
            f"The model in {run_folder.path} is trained and exported, but not all that its recipe asks for was done: "
            f"{' '.join(log.failures)}"
        )
    return results


def open_training_data(config: DataConfig, share: Share = on_its_own) -> TrainingData:
    """The recipe's training data, as `open_training_source` has it. Raises SourceError in the recipe's words."""
    try:
        return open_training_source(config, share)
    except SourceError as error:
        keys = {name: f"data.{name}" for name in DataConfig.__dataclass_fields__} | {"data": "data.train"}
        raise SourceError(in_callers_words(str(error), keys)) from error


def _start(
    config: TrainConfig,
    decisions: Decisions,
    run_folder: RunFolder,
    data: TrainingData,
    log: ProgressLog,
    progress: Progress,
) -> Trainer:
    """Model, objective and optimizer, at the first step or at that of the newest checkpoint."""
    folder = run_folder.path
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, log.say) if run_folder.resumes else None
    if checkpoint is None:
        if run_folder.resumes:
            log.say("There is no checkpoint to go on from: the run begins again at its first step.")
        model, processor = build_start(config.model, data.captions(), config.seed)
    else:
        model, processor = build_again(checkpoint)
    if config.templates is not None:
        model.config.zero_shot_templates = config.templates
    require_space(folder, model, config.total_steps, config.checkpoints)
    objective, optimizer = prepare(model, config, decisions)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    teacher = build_teacher(config, data, decisions)
    train_step = TrainStep(config, decisions, objective, optimizer, processor, average, teacher)
    marks = decisions.coordinator.share(partial(fingerprint, config.data.files, data.num_rows))
    trainer = Trainer(config, folder, train_step, progress, log, marks)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        take_over_best(trainer)
    # The last evaluations come again too.
    log.begin(progress.step, trainer.is_evaluation_due or progress.step >= config.total_steps)
    if note := note_on_batch_statistics(model, config, decisions.micro_batch_size):
        log.say(note)
    if config.checkpoints.push_to is not None and decisions.is_main:
        trainer.pusher = CheckpointPusher(config.checkpoints.push_to, folder, log.fail)
    return trainer


def build_teacher(config: TrainConfig, data: TrainingData, decisions: Decisions) -> HFCLIPModel | None:
    """The model at the run's start, frozen on the device, where the recipe learns from it; made again on resume."""
    if config.distillation is None or not config.distillation.from_start:
        return None
    teacher, _ = build_start(config.model, data.captions(), config.seed)
    arrange_for_speed(teacher, decisions.device, decisions.precision)
    cast(nn.Module, teacher).to(decisions.device)
    return teacher.requires_grad_(False).eval()


def run_stages(trainer: Trainer, data: TrainingData, evaluations: dict[str, Evaluation]) -> PairStream:
    """The steps of all stages that are left, each with a stream of its own; the last stream. Raises as `run_steps`."""
    config = trainer.config
    stages = stages_of(config)
    left = [stage for stage in stages if stage.last > trainer.progress.step] or stages[-1:]
    lanes = config.data.lanes or trainer.progress.position.get("lanes")
    if lanes is None and len(stages) > 1:
        lanes = make_stream(trainer, data, replace(stages[0], batch_size=common_batch_size(config)), None).lanes
    for stage in left:
        if config.stages:
            trainer.log.say(f"Stage of {stage.describe()}.")
        stream = make_stream(trainer, data, stage, lanes)
        trainer.train_step.begin(stage)
        run_steps(trainer, stream, evaluations, stage)
        if trainer.is_over:
            return stream
    return stream


def make_stream(trainer: Trainer, data: TrainingData, stage: Stage, lanes: int | None) -> PairStream:
    """The pairs of a stage, in an order of as many lanes. Collective."""
    config, decisions, train_step = trainer.config, trainer.decisions, trainer.train_step
    processor = stage_processor(train_step.processor, trainer.model, stage)
    return PairStream(
        data,
        replace(config.data, lanes=lanes),
        processor.image_processor,
        stage.batch_size,
        config.seed,
        config.augmentation,
        decisions.accelerator.process_index,
        decisions.processes,
        trainer.stop.is_asked,
        partial(tokens_of, processor),
        decisions.coordinator,
    )


def run_steps(trainer: Trainer, stream: PairStream, evaluations: dict[str, Evaluation], stage: Stage) -> None:
    """The steps of a stage, with what is due in between. Raises StopNow once a signal came and all is saved."""
    config, progress, log = trainer.config, trainer.progress, trainer.log
    clock = SaveClock(config.checkpoints.save_minutes)
    logged_step, seconds = progress.step, 0.0
    meter = SpeedMeter(trainer.train_step, stream, stage)
    if trainer.is_evaluation_due:
        _evaluate(trainer, stream, evaluations)
    batches = cast(Generator, stream.batches(progress.position, reads_ahead=trainer.decisions.reads_ahead))
    with closing(batches):
        try:
            while not trainer.is_over and progress.step < stage.last:
                started = time.perf_counter()
                with meter.waiting():
                    batch = next(batches, None)
                if batch is None:
                    # A rank was asked to stop while it sought its pairs, which may take longer than it is given.
                    if progress.saved_step < progress.step or progress.step == 0:
                        trainer.save(stream)
                    trainer.finish_save()
                    raise StopNow(trainer.agree(trainer.stop.signal)[0])
                result = trainer.update(batch)
                progress.step, progress.position = progress.step + 1, batch.position
                seconds += time.perf_counter() - started
                progress.train_seconds += time.perf_counter() - started
                is_last = progress.step == config.total_steps
                log.step()
                if result.is_update and (progress.step % config.log_every == 0 or is_last):
                    steps, numbers = progress.step - logged_step, trainer.read_numbers(result)
                    numbers["pairs_per_second"] = steps * stage.batch_size / seconds
                    numbers["epoch"] = stream.epoch(progress.position)
                    numbers["train_seconds"] = progress.train_seconds
                    numbers |= meter.numbers(steps, seconds, log.say)
                    log.log(progress.step, numbers, seconds / steps * (config.total_steps - progress.step))
                    logged_step, seconds = progress.step, 0.0
                signal, is_late = trainer.agree(trainer.stop.signal, clock.is_due())
                if signal or is_late or is_last or progress.step % config.checkpoints.save_every == 0:
                    _save(trainer, stream, is_last=is_last, waits=bool(signal) or is_last)
                    clock.restart()
                if signal and not is_last:
                    raise StopNow(signal)
                if trainer.is_evaluation_due:
                    _evaluate(trainer, stream, evaluations)
        except (Exception, SystemExit) as error:
            _save_before_it_ends(trainer, stream, error)
            raise


def _evaluate(trainer: Trainer, stream: PairStream, evaluations: dict[str, Evaluation]) -> None:
    """The evaluations before the next step, and what follows of them: the best model, an early end.

    Raises:
        StopNow: a signal came, and all is saved. A resumed run evaluates again what was given up.
    """
    progress = trainer.progress
    results = run_evaluations(trainer, evaluations, during_training=progress.step > 0)
    signal, _ = trainer.agree(trainer.stop.signal)
    if not signal:
        keep_best(trainer, results)
        progress.evaluated_step = progress.step
    if progress.saved_step < progress.step and (signal or trainer.is_over):
        trainer.save(stream)
    if signal:
        trainer.finish_save()
        raise StopNow(signal)


def _save(trainer: Trainer, stream: PairStream, *, is_last: bool, waits: bool) -> None:
    """Saves a checkpoint. Behind the last step one that cannot be written is reported: the model takes less space."""
    try:
        trainer.save(stream, waits=waits)
    except CheckpointError as error:
        if not is_last:
            raise
        trainer.log.fail(f"The last checkpoint could not be written: {one_line(error)}")


def _save_before_it_ends(trainer: Trainer, stream: PairStream, error: BaseException) -> None:
    """Saves the steps behind the last checkpoint where an error ends the run and its weights are sound."""
    progress = trainer.progress
    # Saving is collective, and only the stream's errors are known to be raised on all processes at one step.
    is_everywhere = trainer.decisions.processes == 1 or isinstance(error, DataError | SourceError)
    is_of_saving = isinstance(error, CheckpointError | TrainingDiverged)
    if progress.saved_step == progress.step or is_of_saving or not (trainer.train_step.is_sound and is_everywhere):
        return
    try:
        trainer.save(stream)
        trainer.log.say(f"An error ends the run; it was saved at step {progress.step}.")
    except Exception as problem:
        trainer.log.say(
            f"An error ends the run, which could not be saved at step {progress.step}: {one_line(problem)}"
        )


def finish(trainer: Trainer, stream: PairStream, evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """Exports the model, evaluates it and describes it. Returns what `results.json` is to hold.

    Raises:
        CheckpointError: the disk is full. StopNow: a signal came before the last evaluation or the card was done.
    """
    progress, config = trainer.progress, trainer.config
    trainer.log.say(f"Trained {progress.step} steps in {progress.train_seconds:.0f} s.")
    if progress.step < config.total_steps:
        trainer.log.say(
            f"The run ends before its {config.total_steps} steps: {progress.evaluations_without_better} evaluations "
            f"in a row were no better (checkpoints.patience={config.checkpoints.patience})."
        )
    if config.checkpoints.best is not None and progress.evaluated_step != progress.step:
        _evaluate(trainer, stream, evaluations)
    release_best(trainer)
    skipped = stream.skipped(stream.gather(trainer.progress.position))
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        trainer.log.say(f"Skipped {skipped.total()} pairs that cannot be read: {reasons}.")
    if fetched := stream.fetched():
        trainer.log.say(describe_fetching(fetched))
    export_model(trainer)
    evaluated = run_evaluations(trainer, evaluations)
    signal, _ = trainer.agree(trainer.stop.signal)
    if signal:
        raise StopNow(signal)
    if not trainer.decisions.is_main:
        return {}
    results = gather_results(trainer, evaluated, skipped)
    describe_model(trainer, evaluations, evaluated, results)
    return results
