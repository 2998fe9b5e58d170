"""Training as a whole, on squares that a small convnet learns in seconds: it learns, stops, goes on, ends complete."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from safetensors.torch import load_file

from hf_clip import HFCLIPModel, HFCLIPProcessor, load
from hf_clip.hub import check_model_card
from hf_clip.model.device_hf_clip import is_fast_at_bf16
from hf_clip.sources import SourceError
from hf_clip.training import load_recipe, train
from hf_clip.training.checkpoint import CheckpointError, load_state
from hf_clip.training.config import CheckpointConfig, RecipeError
from hf_clip.training.device import choose_precision
from hf_clip.training.loop import Trainer, TrainingDiverged, TrainingIncomplete, TrainingStopped
from hf_clip.training.run_folder import FolderError, require_space
from hf_clip.training.signals import StopRequest
from hf_clip.training.step import TrainStep
from hf_clip.training.stream import DataError
from hf_clip.training.stream.decoding import Decoder
from hf_clip.training.trackers import trackers_of
from hf_clip_cli import main as cli
from tests.helpers.counts import soak_count
from tests.helpers.squares import CORNERS, NAMES, SIZE, recipe, rows, write_parquet, write_recipe
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("squares")


@pytest.fixture(scope="module")
def data(folder):
    return write_parquet(folder / "train.parquet", rows(6))


@pytest.fixture(scope="module")
def held_out(folder):
    content = rows(2, first_seed=100)
    for row in content:
        row["label"] = row["caption"].split(" ")[1]
    return write_parquet(folder / "held_out.parquet", content)


def configure(folder: Path, data: Path, overrides=(), **changes):
    return load_recipe(write_recipe(folder / "recipe.yaml", recipe(data, **changes)), list(overrides))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock says."""
    timed = ("pairs_per_second", "train_seconds", "seconds", "waiting_for_data")
    return [{key: value for key, value in line.items() if key not in timed} for line in metrics(folder)]


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Bit for bit: weights, both moments of the optimizer, and every number on the way."""
    for file in (f"checkpoints/checkpoint-{step}/model.safetensors", "model.safetensors"):
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    states = [load_state(place / f"checkpoints/checkpoint-{step}") for place in (one, other)]
    for ours, theirs in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert states[0]["position"] == states[1]["position"]
    assert numbers(one) == numbers(other)


@pytest.fixture(scope="module")
def finished(folder, data, held_out):
    """A run that has learned, with an evaluation of each kind."""
    templates = [f"a {{}} square at the {corner}" for corner in CORNERS]
    evaluations = {
        "held_out": {"data": [str(held_out)], "during_training": True},
        "colors": {"task": "zero-shot", "data": [str(held_out)], "templates": templates},
    }
    changes = {"steps": 100, "batch_size": 32, "log_every": 5, "eval_every": 40, "checkpoints": {"save_every": 25}}
    config = configure(folder, data, evaluations=evaluations, card={"model_name": "squares"}, **changes)
    train(config, folder / "finished")
    return folder / "finished"


def test_it_learns(finished):
    losses = [line["loss"] for line in metrics(finished) if "loss" in line]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    results = json.loads((finished / "results.json").read_text())
    retrieval = results["evaluations"]["held_out"]["image_to_text"]
    assert retrieval["candidates"] == 24 and retrieval["recall_at_1"] > 0.3
    assert results["evaluations"]["colors"]["top_1"] > 0.5


def test_the_folder_is_complete(finished):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "recipe.yaml"):
        assert (finished / name).stat().st_size > 0, name
    card = (finished / "README.md").read_text()
    check_model_card(card)
    assert f'model="{finished.name}"' in card and ".partial" not in card
    results = json.loads((finished / "results.json").read_text())
    assert f"{results['evaluations']['held_out']['image_to_text']['recall_at_1']:.3f}" in card
    assert results["step"] == 100 and results["processes"] == 1 and results["pairs_skipped"] == {}
    assert load_recipe(finished / "recipe.yaml").steps == 100
    plots = sorted(path.name for path in (finished / "plots").iterdir())
    assert plots == ["held_out_best_and_worst.png", "held_out_similarity.png", "loss.png"]
    assert all(f"plots/{name}" in card for name in plots)
    # The released folder has its code, checkpoints have none, nor what names it.
    assert (finished / "modeling_hf_clip.py").is_file()
    assert not list((finished / "checkpoints").rglob("*_hf_clip.py"))
    assert "auto_map" not in (finished / "checkpoints/checkpoint-100/config.json").read_text()
    # The newest two of the checkpoints, and no scraps.
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["checkpoint-100", "checkpoint-75"]
    assert [path.name for path in finished.iterdir() if path.name.startswith(".") or "partial" in path.name] == []


def test_metrics_tell_what_was_promised(finished):
    lines = metrics(finished)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(5, 101, 5))
    promised = {"step", "loss", "gradient_norm", "learning_rate", "logit_scale", "pairs_per_second", "epoch"}
    assert all(promised <= line.keys() for line in training)
    assert training[-1]["epoch"] == 100 * 32 // 144
    evaluated = [line for line in lines if "evaluation" in line]
    assert [(line["step"], list(line["evaluation"])) for line in evaluated] == [
        (40, ["held_out"]),
        (80, ["held_out"]),
        (100, ["held_out", "colors"]),
    ]


def test_the_folder_loads_in_the_stock_pipeline(finished, tmp_path):
    from transformers import pipeline

    pipe = pipeline("zero-shot-image-classification", model=str(finished))
    sample = rows(1, first_seed=100)[0]
    file = tmp_path / "square.png"
    file.write_bytes(sample["image"]["bytes"])
    guess = pipe(str(file), candidate_labels=NAMES, hypothesis_template="{}")
    model, processor = HFCLIPModel.from_pretrained(finished).eval(), HFCLIPProcessor.from_pretrained(finished)
    inputs = processor(text=NAMES, images=[str(file)], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(-1)[0]
    assert guess[0]["label"] == NAMES[int(expected.argmax())]
    assert guess[0]["score"] == pytest.approx(expected.max().item(), abs=1e-5)


def test_a_folder_holds_one_run(finished, folder, data, tmp_path):
    config = load_recipe(finished / "recipe.yaml")
    with pytest.raises(FolderError, match="is not empty: go on with the run in it by `resume`, or choose another"):
        train(config, finished)
    with pytest.raises(
        FolderError, match="is finished: go on with more steps .*, or train another one in another `output_dir`"
    ):
        train(config, finished, resume=True)
    with pytest.raises(FolderError, match="no run to resume in .*: start it without `resume`"):
        train(config, tmp_path / "none", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="is a file: `output_dir` must be a folder"):
        train(config, tmp_path / "file")
    assert not (tmp_path / "none").exists()


CAREFUL = {
    # All that draws at random takes part: augmentation, several captions, keywords, dropout; and the average.
    "ema_decay": 0.9,
    "augmentation": {"rotation": 10, "flip": 0.5, "hue": 0.1, "cutout": 0.5},
    "data.keyword_weight": 0.5,
    "data.keyword_columns": "[keywords]",
    "data.shuffle_block": 50,
    "model.config.text_config.attention_dropout": 0.2,
}


@pytest.fixture(scope="module")
def careful(folder, data):
    overrides = [f"{key}={value}" for key, value in CAREFUL.items()]
    return configure(folder, data, overrides, steps=14, checkpoints={"save_every": 4, "keep_last": 9})


@pytest.fixture(scope="module")
def uninterrupted(folder, careful):
    train(careful, folder / "uninterrupted")
    return folder / "uninterrupted"


@pytest.mark.parametrize("step", soak_count([10], [1, 10]))
def test_a_stopped_run_goes_on_as_if_it_had_not_been(uninterrupted, careful, tmp_path, monkeypatch, step):
    update = Trainer.update

    def update_and_signal(run, batch):
        if run.progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_and_signal)
        with pytest.raises(TrainingStopped, match=f"SIGTERM: saved at step {step}. Go on with `resume`") as stopped:
            train(careful, tmp_path / "run")
    assert stopped.value.exit_code == 3
    assert (tmp_path / f"run/checkpoints/checkpoint-{step}").is_dir()
    # Another process would start with other draws.
    torch.manual_seed(99)
    train(careful, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted, 14)


@pytest.mark.parametrize("step", soak_count([5], [0, 5]))
def test_a_run_stopped_while_it_seeks_its_next_pairs_goes_on_too(uninterrupted, careful, tmp_path, monkeypatch, step):
    decode, decoded = Decoder.decode, []

    def decode_and_signal(self, sample_id, sample):
        decoded.append(sample_id)
        if len(decoded) == 16 * step + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return decode(self, sample_id, sample)

    careful = replace(careful, data=replace(careful.data, workers=0))
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", decode_and_signal)
        with pytest.raises(TrainingStopped, match=f"SIGTERM: saved at step {step}. Go on with `resume`"):
            train(careful, tmp_path / "run")
    assert len(decoded) == 16 * step + 3
    train(careful, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted, 14)


def signal_within(monkeypatch, function: str) -> None:
    """SIGTERM comes while the end of a run, or an evaluation on the way, is within `function`."""

    def take_long(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("It was not stopped.")

    module = "evaluate" if function.startswith("evaluate") else "export"
    monkeypatch.setattr(f"hf_clip.training.{module}.{function}", take_long)


def test_a_signal_ends_evaluations_and_the_last_steps_work_too(data, held_out, tmp_path, monkeypatch, capfd):
    evaluations = {"held_out": {"data": [str(held_out)], "during_training": True}}
    config = configure(tmp_path, data, steps=4, eval_every=3, ema_decay=0.9, evaluations=evaluations)
    train(config, tmp_path / "whole")
    for resume, function, step in (
        (False, "evaluate_retrieval", 3),
        *soak_count([], [(True, "evaluate_retrieval", 4)]),
        (True, "write_model_card", 4),
    ):
        with monkeypatch.context() as patch:
            signal_within(patch, function)
            with pytest.raises(TrainingStopped, match=f"SIGTERM: saved at step {step}. Go on with `resume`"):
                train(config, tmp_path / "run", resume=resume)
        assert (f"SIGTERM: the evaluations at step {step} are given up." in capfd.readouterr().err) == (
            "ev" in function
        )
        assert not (tmp_path / "run/results.json").exists()
    train(config, tmp_path / "run", resume=True)
    lines = numbers(tmp_path / "whole")
    assert [line["step"] for line in lines if "evaluation" in line] == [3, 4]
    # What was given up is made by the run that goes on.
    ours = numbers(tmp_path / "run")
    assert [line["step"] for line in ours if "evaluation" in line] == [3, 4]
    assert [line for line in ours if "loss" in line] == [line for line in lines if "loss" in line]
    for file in ("checkpoints/checkpoint-4/model.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_crashed_run_goes_on_from_its_last_whole_checkpoint(uninterrupted, careful, tmp_path, monkeypatch):
    update = Trainer.update

    def update_or_crash(run, batch):
        if run.progress.step == 11:
            raise MemoryError("no more")
        return update(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_or_crash)
        with pytest.raises(MemoryError):
            train(careful, tmp_path / "run")
    # The steps since the last checkpoint were saved before the error ended the run.
    file = tmp_path / "run/checkpoints/checkpoint-11/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with (tmp_path / "run/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 12, "lo')
    other = load_recipe(tmp_path / "run/recipe.yaml", ["optimizer.learning_rate=1"])
    with pytest.raises(FolderError, match="another recipe: optimizer.learning_rate was 0.003 and is 1.0 now"):
        train(other, tmp_path / "run", resume=True)
    train(careful, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted, 14)


def test_a_command_stopped_by_a_signal_exits_with_3_and_goes_on(folder, data, tmp_path, capfd):
    """And where there is no terminal, it prints lines of progress."""
    content = recipe(data, steps=40)
    file = write_recipe(tmp_path / "recipe.yaml", content)
    command = [*warm_python(), "-m", "hf_clip", "train", "--recipe", str(file), "--output-dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 1/40  loss "):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 3, lines
    assert lines[-1].startswith("hf-clip: SIGTERM: saved at step ") and "\r" not in "".join(lines)
    assert "pairs/s" in lines[-2] and "learning rate" in lines[-2] and "left" in lines[-2]
    assert cli.main(["train", "--output-dir", str(tmp_path / "run"), "--resume"]) == 0
    assert "Going on from step" in capfd.readouterr().err
    train(load_recipe(file), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole", 40)


def test_a_second_interrupt_stops_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGINT"
        # A scheduler may send its own more than once.
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def spoil(monkeypatch, steps: set[int]) -> None:
    """Makes the loss of some steps (from 0) a NaN."""
    backward = TrainStep.backward
    monkeypatch.setattr(
        TrainStep,
        "backward",
        lambda self, batch, step: backward(self, batch, step) * (float("nan") if step in steps else 1),
    )


def test_a_run_goes_on_past_bad_steps_and_says_how_many(data, tmp_path, monkeypatch, capfd):
    spoil(monkeypatch, {2, 3, 5})
    results = train(configure(tmp_path, data, max_bad_steps=3), tmp_path / "run")
    assert results["bad_steps"] == 3
    assert [(line["step"], line["bad_steps"]) for line in metrics(tmp_path / "run")] == [(1, 0), (2, 0), (5, 2)]
    said = capfd.readouterr().err
    assert "The loss is nan" in said and "at step 4: no update (2 in a row; max_bad_steps=3)" in said


def test_a_run_of_bad_steps_stops_and_leaves_their_samples(data, tmp_path, monkeypatch):
    """Stopped and gone on with in between, it counts on."""
    spoil(monkeypatch, {3, 4, 5})
    config = configure(tmp_path, data, max_bad_steps=3, checkpoints={"save_every": 2})
    with pytest.raises(
        TrainingDiverged, match="at step 6, the last of 3 in a row.*: start a run with a lower optimizer.l"
    ):
        train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/bad_batches.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5, 6]
    assert all(len(set(line["sample_ids"])) == 16 for line in lines)
    (tmp_path / "run/bad_batches.jsonl").unlink()
    with pytest.raises(TrainingDiverged, match="at step 6, the last of 3 in a row"):
        train(config, tmp_path / "run", resume=True)
    again = [json.loads(line) for line in (tmp_path / "run/bad_batches.jsonl").read_text().splitlines()]
    assert again == lines


@pytest.mark.parametrize(
    ("steps", "bad", "in_a_row"),
    [
        # None counted; one did, of which nothing was logged.
        (3, {0, 1, 2}, 3),
        (2, {1}, 1),
    ],
)
def test_a_short_run_that_has_no_number_to_show_has_diverged(data, tmp_path, monkeypatch, steps, bad, in_a_row):
    spoil(monkeypatch, bad)
    config = configure(tmp_path, data, steps=steps, log_every=10, optimizer={"warmup_steps": 1})
    with pytest.raises(
        TrainingDiverged, match=f"at step {steps}, the last of {in_a_row} in a row.*: start a run with a lower"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()


def test_a_run_whose_logged_steps_were_bad_by_chance_has_no_plot_of_them(data, tmp_path, monkeypatch):
    spoil(monkeypatch, {2, 4})
    assert train(configure(tmp_path, data, steps=5, log_every=3), tmp_path / "run")["bad_steps"] == 2
    assert not (tmp_path / "run/metrics.jsonl").exists() and "loss.png" not in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data.train": "[no/such.parquet]"}, SourceError, "no/such.parquet"),
        ({"batch_size": 1000}, DataError, "144 pairs, fewer than batch_size=1000. Lower batch_size to 144"),
        ({"model.config.vision_config.image_size": 18}, RecipeError, "image_size=18"),
        ({"evaluations.late": "{data: [no/such.csv]}"}, SourceError, "no/such.csv"),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(data, tmp_path, changes, error, message):
    config = configure(tmp_path, data, [f"{key}={value}" for key, value in changes.items()])
    with pytest.raises(error, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_small_a_disk_is_noticed_before_training(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    with pytest.raises(CheckpointError, match=r"0.00 GB of free disk, .* need \d.\d\d GB: free some"):
        require_space(tmp_path, torch.nn.Linear(100, 100), 10, CheckpointConfig())


def test_a_disk_that_fills_up_at_the_end_loses_nothing(data, tmp_path, monkeypatch):
    """The checkpoint of the last step is there; a resumed run then only finishes."""
    config = configure(tmp_path, data, steps=3)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hf_clip.training.export.write_folder", full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists() and not (tmp_path / "run/model.safetensors").exists()
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/README.md").is_file() and len(metrics(tmp_path / "run")) == 3


def test_a_last_checkpoint_that_does_not_fit_costs_no_model(data, tmp_path, monkeypatch):
    """The model takes a third of the space of its checkpoint."""
    config = configure(tmp_path, data, steps=3)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_clip.training.trainer.save_state", full_disk)
    with pytest.raises(
        TrainingIncomplete, match="The last checkpoint could not .* there is no earlier checkpoint: free"
    ):
        train(config, tmp_path / "run")
    assert load(tmp_path / "run")[0].config.model_type == "hf_clip"
    assert (tmp_path / "run/results.json").is_file()


def test_a_signal_at_a_last_step_that_cannot_be_saved_is_told_as_that(data, tmp_path, monkeypatch):
    def full_disk(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_clip.training.trainer.save_state", full_disk)
    with pytest.raises(
        TrainingIncomplete, match="SIGTERM: the model .* is trained, but .* last step, 3, could not be"
    ):
        train(configure(tmp_path, data, steps=3), tmp_path / "run")
    assert load(tmp_path / "run")[0].config.model_type == "hf_clip"


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGHUP), lambda: sys.exit(7)])
def test_a_terminal_that_closes_and_an_exit_leave_a_checkpoint(data, tmp_path, monkeypatch, end):
    update, config = Trainer.update, configure(tmp_path, data, steps=9)

    def update_and_end(run, batch):
        result = update(run, batch)
        if run.progress.step == 3:
            end()
        return result

    monkeypatch.setattr(Trainer, "update", update_and_end)
    # What runs under nohup ignores it, and its tests too.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises((TrainingStopped, SystemExit)):
            train(config, tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] in (["checkpoint-4"], ["checkpoint-3"])


def test_it_trains_without_matplotlib_tensorboard_and_evaluations(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(configure(tmp_path, data, steps=3), tmp_path / "run")
    assert "No plots: matplotlib is not installed (pip install matplotlib)" in capfd.readouterr().err
    assert not (tmp_path / "run/plots").exists() and not (tmp_path / "run/tensorboard").exists()
    check_model_card((tmp_path / "run/README.md").read_text())


def test_numbers_go_to_the_trackers_of_the_recipe(data, tmp_path, monkeypatch):
    """Any that Accelerate knows; what it has under the name is opened, told every number, and closed."""
    told: list = []

    class Tracker:
        requires_logging_directory = True

        def __init__(self, run_name, logging_dir):
            told.append((run_name, Path(logging_dir)))

        def start(self):
            told.append("start")

        def log(self, values, step):
            told.append((step, values["loss"]))

        def finish(self):
            told.append("finish")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "json", Tracker)
    train(configure(tmp_path, data, ["log_with=[json]", "log_every=1"], steps=4), tmp_path / "run")
    losses = [(line["step"], line["loss"]) for line in metrics(tmp_path / "run") if "loss" in line]
    assert told == [("run", tmp_path / "run"), "start", *losses, "finish"] and len(losses) == 4
    assert not (tmp_path / "run/tensorboard").exists()
    with pytest.raises(RecipeError, match="log_with: 'wanbd' is not known: use some of .*wandb"):
        trackers_of(["wanbd"])
    with pytest.raises(RecipeError, match="log_with: dvclive is not installed: pip install dvclive"):
        trackers_of(["dvclive"])


def test_bf16_trains_where_it_is_asked_for(data, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        results = train(configure(tmp_path, data, ["mixed_precision=bf16"], steps=3), tmp_path / "run")
        assert results["mixed_precision"] == "bf16"
        weights = load_file(tmp_path / "run/model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("amx", "avx512", "fast"), [(True, True, True), (False, True, True), (False, False, False)])
def test_bf16_is_chosen_where_the_device_is_fast_at_it(monkeypatch, amx, avx512, fast):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    cpu = torch.device("cpu")
    assert is_fast_at_bf16(cpu) is fast
    assert choose_precision("auto", cpu) == ("bf16" if fast else "no")
    assert choose_precision("no", cpu) == "no" and choose_precision("bf16", cpu) == "bf16"
    assert choose_precision("auto", torch.device("mps")) == "no"


def write_image_folder(place: Path, content: list[dict]) -> Path:
    (place / "images").mkdir(parents=True)
    table = ["file_name,caption"]
    for index, row in enumerate(content):
        (place / f"images/{index}.png").write_bytes(row["image"]["bytes"])
        table.append(f"images/{index}.png,{row['caption']}")
    (place / "metadata.csv").write_text("\n".join(table))
    return place


def write_csv(place: Path, content: list[dict]) -> Path:
    table = (write_image_folder(place, content) / "metadata.csv").rename(place / "pairs.csv")
    table.write_text(table.read_text().replace("file_name,caption", "image_path,title"))
    return table


def write_tar(place: Path, content: list[dict]) -> Path:
    place.mkdir()
    with tarfile.open(place / "shard-0.tar", "w") as tar:
        for index, row in enumerate(content):
            for suffix, value in (("png", row["image"]["bytes"]), ("txt", row["caption"].encode())):
                entry = tarfile.TarInfo(f"{index:06d}.{suffix}")
                entry.size = len(value)
                tar.addfile(entry, io.BytesIO(value))
    return place / "shard-0.tar"


@pytest.mark.parametrize("write", [write_tar, *soak_count([], [write_image_folder, write_csv])])
def test_every_kind_of_source_trains_as_the_parquet_file_does(data, tmp_path, write):
    config = configure(tmp_path, write(tmp_path / "data", rows(6)), steps=2, optimizer={"warmup_steps": 1})
    train(config, tmp_path / "run")
    parquet = configure(tmp_path, data, steps=2, optimizer={"warmup_steps": 1})
    train(parquet, tmp_path / "parquet")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "parquet")
    assert HFCLIPModel.from_pretrained(tmp_path / "run").config.vision_config.image_size == SIZE


def test_columns_of_an_evaluation_can_be_set(tmp_path):
    """Columns that no name gives away are set for the training data, and so for what evaluates it."""
    content = [{"what": row["image"], "said": row["caption"]} for row in rows(4)]
    data = write_parquet(tmp_path / "odd.parquet", content)
    columns = {"image_column": "what", "caption_columns": ["said"]}
    content = recipe(data, steps=3, evaluations={"same": {"data": [str(data)], **columns}})
    content["data"] |= columns
    results = train(load_recipe(write_recipe(tmp_path / "odd.yaml", content)), tmp_path / "run")
    assert results["evaluations"]["same"]["image_to_text"]["queries"] == len(rows(4))
