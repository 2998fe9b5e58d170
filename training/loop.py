"""Training from its start to its end: what happens, in the order in which it happens.

Shape suffixes: B pairs of this rank, H and W rows and columns, C = 3 colors, T tokens.
"""

import time
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

from hf_clip.messages import in_callers_words
from hf_clip.sources import SourceError

from .build import build_again, build_start
from .checkpoint import CheckpointError, SaveClock, newest_checkpoint
from .config import DataConfig, TrainConfig
from .data_fingerprint import fingerprint
from .decisions import Decisions, decide
from .ema import WeightAverage
from .evaluate import Evaluation, open_evaluations, run_evaluations
from .export import describe_model, export_model, gather_results, write_results
from .hub_checkpoints import CheckpointPusher
from .prepare import note_on_batch_statistics, prepare
from .progress import ProgressLog, one_line
from .recipe import keys_that_stay
from .recipe_error import RecipeError
from .run_folder import CHECKPOINTS, RunFolder, claim_folder, require_space
from .signals import StopNow
from .step import TrainStep
from .stream import DataError, PairStream, TrainingData, open_training_source
from .texts import tokens_of
from .trainer import Progress, Trainer, TrainingDiverged


class TrainingStopped(Exception):
    """A signal ended the run after it saved; it can be resumed."""

    exit_code = 3


class TrainingIncomplete(RuntimeError):
    """The model is trained and exported, but an evaluation or a push that the recipe asks for failed."""

    exit_code = 1


def train(config: TrainConfig, output_dir: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains a dual encoder and leaves a complete model folder.

    Args:
        config: from `load_recipe`.
        output_dir: where the model, its card, `metrics.jsonl`, `recipe.yaml`, `results.json` and `checkpoints/` go.
        resume: go on with the run that is there, from its newest whole checkpoint; the steps that follow are those
            that an uninterrupted run would have made. A new run that fails before its first step leaves nothing.

    Returns:
        What `results.json` holds: measured numbers by evaluation, steps, seconds.

    Raises:
        FolderError: the folder holds another run, another process trains in it, or there is nothing to resume.
        SourceError, DataError: the data cannot be read or is too small. DataChangedError: it is not that with which
        the run began. CheckpointError: the disk is full. TrainingDiverged: loss or weights are not finite.
        TrainingStopped: a signal came; a checkpoint was saved. RecipeError: what only device and data can tell.
        TrainingIncomplete: the model is exported, but an evaluation or a push failed.
    """
    progress = Progress()
    try:
        decisions = decide(config)
        run_folder = claim_folder(Path(output_dir), config, resume, decisions.accelerator)
        try:
            return _train(config, decisions, run_folder, resume, progress)
        except StopNow:
            raise
        except BaseException:
            if not resume and progress.step == 0:
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
        if resume and progress.step == progress.saved_step and (kept := keys_that_stay(str(error))):
            raise type(error)(
                f"{error} But a resumed run keeps its {' and '.join(kept)}: resume it on the device and the number of "
                "processes that it began with, or start another run."
            ) from error
        raise


def _train(
    config: TrainConfig, decisions: Decisions, run_folder: RunFolder, resume: bool, progress: Progress
) -> dict[str, Any]:
    log = ProgressLog(run_folder.path, config.steps, decisions.is_main)
    try:
        for note in run_folder.notes:
            log.say(f"{note}.")
        data = _open_training_data(config.data)
        evaluations = open_evaluations(config)
        trainer = _start(config, decisions, run_folder.path, data, log, resume, progress)
        stream = PairStream(
            data,
            config.data,
            trainer.train_step.processor.image_processor,
            config.batch_size,
            config.seed,
            config.augmentation,
            decisions.accelerator.process_index,
            decisions.processes,
            trainer.stop.is_asked,
            partial(tokens_of, trainer.train_step.processor),
        )
        with trainer.stop:
            try:
                run_steps(trainer, stream, evaluations)
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


def _open_training_data(config: DataConfig) -> TrainingData:
    try:
        return open_training_source(config)
    except SourceError as error:
        keys = {name: f"data.{name}" for name in DataConfig.__dataclass_fields__} | {"data": "data.train"}
        raise SourceError(in_callers_words(str(error), keys)) from error


def _start(
    config: TrainConfig,
    decisions: Decisions,
    folder: Path,
    data: TrainingData,
    log: ProgressLog,
    resume: bool,
    progress: Progress,
) -> Trainer:
    """Model, objective and optimizer, at the first step or at that of the newest checkpoint."""
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, log.say) if resume else None
    if checkpoint is None:
        if resume:
            log.say("There is no checkpoint to go on from: the run begins again at its first step.")
        model, processor = build_start(config.model, data.captions(), config.seed)
    else:
        model, processor = build_again(checkpoint)
    if config.templates is not None:
        model.config.zero_shot_templates = config.templates
    require_space(folder, model, config.steps, config.checkpoints)
    objective, optimizer = prepare(model, config, decisions)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    train_step = TrainStep(config, decisions, objective, optimizer, processor, average)
    trainer = Trainer(config, folder, train_step, progress, log, fingerprint(config.data.train, data.num_rows))
    if checkpoint is not None:
        trainer.restore(checkpoint)
    log.begin(progress.step)
    if note := note_on_batch_statistics(model, config, decisions.micro_batch_size):
        log.say(note)
    if config.checkpoints.push_to is not None and decisions.is_main:
        trainer.pusher = CheckpointPusher(config.checkpoints.push_to, folder, log.fail)
    return trainer


def run_steps(trainer: Trainer, stream: PairStream, evaluations: dict[str, Evaluation]) -> None:
    """Steps until the last, with what is due in between. Raises StopNow once a signal came and all is saved."""
    config, progress, log = trainer.config, trainer.progress, trainer.log
    clock = SaveClock(config.checkpoints.save_minutes)
    logged_step, seconds = progress.step, 0.0
    batches = cast(Generator, stream.batches(progress.position, reads_ahead=trainer.decisions.reads_ahead))
    with closing(batches):
        try:
            while progress.step < config.steps:
                started = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    # A rank was asked to stop while it sought its pairs, which may take longer than it is given.
                    if progress.saved_step < progress.step or progress.step == 0:
                        trainer.save(stream)
                    raise StopNow(trainer.agree(trainer.stop.signal)[0])
                result = trainer.update(batch)
                progress.step, progress.position = progress.step + 1, batch.position
                seconds += time.perf_counter() - started
                progress.train_seconds += time.perf_counter() - started
                is_last = progress.step == config.steps
                log.step()
                if result.is_update and (progress.step % config.log_every == 0 or is_last):
                    steps, numbers = progress.step - logged_step, trainer.read_numbers(result)
                    numbers["pairs_per_second"] = steps * config.batch_size / seconds
                    numbers["epoch"] = stream.epoch(progress.position)
                    numbers["train_seconds"] = progress.train_seconds
                    log.log(progress.step, numbers, seconds / steps * (config.steps - progress.step))
                    logged_step, seconds = progress.step, 0.0
                signal, is_late = trainer.agree(trainer.stop.signal, clock.is_due())
                if signal or is_late or is_last or progress.step % config.checkpoints.save_every == 0:
                    _save(trainer, stream, is_last=is_last)
                    clock.restart()
                if not signal and not is_last and progress.step % config.eval_every == 0:
                    run_evaluations(trainer, evaluations, during_training=True)
                    signal, _ = trainer.agree(trainer.stop.signal)
                    if signal and progress.saved_step < progress.step:
                        trainer.save(stream)
                if signal and not is_last:
                    raise StopNow(signal)
        except (Exception, SystemExit) as error:
            _save_before_it_ends(trainer, stream, error)
            raise


def _save(trainer: Trainer, stream: PairStream, *, is_last: bool) -> None:
    """Saves a checkpoint. Behind the last step one that cannot be written is reported: the model takes less space."""
    try:
        trainer.save(stream)
    except CheckpointError as error:
        if not is_last or trainer.decisions.processes > 1:
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
    trainer.log.say(f"Trained {trainer.config.steps} steps in {trainer.progress.train_seconds:.0f} s.")
    skipped = stream.skipped(stream.gather(trainer.progress.position))
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        trainer.log.say(f"Skipped {skipped.total()} pairs that cannot be read: {reasons}.")
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
