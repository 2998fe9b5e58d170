"""Stages: each has its images, texts, patches and batch; the pairs go on, and one resume goes over all."""

import pytest
import torch
from safetensors.torch import load_file

from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.checkpoint import load_state
from hf_clip.training.loop import Trainer, TrainingStopped
from hf_clip.training.plan import describe_plan, flops_of_step, footprint
from hf_clip.training.stages import stage_recipe, stages_of
from hf_clip.training.step import TrainStep
from tests.helpers.counts import soak_count
from tests.helpers.squares import SIZE, recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import VIT
from tests.training.test_resume import stop_at


@pytest.fixture
def file(tmp_path):
    content = recipe(write_parquet(tmp_path / "train.parquet", rows(2)))
    del content["steps"]
    content["stages"] = [
        {"steps": 3, "image_size": 8, "text_length": 6, "patch_dropout": 0.5, "batch_size": 24},
        {"steps": 2, "image_size": 8, "batch_size": 12, "micro_batch_size": 8, "patch_dropout": 0.0},
        {"steps": 2},
    ]
    content["model"]["config"]["vision_config"] = {**VIT, "image_size": SIZE, "patch_size": 4}
    content["model"]["config"]["text_config"] |= VIT
    return write_recipe(tmp_path / "recipe.yaml", content)


@pytest.fixture
def seen(monkeypatch):
    """What each step was given: (images' side, longest text, pairs, patch dropout, epochs' and pairs' ids)."""
    steps, update = [], TrainStep.update

    def watch(self, batch, step):
        dropout = self.model.config.vision_config.patch_dropout
        ids = list(zip(batch.epochs.tolist(), batch.sample_ids.tolist(), strict=True))
        length = int(batch.tokens.lengths.max())
        steps.append((batch.images.shape[1], length, len(ids), dropout, ids))
        return update(self, batch, step)

    monkeypatch.setattr(TrainStep, "update", watch)
    return steps


def test_each_stage_has_its_own_and_the_pairs_go_on(file, tmp_path, seen):
    config = load_recipe(file)
    assert config.total_steps == 7 and config.optimizer.warmup_steps == 2
    results = train(config, tmp_path / "run")
    assert results["step"] == 7
    assert [step[0] for step in seen] == [8] * 5 + [16] * 2
    assert [step[1] <= 6 for step in seen] == [True] * 3 + [False] * 4
    assert [step[2] for step in seen] == [24] * 3 + [12] * 2 + [16] * 2
    assert [step[3] for step in seen] == [0.5] * 3 + [0.0] * 4
    # 48 pairs: each comes once before any comes again, whatever the stage.
    drawn = [pair for step in seen for pair in step[4]]
    assert len(set(drawn)) == len(drawn) == 128
    assert sorted(pair for pair in drawn if pair[0] == 0) == [(0, index) for index in range(48)]
    kept = load_file(tmp_path / "run/model.safetensors")
    # Positions are the full size's.
    assert kept["vision_model.embeddings.position_embedding.weight"].shape[0] == (SIZE // 4) ** 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize("step", soak_count([5], [2, 3, 5]))
def test_a_stopped_run_goes_on_bit_for_bit_in_its_stage(file, tmp_path, monkeypatch, step):
    config = load_recipe(file)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(step))
        with pytest.raises(TrainingStopped):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = [load_state(tmp_path / name / "checkpoints/checkpoint-7") for name in ("run", "whole")]
    assert states[0]["position"] == states[1]["position"]


def test_the_plan_says_what_is_saved(file):
    config = load_recipe(file)
    stages, whole = stages_of(config), footprint(config)
    spent = sum(
        flops_of_step(stage_recipe(config, stage), footprint(config, stage=stage), 1) * (stage.last - stage.first)
        for stage in stages
    )
    full = sum(flops_of_step(stage_recipe(config, stage), whole, 1) * (stage.last - stage.first) for stage in stages)
    assert 0.2 < spent / full < 0.8
    lines = describe_plan(config).splitlines()
    assert lines[-1].endswith(f"{1 - spent / full:.0%} is saved")
    assert sum(line.startswith("stage ") for line in lines) == 3
    assert (
        "steps 1 to 3: batches of 24, images of 8 pixels, texts of 6 tokens, 0.5 of the patches dropped" in lines[-4]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=5", "^steps=5 and stages are two lengths of one run"),
        ("epochs=5", "^epochs=5.0 and stages are two lengths of one run"),
        ("stages=[{steps: 0}]", "^stages.steps=0 must be 1 or more"),
        ("stages=[{steps: 1, image: 3}]", "stages.image is not a key of a recipe. Did you mean stages.image_size"),
    ],
)
def test_what_is_no_stage_is_refused(file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])


def test_a_stage_that_the_model_does_not_take_is_refused(file, tmp_path):
    for stage, message in (
        ("{steps: 1, image_size: 10}", "image_size=10 is no multiple of the patches' 4 pixels"),
        ("{steps: 1, text_length: 99}", "text_length=99 is more than the model's 16 tokens"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(load_recipe(file, [f"stages=[{stage}]", "optimizer.warmup_steps=0"]), tmp_path / "run")
