"""Failures of all that is not training itself: the run ends with the weights of an undisturbed one, exported."""

import json
import os
import pkgutil
import random
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_clip import load
from hf_clip.evaluation import evaluate_zero_shot
from hf_clip.sources import SourceError, open_source
from hf_clip.training import export, load_recipe, train
from hf_clip.training import hub_checkpoints as pushing
from hf_clip.training.evaluate import open_evaluations
from hf_clip.training.loop import TrainingIncomplete
from hf_clip.training.recipe_error import RecipeError
from hf_clip.training.trainer import Trainer, TrainingDiverged
from tests.helpers.counts import soak_count
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import configure, make_batch, make_train_step, make_trainer
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]

# What is disturbed: where, what the user is told it was, and whether the recipe asks for it (exit code 1).
TOLD = [
    ("hf_clip.training.progress.tqdm.write", None, False),
    ("hf_clip.training.progress.logger.info", None, False),
    ("hf_clip.training.progress.ProgressLog._open_bar", "The progress bar failed", False),
    ("hf_clip.training.progress.ProgressLog._open_tracker", "TensorBoard failed", False),
    ("hf_clip.training.progress.ProgressLog._write_line", "metrics.jsonl failed", False),
    ("hf_clip.training.progress.ProgressLog._write_scalars", "TensorBoard failed", False),
    ("hf_clip.training.progress._drop_lines_after", "metrics.jsonl failed", False),
    ("hf_clip.training.export.plot_training", "The plot of the loss failed", False),
    ("hf_clip.training.export.plot_retrievals", "The plots of held_out failed", False),
    ("hf_clip.training.export.plot_similarity", "The plots of held_out failed", False),
    ("hf_clip.training.export.write_model_card", "The model card failed", False),
    ("hf_clip.training.export.draw_example", "The card's example failed", False),
    ("hf_clip.training.export._card_facts", "The model card failed", False),
    ("hf_clip.training.evaluate.evaluate_retrieval", "The evaluation held_out at step", True),
    ("hf_clip.training.evaluate.evaluate_zero_shot", "The evaluation colors at step 4 failed", True),
    ("hf_clip.training.hub_checkpoints.HfApi.upload_folder", "could not be pushed to owner/copies", True),
    ("hf_clip.training.hub_checkpoints.HfApi.create_repo", "could not be pushed to owner/copies", True),
]
ERRORS: list[Callable[[], Exception]] = [
    lambda: OSError(28, "No space left on device"),
    lambda: BrokenPipeError(32, "Broken pipe"),
    lambda: ValueError("a value\nof two lines"),
    lambda: RuntimeError("CUDA error"),
    lambda: MemoryError(),
    lambda: ImportError("No module named 'gone'"),
    lambda: UnicodeEncodeError("ascii", "\u00e9", 0, 1, "ordinal not in range"),
    lambda: json.JSONDecodeError("bad", "{", 1),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A run of four steps with evaluations, checkpoints that are pushed, plots and a card."""
    folder = tmp_path_factory.mktemp("failures")
    data = write_parquet(folder / "train.parquet", rows(1))
    held_out = [{**row, "label": row["caption"].split(" ")[1]} for row in rows(1, first_seed=9)[:12]]
    evaluation = {"data": [str(write_parquet(folder / "held_out.parquet", held_out))]}
    content = recipe(
        data,
        steps=4,
        eval_every=2,
        templates=["a {} square"],
        checkpoints={"save_every": 3, "push_to": "owner/copies"},
        evaluations={
            "held_out": {**evaluation, "during_training": True},
            "colors": {**evaluation, "task": "zero-shot"},
        },
    )
    content["data"]["workers"] = 0
    return write_recipe(folder / "recipe.yaml", content)


class QuietHub:
    """A Hub that takes everything."""

    def create_repo(self, *_, **__) -> None: ...
    def upload_folder(self, **__) -> None: ...
    def delete_folder(self, *_, **__) -> None: ...
    def model_info(self, *_) -> SimpleNamespace:
        return SimpleNamespace(private=True)

    def list_repo_files(self, *_) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """A Hub that takes everything; no waiting for one that does not; cards whose snippets are not run."""
    monkeypatch.setattr(pushing, "HfApi", QuietHub)
    monkeypatch.setattr(pushing, "RETRY_SECONDS", ())
    monkeypatch.setattr(export, "write_model_card", partial(write_card_alone, export.write_model_card))


def write_card_alone(write: Callable, folder: Path, facts: Any, runs_snippets: bool = True) -> None:
    write(folder, facts, runs_snippets=False)


@pytest.fixture(scope="module")
def undisturbed(file) -> dict[str, torch.Tensor]:
    """The weights of the run that nothing disturbs; nothing of it is evaluated or described."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_clip.training.loop.describe_model", lambda *_: None)
        train(load_recipe(file, ["evaluations={}", "checkpoints.push_to=null"]), file.parent / "undisturbed")
    return load_file(file.parent / "undisturbed/model.safetensors")


def disturb(monkeypatch, target: str, error: Callable[[], Exception], after: int = 0) -> list[int]:
    """Has the calls of `target` behind the first `after` fail; the list counts those that did."""
    owner, _, name = target.rpartition(".")
    holder = pkgutil.resolve_name(owner)
    function, calls, failed = getattr(holder, name), [], []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            failed.append(1)
            raise error()
        return function(*args, **kwargs)

    monkeypatch.setattr(holder, name, fail)
    return failed


def train_to_the_end(file: Path, folder: Path) -> TrainingIncomplete | None:
    """What the run raised after its end, where it did."""
    try:
        assert "failed" not in train(load_recipe(file), folder)
    except TrainingIncomplete as incomplete:
        assert incomplete.exit_code == 1 and "\n" not in str(incomplete)
        assert json.loads((folder / "results.json").read_text())["failed"]
        return incomplete
    return None


def assert_exported(folder: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    ours = load_file(folder / "model.safetensors")
    assert ours.keys() == undisturbed.keys()
    assert [name for name in ours if not torch.equal(ours[name], undisturbed[name])] == []
    for name in ("config.json", "tokenizer.json", "processor_config.json", "results.json"):
        assert (folder / name).is_file(), name


def test_a_run_ends_well_where_all_else_fails(file, undisturbed, tmp_path, monkeypatch, capfd):
    """All at once, but for what writes the lines that say so."""
    failed = {line: disturb(monkeypatch, target, ERRORS[1]) for target, line, _ in TOLD if line is not None}
    ending = train_to_the_end(file, tmp_path / "run")
    assert_exported(tmp_path / "run", undisturbed)
    said = capfd.readouterr().err
    for line in ("metrics.jsonl failed", "TensorBoard failed", "The model card failed", "The plot of the loss failed"):
        assert said.count(line) == (line != "The plot of the loss failed"), line
    for what in ("evaluation held_out at step 2", "evaluation held_out at step 4", "evaluation colors", "be pushed"):
        assert what in str(ending) and what in said
    assert "could not be pushed to owner/copies (" in said and any(failed.values())


@pytest.mark.parametrize("number", random.Random(7).sample(range(200), soak_count(1, 200)))
def test_a_failure_of_what_is_not_training_ends_no_run(file, undisturbed, tmp_path, monkeypatch, capfd, number):
    choice, (target, line, is_asked_for) = random.Random(number), TOLD[number % len(TOLD)]
    with monkeypatch.context() as patch:
        failed = disturb(patch, target, choice.choice(ERRORS), choice.choice([0, 0, 0, 1, 2]))
        ending = train_to_the_end(file, tmp_path / "run")
    assert (ending is not None) == (is_asked_for and bool(failed))
    assert_exported(tmp_path / "run", undisturbed)
    if failed and line is not None:
        assert line in capfd.readouterr().err
    if ending is not None:
        assert line in str(ending)


def test_a_checkpoint_is_saved_before_the_evaluation_of_its_step(file, tmp_path, monkeypatch):
    seen = []

    def look(*_, **__):
        seen.append(sorted(each.name for each in (tmp_path / "run/checkpoints").iterdir()))
        raise ValueError("nothing to see")

    monkeypatch.setattr("hf_clip.training.evaluate.evaluate_retrieval", look)
    config = load_recipe(file, ["checkpoints.save_every=2", "checkpoints.push_to=null", "evaluations.colors=null"])
    monkeypatch.setattr("hf_clip.training.loop.describe_model", lambda *_: None)
    with pytest.raises(TrainingIncomplete, match="held_out at step 2 failed .nothing to see"):
        train(config, tmp_path / "run")
    assert seen == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]


@pytest.mark.parametrize("is_sound", [True, False])
def test_an_error_between_steps_ends_a_run_that_is_saved_if_its_weights_are_sound(
    file, undisturbed, tmp_path, monkeypatch, capfd, is_sound
):
    read_numbers = Trainer.read_numbers

    def fail(trainer, result):
        if trainer.progress.step == 2:
            if not is_sound:
                trainer.model.logit_scale.data.fill_(float("nan"))
            raise RuntimeError("broken between steps")
        return read_numbers(trainer, result)

    config = load_recipe(file, ["evaluations={}", "checkpoints.push_to=null"])
    monkeypatch.setattr("hf_clip.training.loop.describe_model", lambda *_: None)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken between steps"):
        patch.setattr(Trainer, "read_numbers", fail)
        train(config, tmp_path / "run")
    said = capfd.readouterr().err
    assert ("it was saved at step 2" in said) == is_sound and ("could not be saved at step 2" in said) != is_sound
    assert (tmp_path / "run/checkpoints/checkpoint-2").is_dir() == is_sound
    if is_sound:
        train(config, tmp_path / "run", resume=True)
        assert_exported(tmp_path / "run", undisturbed)


def test_card_recipe_and_a_later_evaluation_give_one_number(file, tmp_path):
    """With the templates of the recipe, which travel in the model's config."""
    results = train(load_recipe(file, ["evaluations.held_out=null", "checkpoints.push_to=null"]), tmp_path / "run")
    numbers = results["evaluations"]["colors"]
    assert numbers["templates"] == ["a {} square"]
    model, processor = load(tmp_path / "run")
    assert model.config.zero_shot_templates == ["a {} square"]
    again = evaluate_zero_shot(model, processor, open_source(file.parent / "held_out.parquet")).to_dict()
    assert again["top_1"] == numbers["top_1"] and list(again["templates"]) == ["a {} square"]
    assert f"{numbers['top_1']:.3f}" in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluations.colors.label_column=color"], "set evaluations.colors.label_column|color"),
        (["evaluations.held_out.data=[gone.parquet]"], "gone.parquet"),
        (
            ["evaluations.numbers={task: zero-shot, data: [DATA], label_column: kind}"],
            "numbers without names, such as",
        ),
        (
            ["evaluations.none={task: zero-shot, data: [DATA], label_column: nothing}"],
            "has no label in its first rows",
        ),
    ],
)
def test_what_an_evaluation_needs_is_checked_before_the_first_step(file, tmp_path, overrides, message):
    content = [{**row, "kind": index % 3, "nothing": ""} for index, row in enumerate(rows(1)[:6])]
    data = write_parquet(tmp_path / "data.parquet", content)
    overrides = [each.replace("DATA", str(data)) for each in overrides]
    with pytest.raises(SourceError, match=message) as caught:
        open_evaluations(load_recipe(file, overrides))
    assert "`" not in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_are_not_finite_are_blamed_on_what_made_them(tmp_path):
    config = configure(tmp_path, ["augmentation.brightness=1e30", "max_bad_steps=1"])
    trainer = make_trainer(config, tmp_path, make_train_step(config, torch.float32))
    with pytest.raises(
        TrainingDiverged, match=r"augmentation gave images .* lower augmentation.brightness \(now 1e\+30"
    ):
        trainer.update(make_batch())
    config = configure(tmp_path, ["max_bad_steps=1"])
    train_step = make_train_step(config, torch.float32)
    train_step.processor.image_processor.image_std = [1e-45, 0.5, 0.5]
    with pytest.raises(TrainingDiverged, match=r"the normalization gave images that are not finite: .*image_std"):
        make_trainer(config, tmp_path, train_step).update(make_batch())


def test_a_resumed_run_is_not_told_to_change_what_it_keeps(file, tmp_path, monkeypatch):
    def refuse(_):
        raise RecipeError("mixed_precision=fp16 needs a CUDA GPU, and the device is cpu: use bf16 or no.")

    monkeypatch.setattr("hf_clip.training.loop.decide", refuse)
    with pytest.raises(RecipeError, match="a resumed run keeps its mixed_precision: resume it on the device and"):
        train(load_recipe(file), tmp_path / "run", resume=True)
    with pytest.raises(RecipeError, match="use bf16 or no.$"):
        train(load_recipe(file), tmp_path / "run")


def test_a_reader_that_leaves_a_home_that_cannot_be_written_and_jupyters_plots_end_no_run(file, undisturbed, tmp_path):
    """`hf-clip train ... 2>&1 | head -1`, with Jupyter's MPLBACKEND and an HF_HOME where nothing can be made."""
    train_it = f"{shlex.join(warm_python('libraries'))} -m hf_clip train --recipe '{file}' --output-dir run"
    overrides = "--set checkpoints.push_to=null --set log_every=1"
    environment = {**os.environ, "MPLBACKEND": "module://nowhere", "HF_HOME": "/dev/null/none", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {train_it} {overrides} 2>&1 | head -1"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    assert_exported(tmp_path / "run", undisturbed)
    assert (tmp_path / "run/plots/loss.png").is_file() and (tmp_path / "run/README.md").is_file()
