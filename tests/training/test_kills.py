"""Runs killed at any moment, in a save too, end bit for bit as the one that was left alone."""

import os
import random
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_clip.training import load_recipe, train
from hf_clip.training.checkpoint import list_checkpoints, load_state, newest_checkpoint
from hf_clip.training.loop import Trainer
from tests.helpers.counts import soak_count
from tests.helpers.quick_ends import end_quickly
from tests.helpers.ranks import process_context
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe

# What Python's audit hooks tell of the file system: each comes before the thing is done.
TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
STEP, SAVE, ANY = "before a step", "in a save", "anywhere"


def kill_at(folder: Path, place: str | None, number: int, counts: Counter) -> None:
    """SIGKILL for this process at the `number`th touch of a file of the run, or before a step. Counts both."""

    def pass_by(*places: str) -> None:
        for name in places:
            if name == place and counts[name] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            counts[name] += 1

    def look(event: str, arguments: tuple) -> None:
        if event in TOUCHES and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(folder)):
            pass_by(ANY, *([SAVE] if "/checkpoints" in str(arguments[0]) else []))

    update = Trainer.update

    def update_or_die(run, batch):
        pass_by(ANY, STEP)
        return update(run, batch)

    sys.addaudithook(look)
    Trainer.update = update_or_die


def train_and_die(file: Path, folder: Path, place: str | None, number: int, connection) -> None:
    # The process ends with the run.
    end_quickly(pytest.MonkeyPatch())
    counts: Counter[str] = Counter()
    kill_at(folder, place, number, counts)
    train(load_recipe(file), folder, resume=(folder / "recipe.yaml").is_file())
    connection.send(counts)


def in_a_process(target, *arguments) -> tuple[int, object]:
    """The exit code of a process that runs `target(*arguments, connection)`, and what it sent."""
    context = process_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        sent = ours.recv()
    except EOFError:
        sent = None
    process.join()
    return process.exitcode, sent


def assert_same_end(one: Path, other: Path) -> None:
    step = list_checkpoints(other / "checkpoints")[-1].name
    for file in (f"checkpoints/{step}/model.safetensors", "model.safetensors"):
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    states = [load_state(place / "checkpoints" / step)["optimizer"]["state"] for place in (one, other)]
    for ours, theirs in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (one / "metrics.jsonl").read_text().count('"loss"') == (other / "metrics.jsonl").read_text().count('"loss"')


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A recipe in which all that draws at random takes part, with a checkpoint at every other step."""
    folder = tmp_path_factory.mktemp("kills")
    data = write_parquet(folder / "train.parquet", rows(2))
    changes = {
        "augmentation": {"rotation": 10, "flip": 0.5, "cutout": 0.5},
        "evaluations": {"seen": {"data": [str(data)]}},
    }
    content = recipe(data, steps=8, checkpoints={"save_every": 2, "keep_last": 2}, **changes)
    content["data"] |= {"keyword_weight": 0.5, "keyword_columns": ["keywords"], "shuffle_block": 30}
    content["model"]["config"]["text_config"]["attention_dropout"] = 0.2
    return write_recipe(folder / "recipe.yaml", content)


@pytest.fixture(scope="module")
def uninterrupted(file):
    """The run that was left alone, and how often it passed by each place where others are killed."""
    folder = file.parent / "uninterrupted"
    code, counts = in_a_process(train_and_die, file, folder, None, 0)
    assert code == 0 and counts[STEP] == 8 and counts[SAVE] > 4 * 10 and counts[ANY] > counts[SAVE] + 8
    return folder, counts


def test_killed_runs_end_as_the_one_that_was_not(file, uninterrupted, tmp_path):
    whole, counts = uninterrupted
    draw, wanted, killed, finished = random.Random(4), soak_count(1, 20), [], 0
    while len(killed) < wanted or (tmp_path / f"run-{finished}").exists():
        folder = tmp_path / f"run-{finished}"
        place = [SAVE, STEP, ANY][len(killed) % 3] if len(killed) < wanted else None
        number = draw.randrange(counts[place]) if place is not None else 0
        code, _ = in_a_process(train_and_die, file, folder, place, number)
        assert code in (0, -signal.SIGKILL), f"after {killed}, killed {place} {number}"
        if code:
            killed.append((place, number))
        if (folder / "results.json").is_file():
            assert_same_end(folder, whole)
            finished += 1
    assert finished > 0


def train_on_a_small_disk(file: Path, folder: Path, connection) -> None:
    """From the second checkpoint on, no file may be longer than half of the first one's weights."""
    save = Trainer.save

    def save_less(run, stream, **options):
        if run.progress.step > 2:
            weights = folder / "checkpoints/checkpoint-2/model.safetensors"
            resource.setrlimit(resource.RLIMIT_FSIZE, (weights.stat().st_size // 2, resource.RLIM_INFINITY))
        save(run, stream, **options)

    Trainer.save = save_less
    try:
        train(load_recipe(file), folder)
    except ValueError as error:
        connection.send(str(error))


def test_a_full_disk_leaves_the_last_checkpoint_from_which_the_run_goes_on(file, uninterrupted, tmp_path):
    _, message = in_a_process(train_on_a_small_disk, file, tmp_path / "run")
    assert "checkpoint-4 could not be written (" in message and "free some space" in message
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-2"]
    assert newest_checkpoint(tmp_path / "run/checkpoints", pytest.fail).name == "checkpoint-2"
    assert in_a_process(train_and_die, file, tmp_path / "run", None, 0)[0] == 0
    assert_same_end(tmp_path / "run", uninterrupted[0])
