"""Low-rank adapters: they alone learn, a stopped run goes on bit for bit, and what is exported is what PEFT merges."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_clip import embed_images, embed_texts, load
from hf_clip.hub import PushError
from hf_clip.hub.push import prepare, push
from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.checkpoint import load_state
from hf_clip.training.loop import Trainer, TrainingStopped
from hf_clip.training.lora import merged_adapters, put_on_adapters, target_names
from hf_clip.training.lora_config import LoraConfig
from hf_clip.training.plan import footprint
from tests.helpers.squares import NAMES, recipe, rows, square, write_parquet, write_recipe
from tests.helpers.steps import make_batch, make_train_step
from tests.helpers.toys import tiny_clip
from tests.training.test_resume import stop_at


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A recipe that puts adapters on a small ViT."""
    folder = tmp_path_factory.mktemp("lora")
    model, processor = tiny_clip(NAMES, image_size=16)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    content = recipe(
        write_parquet(folder / "train.parquet", rows(2)),
        steps=4,
        checkpoints={"save_every": 2},
        model={"start_from": str(folder / "base")},
        lora={"rank": 2, "alpha": 8, "dropout": 0.1},
    )
    return write_recipe(folder / "recipe.yaml", content)


def test_linear_layers_of_the_towers_get_adapters_or_those_that_are_named():
    model, _ = tiny_clip(NAMES)
    every = target_names(model, LoraConfig())
    assert len(every) == 2 * 2 * 6 and not any("projection" in name or "embeddings" in name for name in every)
    assert {name.partition(".")[0] for name in every} == {"vision_model", "text_model"}
    some = target_names(model, LoraConfig(targets=["q_proj", "v_proj"], towers=["text_tower"]))
    assert len(some) == 4 and all(
        name.startswith("text_model.") and name.endswith(("q_proj", "v_proj")) for name in some
    )
    with pytest.raises(
        RecipeError, match="lora.targets: no module of text_tower ends in 'query': there are .*, q_proj"
    ):
        target_names(model, LoraConfig(targets=["query"], towers=["text_tower"]))


@pytest.mark.slow
def test_adapters_alone_learn_and_the_exported_model_is_what_peft_merges(file, tmp_path):
    config = load_recipe(file)
    train(config, tmp_path / "run")
    before = load_file(file.parent / "base/model.safetensors")
    after = load_file(tmp_path / "run/model.safetensors")
    model, processor = load(tmp_path / "run")
    adapted = {f"{name}.weight" for name in target_names(load(file.parent / "base")[0], LoraConfig())}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == adapted
    # The checkpoint's model is the one that the adapters belong on.
    kept = load_file(tmp_path / "run/checkpoints/checkpoint-4/model.safetensors")
    assert all(torch.equal(before[name], kept[name]) for name in before)
    settings = json.loads((tmp_path / "run/adapters/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (
        2,
        8,
        str(file.parent / "base"),
    )
    prepare(tmp_path / "run/adapters", tmp_path / "pushed", "owner/name", to="peft")
    pushed = sorted(path.name for path in (tmp_path / "pushed").iterdir())
    assert pushed == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert f"base_model: {file.parent / 'base'}" in (tmp_path / "pushed/README.md").read_text()
    with pytest.raises(PushError, match="`to=peft` is for a folder of adapters, and .*run has no adapter_config.json"):
        push(tmp_path / "run", "owner/name", to="peft")
    by_peft, _ = load(tmp_path / "run/adapters")
    images = [square(name, 3) for name in NAMES[:5]]
    ours, theirs = (embed_images(each, processor, images) for each in (model, by_peft))
    assert abs(ours - theirs).max() < 1e-6
    ours, theirs = (embed_texts(each, processor, NAMES) for each in (model, by_peft))
    assert abs(ours - theirs).max() < 1e-6


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(file, tmp_path, monkeypatch):
    config = load_recipe(file, ["ema_decay=0.9"])
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(2))
        with pytest.raises(TrainingStopped):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    for name in ("model.safetensors", "adapters/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[each], theirs[each]) for each in ours), name
    states = [load_state(tmp_path / name / "checkpoints/checkpoint-4") for name in ("run", "whole")]
    for ours, theirs in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_merging_for_a_while_leaves_every_bit(file):
    model, _ = tiny_clip(NAMES)
    put_on_adapters(model, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if ".lora_B." in name:
                each.normal_()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with merged_adapters(model):
        merged = model.state_dict()
        assert not any("lora" in name for name in merged)
        name = "vision_model.encoder.layers.0.mlp.fc1"
        expected = before[f"{name}.base_layer.weight"] + 2 * (
            before[f"{name}.lora_B.default.weight"] @ before[f"{name}.lora_A.default.weight"]
        )
        assert (merged[f"{name}.weight"] - expected).abs().max() < 1e-6
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[each], before[each]) for each in before)


def test_one_tower_may_have_them_and_the_plan_knows(file):
    config = load_recipe(file, ["lora.towers=[text_tower]", "lora.rank=1"])
    train_step = make_train_step(config, torch.float32)
    train_step.update(make_batch(), 0)
    learned = {name: each for name, each in train_step.model.named_parameters() if each.requires_grad}
    assert learned and all(name.startswith("text_model.") and ".lora_" in name for name in learned)
    assert not train_step.model.vision_model.training
    assert footprint(config).learned == sum(each.numel() for each in learned.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=0", "^lora.rank=0 must be 1 or more"),
        ("lora.towers=[vision]", "^lora.towers: 'vision' is not known: use vision_tower and text_tower"),
        ("optimizer.algorithm=muon", "^optimizer.algorithm=muon is for whole matrices, and lora"),
        ("optimizer.vision_tower.trainable_groups=0", "trainable_groups=0 does not go with lora"),
        ("lora_alpha=2", "^lora_alpha is not a key of a recipe. Use lora.alpha"),
    ],
)
def test_what_does_not_go_with_adapters_is_refused(file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])
