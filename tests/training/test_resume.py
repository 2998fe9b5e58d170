"""A resumed run is the one that began, by recipe, data and folder; and what a run leaves are numbers."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from hf_clip.training import load_recipe, train
from hf_clip.training.checkpoint import CheckpointError, list_checkpoints, load_state, newest_checkpoint
from hf_clip.training.config import CheckpointConfig
from hf_clip.training.data_fingerprint import DataChangedError
from hf_clip.training.loop import Trainer, TrainingDiverged, TrainingStopped
from hf_clip.training.run_folder import FolderError, RunFolder, require_space
from hf_clip_cli import main as cli
from tests.helpers.counts import soak_count
from tests.helpers.quick_ends import end_quickly
from tests.helpers.ranks import process_context, run_on_ranks
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe


@pytest.fixture
def file(tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", recipe(write_parquet(tmp_path / "train.parquet", rows(2)), steps=4))


def stop_at(step: int, rank: int = 0):
    """`Trainer.update`, signalled before `step` (from 1) as a scheduler would."""
    update = Trainer.update

    def update_and_signal(run, batch):
        if run.progress.step == step - 1 and run.accelerator.process_index == rank:
            # The handler alone: what else a worker has loaded may take the system's signal for itself.
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        return update(run, batch)

    return update_and_signal


@pytest.fixture
def stopped(file, tmp_path, monkeypatch):
    """A run that was stopped at step 2 of 4."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(2))
        with pytest.raises(TrainingStopped):
            train(load_recipe(file), tmp_path / "run")
    return tmp_path / "run"


def test_auto_starts_a_run_goes_on_with_it_and_leaves_it_when_it_is_done(file, tmp_path, monkeypatch, capfd):
    """One call for a job that a launcher or a scheduler starts again, however the last one ended."""
    config, folder = load_recipe(file), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(2))
        with pytest.raises(TrainingStopped, match="saved at step 2"):
            train(config, folder, resume="auto")
    results = train(config, folder, resume="auto")
    assert "Going on from step 2" in capfd.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("no run")
    assert train(config, folder, resume="auto") == json.loads((folder / "results.json").read_text()) == results
    assert "is finished: nothing is left to do." in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for call, problem in (
        (lambda: train(load_recipe(file, ["seed=1"]), folder, resume="auto"), "seed was 0 and is 1 now"),
        (lambda: train(config, folder, resume=True), "is finished"),
        (lambda: train(config, mine, resume="auto"), "is not empty"),
        (lambda: train(config, folder, resume="always"), "`resume=always` is unknown"),
    ):
        with pytest.raises(FolderError, match=problem):
            call()
    # With more steps it is not done.
    assert train(load_recipe(file, ["steps=5"]), folder, resume="auto")["step"] == 5


def test_a_word_that_is_no_way_to_resume_is_refused(capsys):
    assert cli.main(["train", "--output-dir", "out", "--resume", "nonsense"]) == 2
    assert "--resume: invalid choice: 'nonsense' (choose from 'auto')" in capsys.readouterr().err


def test_auto_waits_for_the_run_before_it_to_leave(file, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_clip.training.run_folder.LOCK_SECONDS", 0.1)
    earlier = RunFolder(tmp_path / "run")
    earlier.lock()
    with pytest.raises(FolderError, match="Another process trains in"):
        train(load_recipe(file), tmp_path / "run", resume="auto")
    monkeypatch.setattr("hf_clip.training.run_folder.LOCK_SECONDS", 30)
    leaving = threading.Timer(0.3, earlier.close)
    leaving.start()
    assert train(load_recipe(file, ["steps=3"]), tmp_path / "run", resume="auto")["step"] == 3
    leaving.join()


def test_a_crash_in_the_export_loses_nothing(file, tmp_path, monkeypatch):
    """Behind the last step all is in the last checkpoint: no step is made again, and the model is the same."""
    config = load_recipe(file, ["ema_decay=0.5"])
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("hf_clip.training.export.write_sentence_files", break_down)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "run", resume="auto")
    assert not (tmp_path / "run/model.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", break_down)
        train(config, tmp_path / "run", resume="auto")
    for name in ("model.safetensors", "tokenizer.json", "modules.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_changes_no_weight_may_be_changed_and_is_said_and_kept(file, stopped, capfd):
    changed = load_recipe(file, ["log_every=2", "checkpoints.keep_last=9", "card.model_name=squares"])
    train(changed, stopped, resume=True)
    said = capfd.readouterr().err
    assert "log_every was 1 and is 2 now." in said and "card.model_name was None and is 'squares' now." in said
    assert load_recipe(stopped / "recipe.yaml") == changed
    assert (stopped / "README.md").read_text().count("# squares") == 1
    lines = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 4]


def test_what_changes_weights_is_refused_key_by_key(file, stopped):
    changed = load_recipe(file, ["batch_size=8", "seed=1", "log_every=2", "model.config.projection_dim=8"])
    with pytest.raises(FolderError) as caught:
        train(changed, stopped, resume=True)
    message = str(caught.value)
    for text in ("batch_size was 16 and is 8 now", "seed was 0 and is 1 now", "projection_dim was 16 and is 8 now"):
        assert text in message
    assert "log_every" not in message and message.endswith("start the changed one in another `output_dir`.")
    assert load_recipe(stopped / "recipe.yaml") == load_recipe(file)
    assert not (stopped / ".lock").exists()


def test_lanes_stay_those_that_it_began_with(file, stopped, monkeypatch):
    """More processes would have begun with more."""
    begun = load_state(list_checkpoints(stopped / "checkpoints")[-1])["position"]["lanes"]
    monkeypatch.setattr("hf_clip.training.stream.batches.choose_lanes", lambda *args: begun * 2)
    train(load_recipe(file), stopped, resume=True)
    assert load_state(list_checkpoints(stopped / "checkpoints")[-1])["position"]["lanes"] == begun


def test_other_data_of_the_same_name_is_refused(file, stopped, tmp_path):
    kept = (tmp_path / "train.parquet").read_bytes()
    write_parquet(tmp_path / "train.parquet", rows(3))
    with pytest.raises(DataChangedError, match="number of rows: 48 before, 72 now; .*train.parquet: .* restore it"):
        train(load_recipe(file), stopped, resume=True)
    (tmp_path / "train.parquet").write_bytes(kept)
    train(load_recipe(file), stopped, resume=True)


def test_other_circumstances_are_said(file, stopped, capfd, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr("hf_clip.training.decisions.jpeg_decoder", lambda: "another 1.0")
    train(load_recipe(file), stopped, resume=True)
    said = capfd.readouterr().err
    assert "threads was 1 and is 7" in said and "the last bits of the weights may differ" in said
    assert "and is another 1.0" in said and "JPEGs are decoded by another decoder: pixels may differ" in said


def test_metrics_that_a_dead_machine_left_do_not_stop_a_resume(file, stopped):
    with (stopped / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\xff\xfe\x00\n")
    train(load_recipe(file), stopped, resume=True)
    lines = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_checkpoints_come_by_step_and_by_minute(file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        # Every look at the clock is a minute after the last.
        minutes = iter(range(0, 60_000, 60))
        patch.setattr("hf_clip.training.checkpoint.time", SimpleNamespace(monotonic=lambda: next(minutes)))
        overrides = ["checkpoints.save_minutes=2", "checkpoints.keep_last=9", "steps=6"]
        train(load_recipe(file, overrides), tmp_path / "by_minute")
    steps = [path.name for path in list_checkpoints(tmp_path / "by_minute/checkpoints")]
    assert steps == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    overrides = ["checkpoints.save_every=1", "checkpoints.keep_last=1", "checkpoints.keep_every=2", "steps=5"]
    train(load_recipe(file, overrides), tmp_path / "by_step")
    steps = [path.name for path in list_checkpoints(tmp_path / "by_step/checkpoints")]
    assert steps == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_weights_that_are_no_numbers_are_neither_saved_nor_delivered(file, tmp_path, monkeypatch):
    """The loss of a step is taken before its update: one wild update can end a run with an orderly loss."""
    update = Trainer.update

    def spoil(run, batch):
        numbers = update(run, batch)
        with torch.no_grad():
            run.model.visual_projection.weight[0, 0] = float("inf")
        return numbers

    monkeypatch.setattr(Trainer, "update", spoil)
    config = load_recipe(file, ["steps=1", "optimizer.warmup_steps=0"])
    with pytest.raises(TrainingDiverged, match="visual_projection.weight is not finite after step 1.*learning_rate"):
        train(config, tmp_path / "run")
    assert list_checkpoints(tmp_path / "run/checkpoints") == [] and not (tmp_path / "run/results.json").exists()


def test_a_learning_rate_beyond_all_measure_is_an_error(file, tmp_path):
    config = load_recipe(file, ["steps=1", "optimizer.warmup_steps=0", "optimizer.learning_rate=1e38"])
    with pytest.raises(TrainingDiverged, match="lower optimizer.learning_rate"):
        train(config, tmp_path / "run")


def test_skipped_pairs_are_said_at_the_end(tmp_path, capfd):
    content = rows(2)
    content[3]["caption"] = ""
    content[5]["image"] = {"bytes": b"no image", "path": None}
    data = write_parquet(tmp_path / "train.parquet", content)
    results = train(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe(data, steps=3))), tmp_path / "run")
    said = capfd.readouterr().err
    assert sum(results["pairs_skipped"].values()) == 2
    assert said.count("Skipped 2 pairs that cannot be read: ") == 1 and "1 no_caption" in said


def train_as_long_as(file, folder, is_inside, may_end) -> None:
    """Another process's run: says when it is within a step, and stays there until it may end."""
    update = Trainer.update

    def wait(run, batch):
        is_inside.set()
        assert may_end.wait(120)
        return update(run, batch)

    Trainer.update = wait
    train(load_recipe(file), folder)


def test_two_processes_do_not_train_in_one_folder(file, tmp_path):
    context = process_context()
    is_inside, may_end = context.Event(), context.Event()
    other = context.Process(target=train_as_long_as, args=(file, tmp_path / "run", is_inside, may_end), daemon=True)
    other.start()
    try:
        assert is_inside.wait(120)
        for resume in (False, True):
            with pytest.raises(FolderError, match="Another process trains in .*run: wait for it or stop it"):
                train(load_recipe(file), tmp_path / "run", resume=resume)
        # The refused one has taken nothing away.
        assert (tmp_path / "run/recipe.yaml").is_file() and (tmp_path / "run/.lock").is_file()
        may_end.set()
        other.join(120)
    finally:
        other.kill()
        other.join()
    assert other.exitcode == 0 and (tmp_path / "run/results.json").is_file()
    assert not (tmp_path / "run/.lock").exists()


def test_a_killed_run_leaves_a_lock_that_holds_nobody_up(file, stopped):
    (stopped / ".lock").write_text("")
    train(load_recipe(file), stopped, resume=True)
    assert not (stopped / ".lock").exists()


@pytest.mark.parametrize("scrap", [".lock", ".recipe.yaml.partial"])
def test_a_run_killed_before_it_began_leaves_its_folder_free(file, tmp_path, scrap):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / scrap).write_text("ste")
    train(load_recipe(file, ["steps=3"]), tmp_path / "run")
    assert not (tmp_path / "run" / scrap).exists()


def break_down(*_):
    raise MemoryError("no more")


@pytest.mark.parametrize("is_link", [False, True])
def test_a_new_run_that_fails_takes_away_only_what_it_made(file, tmp_path, monkeypatch, is_link):
    monkeypatch.setattr(Trainer, "update", break_down)
    (tmp_path / "mine").mkdir()
    folder = tmp_path / "mine"
    if is_link:
        folder = tmp_path / "link"
        folder.symlink_to(tmp_path / "mine")
    with pytest.raises(MemoryError):
        train(load_recipe(file), folder)
    assert list((tmp_path / "mine").iterdir()) == []
    with pytest.raises(MemoryError):
        train(load_recipe(file), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_others_put_into_a_failed_runs_folder_stays(file, tmp_path, monkeypatch):
    def write_and_break_down(run, batch):
        (run.folder / "notes.txt").write_text("the user's")
        raise MemoryError

    monkeypatch.setattr(Trainer, "update", write_and_break_down)
    with pytest.raises(MemoryError):
        train(load_recipe(file), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_folder_without_the_lock_is_left_as_it_is(tmp_path):
    (tmp_path / "recipe.yaml").write_text("of another process")
    folder = RunFolder(tmp_path)
    folder.clear()
    folder.close()
    assert (tmp_path / "recipe.yaml").is_file()


def test_room_is_asked_for_the_checkpoints_to_come(tmp_path, monkeypatch):
    model = torch.nn.Linear(1000, 1000, bias=False)
    config = CheckpointConfig(keep_last=2, keep_every=5)
    # 4 MB of weights; 2 newest, 2 of every 5 steps and one under way, with two moments each, and the final model.
    needed = 4 * (3 * (2 + 2 + 1) + 1)
    for free, is_enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: type("Usage", (), {"free": free * 10**6}))
        if is_enough:
            require_space(tmp_path, model, 10, config)
        else:
            with pytest.raises(CheckpointError, match="checkpoints need 0.06 GB: free some, lower checkpoints.keep_l"):
                require_space(tmp_path, model, 10, config)
    # What is there already takes no more.
    (tmp_path / "checkpoints/checkpoint-5").mkdir(parents=True)
    require_space(tmp_path, model, 10, config)


def train_on_rank(file: Path, folder: Path, stop: int | None, resume: bool) -> tuple[str, list[list[int]]]:
    """How the run ended on this rank, and the ids of its pairs of every step."""
    # The process ends with the run.
    end_quickly(pytest.MonkeyPatch())
    seen = []
    if stop is not None:
        # The last rank has the signal; the first one writes.
        Trainer.update = stop_at(stop, rank=int(os.environ["WORLD_SIZE"]) - 1)
    update = Trainer.update

    def record(run, batch):
        seen.append(batch.sample_ids.tolist())
        return update(run, batch)

    Trainer.update = record
    try:
        train(load_recipe(file), folder, resume=resume)
    except TrainingStopped as stopped:
        return str(stopped), seen
    return "finished", seen


def test_a_run_may_go_from_two_processes_to_one_and_on_to_four(tmp_path):
    """The order of the pairs stays; the weights are those of one process, but for the rounding of sums."""
    content = recipe(write_parquet(tmp_path / "train.parquet", rows(3)), steps=7, batch_size=16)
    content["optimizer"] = {"learning_rate": 1e-3, "warmup_steps": 1, "epsilon": 1e-4}
    file = write_recipe(tmp_path / "recipe.yaml", content)
    [(ending, whole)] = run_on_ranks(train_on_rank, 1, file, tmp_path / "whole", None, False)
    assert ending == "finished"
    order = []
    for ranks, stop in soak_count(((2, 3), (1, None)), ((2, 3), (1, 5), (4, None))):
        outcomes = run_on_ranks(train_on_rank, ranks, file, tmp_path / "run", stop, bool(order))
        endings = {ending for ending, _ in outcomes}
        if stop is None:
            assert endings == {"finished"}
        else:
            assert len(endings) == min(ranks, 2) and all(f"saved at step {stop}." in ending for ending in endings)
            assert newest_checkpoint(tmp_path / "run/checkpoints", pytest.fail).name == f"checkpoint-{stop}"
        order += [sum(slices, []) for slices in zip(*(seen for _, seen in outcomes), strict=True)]
    assert order == whole
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, rtol=1e-4, atol=1e-6), name
    states = [load_state(tmp_path / name / "checkpoints/checkpoint-7") for name in ("run", "whole")]
    assert states[0]["position"] == states[1]["position"]
    assert states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"]
