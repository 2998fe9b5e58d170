"""Another resolution than a checkpoint's: positions are resampled as OpenCLIP does it, never drawn at random."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPSiglipConfig,
    HFCLIPSiglipModel,
    HFCLIPVisionModel,
    HFCLIPVisionModelWithProjection,
    load,
)
from hf_clip.model.modeling_hf_clip import with_other_loss
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.training import load_recipe, train
from tests.helpers.checkpoints import TEXTS, open_clip_config, unit_embeddings, write_open_clip_folder
from tests.helpers.counts import soak_count
from tests.helpers.peers import load_open_clip
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe
from tests.helpers.toys import tiny_clip
from tests.model.test_resnet import ours as resnet

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("image_size", [64, 24])
def test_positions_are_those_that_open_clip_resamples(image_size, tmp_path):
    peer = write_open_clip_folder(tmp_path / "theirs", open_clip_config())
    _, processor = load(tmp_path / "theirs", tokenizer=tiny_clip(TEXTS)[1].tokenizer)
    model, resized = load(tmp_path / "theirs", tokenizer=processor.tokenizer, image_size=image_size)
    open_clip = load_open_clip()
    config = open_clip_config(vision={"image_size": image_size})
    theirs = open_clip.CLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    state = peer.state_dict()
    open_clip.model.resize_pos_embed(state, theirs)
    theirs.load_state_dict(state)
    inputs = resized(images=[Image.new("RGB", (90, 70), "red")], text=TEXTS, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (image_size, image_size)
    found = unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"])
    expected = unit_embeddings(theirs, inputs["pixel_values"], inputs["input_ids"])
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "ours")
    again = HFCLIPModel.from_pretrained(tmp_path / "ours")
    assert again.config.vision_config.image_size == image_size
    torch.testing.assert_close(again.encode_image(inputs["pixel_values"]), model.encode_image(inputs["pixel_values"]))


def test_a_resnet_takes_its_positions_along():
    model = resnet()
    images, weight = torch.rand(2, 3, 96, 96), model.vision_model.head.position_embedding.weight
    grid = weight[1:].T.reshape(1, -1, 2, 2)
    expected = torch.nn.functional.interpolate(grid, size=(3, 3), mode="bicubic", antialias=True)
    near = model.encode_image(images, interpolate_pos_encoding=True)
    model.set_image_size(96)
    resampled = model.vision_model.head.position_embedding.weight
    torch.testing.assert_close(resampled[1:].T.reshape(expected.shape), expected)
    assert torch.equal(resampled[0], weight[0])
    # Another cubic without antialiasing, and near.
    torch.testing.assert_close(model.encode_image(images), near, rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="`image_size=16` is below 32"):
        model.set_image_size(16)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_from_pretrained_resamples_as_load_does(tower, tmp_path):
    model, processor = tiny_clip(TEXTS)
    model, sizes = (model, (32, 48)) if tower == "vit" else (resnet(), (64, 96))
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    config = HFCLIPConfig.from_pretrained(tmp_path)
    config.vision_config.image_size = sizes[1]
    with pytest.raises(ValueError, match=f"of {sizes[0]} x {sizes[0]} pixels, and `config` those of {sizes[1]} x"):
        HFCLIPModel.from_pretrained(tmp_path, config=config)
    expected, _ = load(tmp_path, image_size=sizes[1]) if tower == "vit" else (copy.deepcopy(model), None)
    expected.set_image_size(sizes[1])
    options = {"config": config, "ignore_mismatched_sizes": True}
    pixel_values = torch.rand(2, 3, sizes[1], sizes[1])
    found = HFCLIPModel.from_pretrained(tmp_path, **options)
    assert torch.equal(found.encode_image(pixel_values), expected.encode_image(pixel_values))
    assert found.config.vision_config.image_size == sizes[1] != HFCLIPConfig.from_pretrained(tmp_path).vision_config
    found.save_pretrained(tmp_path / "again")
    assert HFCLIPModel.from_pretrained(tmp_path / "again").config.vision_config.image_size == sizes[1]
    tokens = expected.vision_model(pixel_values)
    auto = AutoModel.from_pretrained(tmp_path, **options)
    assert torch.equal(auto.vision_model(pixel_values).pooler_output, tokens.pooler_output)
    alone, info = HFCLIPVisionModelWithProjection.from_pretrained(
        tmp_path, config=config.vision_config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert alone.config.image_size == sizes[1] and not info["missing_keys"] and not info["mismatched_keys"]
    embeds = expected.visual_projection(tokens.pooler_output)
    assert torch.equal(alone(pixel_values).image_embeds, embeds)
    labeled = HFCLIPForImageClassification.from_pretrained(tmp_path, **options)
    assert torch.equal(labeled.vision_model(pixel_values).last_hidden_state, tokens.last_hidden_state)
    if tower == "vit":
        one = HFCLIPVisionModel.from_pretrained(tmp_path, image_size=sizes[1], ignore_mismatched_sizes=True)
        assert torch.equal(one(pixel_values).pooler_output, tokens.pooler_output)
        config.vision_config.image_size = 50
        with pytest.raises(ValueError, match="`image_size=50` is not a multiple of 8.*set `image_size=48`"):
            HFCLIPModel.from_pretrained(tmp_path, **options)


def test_from_pretrained_of_the_other_loss_keeps_the_logits(tmp_path):
    model, processor = tiny_clip(TEXTS)
    model.save_pretrained(tmp_path)
    inputs = processor(images=[Image.new("RGB", (40, 32), "red")], text=TEXTS, return_tensors="pt")
    expected = model(**inputs).logits_per_image
    config = HFCLIPSiglipConfig.from_dict(with_other_loss(model, -3.0).config.to_dict())
    for options in ({}, {"config": config}, {"output_loading_info": True}):
        loaded = HFCLIPSiglipModel.from_pretrained(tmp_path, **options)
        sigmoid = loaded[0] if isinstance(loaded, tuple) else loaded
        assert type(sigmoid) is HFCLIPSiglipModel and not sigmoid.training
        torch.testing.assert_close(sigmoid(**inputs).logits_per_image, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        sigmoid.logit_bias.fill_(-2)
    sigmoid.save_pretrained(tmp_path / "sigmoid")
    for kind in (HFCLIPSiglipModel, HFCLIPModel):
        again = kind.from_pretrained(tmp_path / "sigmoid")
        torch.testing.assert_close(again(**inputs).logits_per_image, expected - 2)


def test_a_recipe_starts_from_a_checkpoint_at_another_resolution(tmp_path):
    for part in tiny_clip(TEXTS):
        part.save_pretrained(tmp_path / "start")
    content = recipe(write_parquet(tmp_path / "train.parquet", rows(1)), batch_size=12, steps=3)
    content["model"] = {"start_from": str(tmp_path / "start"), "config": {"vision_config": {"image_size": 48}}}
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", content)), tmp_path / "run")
    model, processor = load(tmp_path / "run")
    assert model.config.vision_config.image_size == 48
    assert ZeroShotClassifier(model, processor, ["a", "b"]).predict([Image.new("RGB", (60, 50))])[0][0]["score"] > 0


@pytest.mark.parametrize("bias", soak_count([-10.0], [0.0, -10.0]))
def test_a_softmax_checkpoint_is_trained_with_the_sigmoid_loss_and_back(bias, tmp_path):
    model, processor = tiny_clip(TEXTS)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "start")
    inputs = processor(images=[Image.new("RGB", (40, 32), "red")], text=TEXTS, return_tensors="pt")
    sigmoid = with_other_loss(model, bias)
    assert type(sigmoid) is HFCLIPSiglipModel and sigmoid.config.model_type == "hf_clip_siglip"
    torch.testing.assert_close(sigmoid(**inputs).logits_per_image, model(**inputs).logits_per_image + bias)
    again = with_other_loss(sigmoid, None)
    assert type(again) is HFCLIPModel and again.logit_bias is None and again.logit_scale.shape == ()
    assert torch.equal(again(**inputs).logits_per_image, model(**inputs).logits_per_image)
    content = recipe(write_parquet(tmp_path / "train.parquet", rows(1)), batch_size=12, steps=3)
    content["model"] = {"start_from": str(tmp_path / "start"), "config": {"logit_bias_init_value": bias}}
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", content)), tmp_path / "run")
    trained, _ = load(tmp_path / "run")
    assert type(trained) is HFCLIPSiglipModel and abs(trained.logit_bias.item() - bias) < 0.1
    content["model"] = {"start_from": str(tmp_path / "run"), "config": {"logit_bias_init_value": None}}
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", content)), tmp_path / "back")
    assert type(load(tmp_path / "back")[0]) is HFCLIPModel
