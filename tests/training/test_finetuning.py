"""Starting from weights that are there, and training some of them, or some faster than others."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from hf_clip import HFCLIPConfig, HFCLIPImageProcessor, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer
from hf_clip.evaluation import evaluate_retrieval
from hf_clip.sources import open_source
from hf_clip.training import load_recipe, train
from hf_clip.training.build import build_start
from hf_clip.training.config import RecipeError
from hf_clip.training.layer_groups import tower_groups
from tests.helpers.counts import soak_count
from tests.helpers.peers import load_timm
from tests.helpers.squares import NAMES, recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import configure, make_batch, make_train_step, weights
from tests.helpers.toys import tiny_clip

RESNET = {"tower": "resnet", "stem_width": 4, "stage_depths": [1, 2, 1, 1], "hidden_size": 128, "image_size": 32}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model of this package for images of 16 pixels, with a normalization of its own, and its weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    model, processor = tiny_clip(NAMES, image_size=16)
    processor.image_processor.image_mean = [0.5, 0.25, 0.125]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def start_from(folder: Path, data: Path | str, start: dict, overrides=(), **changes):
    content = recipe(data, model=start, **changes)
    return load_recipe(write_recipe(folder / "recipe.yaml", content), list(overrides))


def test_a_run_starts_from_a_checkpoint_and_says_so(pretrained, tmp_path):
    data = write_parquet(tmp_path / "train.parquet", rows(2))
    changes = {"steps": 2, "optimizer": {"learning_rate": 1e-9, "warmup_steps": 1, "weight_decay": 0.0}}
    config = start_from(tmp_path, data, {"start_from": str(pretrained)}, **changes)
    results = train(config, tmp_path / "run")
    assert results["started_from"] == str(pretrained)
    assert f"| {pretrained}" in (tmp_path / "run/README.md").read_text().replace("\\", "")
    ours, theirs = load_file(tmp_path / "run/model.safetensors"), load_file(pretrained / "model.safetensors")
    assert ours.keys() == theirs.keys()
    # At that rate they can have moved by no more.
    assert all((ours[name] - theirs[name]).abs().max() < 1e-7 for name in ours)
    assert list(HFCLIPImageProcessor.from_pretrained(tmp_path / "run").image_mean) == [0.5, 0.25, 0.125]
    assert (tmp_path / "run/tokenizer.json").read_text() == (pretrained / "tokenizer.json").read_text()


def test_images_are_normalized_as_the_checkpoint_was_trained(pretrained, tmp_path):
    config = start_from(tmp_path, "none.parquet", {"start_from": str(pretrained)})
    train_step, batch = make_train_step(config), make_batch()
    pixel_values = train_step._images(batch, slice(0, 24), 0.0)
    scaled_BHWC = batch.images.float() / 255
    mean, std = torch.tensor([0.5, 0.25, 0.125]), torch.tensor(train_step.processor.image_processor.image_std)
    assert (pixel_values - ((scaled_BHWC - mean) / std).permute(0, 3, 1, 2)).abs().max() < 1e-5


def test_a_run_starts_from_two_towers_that_were_trained_apart(pretrained, tmp_path):
    """A tower of transformers and one of this package; the processor of the first becomes this package's."""
    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit = ViTModel(ViTConfig(**size, image_size=16, patch_size=8), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        tmp_path / "vit"
    )
    towers = {"vision_tower": str(tmp_path / "vit"), "text_tower": str(pretrained), "config": {"projection_dim": 12}}
    config = start_from(tmp_path, "none.parquet", towers)
    model, processor = build_start(config.model, NAMES, seed=0)
    assert model.visual_projection.weight.shape == (12, 16)
    for name, tensor in vit.state_dict().items():
        assert torch.equal(model.vision_model.backbone.state_dict()[name], tensor), name
    text = HFCLIPModel.from_pretrained(pretrained).text_model.state_dict()
    assert all(torch.equal(each, text[name]) for name, each in model.text_model.state_dict().items())
    assert isinstance(processor.image_processor, HFCLIPImageProcessor)
    image = make_batch().images[0].numpy()
    ours = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path / "vit")(image, return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().max() < 1e-5
    # New projections are drawn from the seed.
    again, _ = build_start(config.model, NAMES, seed=0)
    assert torch.equal(again.visual_projection.weight, model.visual_projection.weight)
    outcome = make_train_step(config, torch.float32).update(make_batch(), 0)
    assert outcome.is_update


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            {"vision_tower": "a", "text_tower": "b", "architecture": "ViT-B/32"},
            "model.vision_tower and model.architecture are two",
        ),
        (
            {"start_from": "a", "vision_tower": "b", "text_tower": "c"},
            "model.start_from and model.vision_tower are two",
        ),
        ({"vision_tower": "b"}, "model.vision_tower=b and model.text_tower=None go together"),
        ({"start_from": "a", "vocabulary_size": 600}, "model.vocabulary_size=600: the weights of model.start_from"),
        ({"start_from": "a", "image_std": [1, 1, 1]}, r"model.image_std=\[1.0, 1.0, 1.0\]: the weights of"),
        ({"start_from": "a", "config": {"projection_dim": 3}}, "model.config.projection_dim cannot be set"),
        (
            {"start_from": "a", "config": {"vision_config": {"patch_size": 3}}},
            "model.config.vision_config.patch_size cannot be set.*Only vision_config.image_size, vision",
        ),
    ],
)
def test_two_starts_at_once_are_refused(tmp_path, start, message):
    with pytest.raises(RecipeError, match=message):
        start_from(tmp_path, "none.parquet", start)


def test_patches_are_dropped_in_training_alone(pretrained, tmp_path):
    dropout = {"vision_config": {"patch_dropout": 0.5}}
    config = start_from(tmp_path, "none.parquet", {"start_from": str(pretrained), "config": dropout})
    train_step = make_train_step(config)
    tokens = []
    encoder = train_step.model.vision_model.encoder
    encoder.layers[0].register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape[1]))
    train_step.update(make_batch(16), 0)
    train_step.model.eval()
    train_step.model.encode_image(torch.zeros(1, 3, 16, 16))
    # Four patches and the class token.
    assert tokens == [3, 5]


TEXT_PARTS = [
    ("embeddings.",),
    ("encoder.layers.0.",),
    ("encoder.layers.1.", "final_layer_norm."),
    ("text_projection.",),
]


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 4, None])
def test_locked_parts_stay_as_they_are(tmp_path, unlocked):
    train_step = make_train_step(
        configure(tmp_path, [f"optimizer.text_tower.trainable_groups={unlocked or 0}"] * (unlocked is not None))
    )
    before = weights(train_step)
    train_step.update(make_batch(), 0)
    moved = {name for name, each in weights(train_step).items() if not torch.equal(each, before[name])}
    for depth, prefixes in enumerate(reversed(TEXT_PARTS)):
        for prefix in prefixes:
            names = {name for name in before if name.removeprefix("text_model.").startswith(prefix)}
            learns = unlocked is None or depth < unlocked
            assert names and (names <= moved if learns else not names & moved), (prefix, learns)
    assert {"logit_scale", "visual_projection.weight"} <= moved


def test_more_parts_than_there_are_cannot_be_unlocked(tmp_path):
    with pytest.raises(RecipeError, match="text_tower.trainable_groups=9: the tower has 4 groups"):
        make_train_step(configure(tmp_path, ["optimizer.text_tower.trainable_groups=9"]))


@pytest.mark.parametrize("unlocked", [None, 1])
def test_batch_norms_of_a_locked_tower_are_frozen(tmp_path, unlocked):
    shape = "{" + ", ".join(f"{key}: {value}" for key, value in RESNET.items()) + ", num_attention_heads: 4}"
    overrides = [f"model.config.vision_config={shape}", "augmentation.rotation=0"]
    if unlocked is not None:
        overrides.append(f"optimizer.vision_tower.trainable_groups={unlocked}")
    train_step = make_train_step(configure(tmp_path, overrides), torch.float32)
    batch = make_batch()
    batch = type(batch)(**{**vars(batch), "images": batch.images.repeat(1, 2, 2, 1)})
    before = {name: each.clone() for name, each in train_step.model.named_buffers() if "running" in name}
    train_step.update(batch, 0)
    same = [torch.equal(each, before[name]) for name, each in train_step.model.named_buffers() if "running" in name]
    assert len(same) > 10 and (all(same) if unlocked else not any(same))


def test_every_tower_is_cut_into_its_layers():
    """In order, every parameter once."""
    model = HFCLIPModel(
        HFCLIPConfig(
            vision_config={**RESNET, "num_attention_heads": 4},
            text_config={"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3},
        )
    )
    parts = tower_groups(model, "vision_tower")
    found = [parameter for part in parts for module in part for parameter in module.parameters(recurse=False)]
    expected = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    assert len(found) == len(expected) and {id(each) for each in found} == {id(each) for each in expected}
    # Stem, four stages, projection; and for texts embeddings, three layers, projection.
    assert len(parts) == 6 and len(tower_groups(model, "text_tower")) == 5
    assert model.vision_model.stem.conv1 in parts[0] and model.visual_projection in parts[-1]


EVA = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
# Trunks of timm, what makes them small, their width and what their groups are.
TRUNKS = {
    "convnext_tiny": ({"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64)}, 64, ["stem", "4 stages", "projection"]),
    "eva02_base_patch16_clip_224": (
        {**EVA, "num_classes": 24, "global_pool": "token"}, 48, ["embeddings", "2 layers", "classifier"],
    ),
    "fastvit_mci0": (
        {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 64), "num_classes": 24}, 128,
        ["stem", "3 convolutions of it", "4 stages", "classifier"],
    ),
}  # fmt: skip


def timm_clip(name: str) -> HFCLIPModel:
    load_timm()
    options, width, _ = TRUNKS[name]
    vision = {"tower": "timm", "backbone": name, "backbone_kwargs": options, "hidden_size": width, "image_size": 32}
    vision |= {"pooling": "pooler", "projection_type": "none" if "num_classes" in options else "linear"}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    return HFCLIPModel(HFCLIPConfig(vision_config=vision, text_config=text, projection_dim=24))


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_of_timm_is_cut_into_its_layers(name):
    model, kinds = timm_clip(name), TRUNKS[name][2]
    parts = tower_groups(model, "vision_tower")
    found = [parameter for part in parts for module in part for parameter in module.parameters(recurse=False)]
    expected = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    assert len(found) == len(expected) and {id(each) for each in found} == {id(each) for each in expected}
    assert len(parts) == sum(int(kind[0]) if kind[0].isdigit() else 1 for kind in kinds)
    projection = model.visual_projection if kinds[-1] == "projection" else model.vision_model.trunk.get_classifier()
    assert [module for module in parts[-1] if list(module.parameters(recurse=False))] == [projection]


@pytest.mark.parametrize("name", [*TRUNKS][: soak_count(1, len(TRUNKS))])
def test_layers_of_a_trunk_of_timm_are_trained_or_frozen_and_forget_their_activations(name, tmp_path):
    load_timm()
    for part in (timm_clip(name), HFCLIPProcessor(HFCLIPImageProcessor(size=32, crop_size=32), HFCLIPTokenizer())):
        part.save_pretrained(tmp_path / "start")
    overrides = [f"model.start_from={tmp_path / 'start'}", "gradient_checkpointing=true", "augmentation.rotation=0"]
    overrides += ["optimizer.vision_tower.trainable_groups=2", "optimizer.vision_tower.layer_decay=0.5"]
    data = write_parquet(tmp_path / "train.parquet", rows(1))
    content = recipe(data, batch_size=12, steps=3)
    content["model"] = {"start_from": str(tmp_path / "start")}
    before = load_file(tmp_path / "start/model.safetensors")
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", content), overrides), tmp_path / "run")
    after = load_file(tmp_path / "run/model.safetensors")
    moved = {key for key, tensor in after.items() if key.startswith("vis") and not torch.equal(tensor, before[key])}
    model = timm_clip(name)
    name_of = {id(parameter): key for key, parameter in model.named_parameters()}
    trained = {
        name_of[id(parameter)]
        for part in tower_groups(model, "vision_tower")[-2:]
        for module in part
        for parameter in module.parameters(recurse=False)
    }
    assert {key for key in moved if "running" not in key and "num_batches" not in key} <= trained and moved


def test_rates_differ_by_tower_and_depth(tmp_path):
    """And a faster rate moves weights further."""
    overrides = ["optimizer.vision_tower.learning_rate_factor=0.1", "optimizer.vision_tower.layer_decay=0.5"]
    train_step = make_train_step(configure(tmp_path, [*overrides, "optimizer.weight_decay=0"]))
    rates = {
        parameter: group["peak_learning_rate"] / 1e-3
        for group in train_step.optimizer.param_groups
        for parameter in group["params"]
    }
    model = train_step.model
    expected = [
        (model.visual_projection.weight, 0.1),
        (model.vision_model.post_layernorm.bias, 0.05),
        (model.vision_model.encoder.layers[1].mlp.fc1.weight, 0.05),
        (model.vision_model.encoder.layers[0].mlp.fc1.weight, 0.025),
        (model.vision_model.embeddings.class_embedding, 0.0125),
        (model.text_model.embeddings.token_embedding.weight, 1.0),
        (model.logit_scale, 1.0),
    ]
    for parameter, factor in expected:
        assert rates[parameter] == pytest.approx(factor)
    assert len(rates) == len(list(model.parameters()))
    before = weights(train_step)
    train_step.update(make_batch(), 0)
    moved = {name: (each - before[name]).abs().max().item() for name, each in weights(train_step).items()}
    assert moved["vision_model.encoder.layers.0.mlp.fc1.weight"] < 0.03e-3 < moved["text_projection.weight"] < 1.01e-3


def test_the_finished_model_is_the_average_and_a_checkpoint_goes_on_with_the_weights(tmp_path):
    data = write_parquet(tmp_path / "train.parquet", rows(2))
    held_out = write_parquet(tmp_path / "held_out.parquet", rows(1, first_seed=50))
    evaluations = {"held_out": {"data": [str(held_out)]}}
    content = recipe(data, steps=6, ema_decay=0.9, evaluations=evaluations, checkpoints={"save_every": 3})
    config = load_recipe(write_recipe(tmp_path / "recipe.yaml", content))
    results = train(config, tmp_path / "run")
    assert results["ema_decay"] == 0.9
    average = load_file(tmp_path / "run/model.safetensors")
    own = load_file(tmp_path / "run/checkpoints/checkpoint-6/model.safetensors")
    assert (average["visual_projection.weight"] - own["visual_projection.weight"]).abs().max() > 1e-4
    state = torch.load(tmp_path / "run/checkpoints/checkpoint-6/training_state.pt", weights_only=True)
    for name, each in state["update"]["average"]["weights"].items():
        assert torch.equal(each, average[name])
    # What was evaluated is what was saved.
    model, processor = HFCLIPModel.from_pretrained(tmp_path / "run"), HFCLIPProcessor.from_pretrained(tmp_path / "run")
    again = evaluate_retrieval(model, processor, open_source([str(held_out)]).require_captions()).to_dict()
    evaluated = json.loads((tmp_path / "run/results.json").read_text())["evaluations"]["held_out"]
    assert again["image_to_text"] == evaluated["image_to_text"]
