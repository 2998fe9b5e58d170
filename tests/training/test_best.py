"""The best model of a run by a number of an evaluation: kept, exported, found again on resume; an early end."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.config import NUMBERS_OF_TASKS
from hf_clip.training.loop import Trainer, TrainingStopped
from tests.helpers.counts import soak_count
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe
from tests.training.test_resume import stop_at

NUMBER = "held_out.image_to_text.recall_at_1"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    held_out = write_parquet(folder / "held_out.parquet", rows(1, first_seed=50))
    content = recipe(
        write_parquet(folder / "train.parquet", rows(2)),
        steps=8,
        eval_every=2,
        eval_at_start=True,
        checkpoints={"save_every": 1, "keep_last": 20, "best": NUMBER},
        evaluations={"held_out": {"data": [str(held_out)], "during_training": True}},
    )
    return write_recipe(folder / "recipe.yaml", content)


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations whose number is the test's, by step; returns the steps that were evaluated on the way."""
    asked = []

    def script(values: dict[int, float]):
        class Result:
            def __init__(self, value):
                self.value = value

            def to_dict(self):
                return {"task": "retrieval", "image_to_text": {"recall_at_1": self.value}}

        def run(trainer, evaluations, *, during_training=False):
            step = trainer.progress.step
            asked.append(step)
            if trainer.stop.signal:
                return {}
            return {"held_out": Result(values[step])}

        monkeypatch.setattr("hf_clip.training.loop.run_evaluations", run)
        monkeypatch.setattr("hf_clip.training.loop.gather_results", lambda trainer, *_: gathered(trainer))
        monkeypatch.setattr("hf_clip.training.loop.describe_model", lambda *_: None)
        return asked

    return script


def gathered(trainer) -> dict:
    return {"step": trainer.progress.step, "best": [trainer.progress.best_step, trainer.progress.best_value]}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights_of(one), weights_of(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_model_is_the_one_that_is_exported(file, tmp_path, scripted):
    asked = scripted({0: 0.1, 2: 0.2, 4: 0.9, 6: 0.9, 8: 0.3})
    assert train(load_recipe(file), tmp_path / "run") == {"step": 8, "best": [4, 0.9]}
    # The last one before the export tells whether the last model is the best; the other is of what is exported.
    assert asked == [0, 2, 4, 6, 8, 8]
    assert same(tmp_path / "run", tmp_path / "run/checkpoints/checkpoint-4")
    assert not same(tmp_path / "run", tmp_path / "run/checkpoints/checkpoint-8")
    assert json.loads((tmp_path / "run/checkpoints/best/best.json").read_text())["step"] == 4


def test_the_model_before_training_may_be_the_best_and_the_last_one_too(file, tmp_path, scripted):
    scripted({0: 0.9, 2: 0.2})
    result = train(load_recipe(file, ["steps=2", "optimizer.warmup_steps=1"]), tmp_path / "start")
    assert result["best"] == [0, 0.9]
    scripted({0: 0.1, 2: 0.2, 4: 0.9})
    assert train(load_recipe(file, ["steps=4"]), tmp_path / "end")["best"] == [4, 0.9]
    assert same(tmp_path / "end", tmp_path / "end/checkpoints/checkpoint-4")


def test_a_run_ends_early_where_nothing_gets_better(file, tmp_path, scripted, capfd):
    scripted({0: 0.1, 2: 0.5, 4: 0.4, 6: 0.5, 8: 0.9})
    result = train(load_recipe(file, ["steps=100", "checkpoints.patience=2"]), tmp_path / "run")
    assert result == {"step": 6, "best": [2, 0.5]}
    assert "The run ends before its 100 steps: 2 evaluations in a row were no better" in capfd.readouterr().err


@pytest.mark.parametrize("step", soak_count([4], [3, 4, 5]))
def test_a_run_that_was_stopped_finds_the_same_best(file, tmp_path, scripted, monkeypatch, step):
    """A signal at an evaluation gives it up: the resumed run makes it. One after it knows what it found."""
    asked = scripted({0: 0.1, 2: 0.5, 4: 0.6, 6: 0.5, 8: 0.4})
    config = load_recipe(file, ["checkpoints.patience=2", "steps=12"])
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(step))
        with pytest.raises(TrainingStopped):
            train(config, tmp_path / "run")
    assert train(config, tmp_path / "run", resume=True) == {"step": 8, "best": [4, 0.6]}
    assert asked == [0, 2, 4, 6, 8, 8]
    assert same(tmp_path / "run", tmp_path / "run/checkpoints/checkpoint-4")


def test_results_and_card_show_what_training_changed(file, tmp_path):
    train(load_recipe(file, ["steps=4", "evaluations.held_out.during_training=true"]), tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    before = results["evaluations_at_start"]["held_out"]["image_to_text"]["recall_at_1"]
    after = results["evaluations"]["held_out"]["image_to_text"]["recall_at_1"]
    assert results["best"]["number"] == NUMBER and results["best"]["value"] == after >= before
    card = (tmp_path / "run/README.md").read_text()
    assert "| before training | after | change |" in card
    assert f"| held_out | image to text R@1 | {before:.3f} | {after:.3f} | {after - before:+.3f} |" in card
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    shown = events.Images("held_out/best and worst")
    assert [each.step for each in shown] == [0, 2, 4, 4]
    for number in NUMBERS_OF_TASKS["retrieval"]:
        way, name = number.split(".")
        assert name in results["evaluations"]["held_out"][way], number


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoints.best=other.top_1", "checkpoints.best=other.top_1 begins with no evaluation's .* are held_out"),
        ("checkpoints.best=held_out.top_1", "names no number of a retrieval evaluation: write held_out. and one of"),
        ("evaluations.held_out.during_training=false", "set evaluations.held_out.during_training to true"),
        ("checkpoints={patience: 2}", "checkpoints.patience=2 waits for a better number: set checkpoints.best"),
    ],
)
def test_a_best_that_could_never_be_found_is_refused(file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])
