"""OpenCLIP's CoCas: embeddings, logits and tensors are those of its own code."""

import pytest
import torch

from hf_clip import HFCLIPCoCaModel, HFCLIPConfig
from hf_clip.conversion import ConversionError, export_configs, load
from hf_clip.conversion.coca import COCA_RULES, published_config
from hf_clip.conversion.open_clip import config_from_model_cfg
from hf_clip.conversion.rules import export_tensors, renamed_shapes
from hf_clip.model.configuration_hf_clip import find_architecture
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn
from tests.helpers.checkpoints import IMAGES, TEXTS, unit_embeddings
from tests.helpers.coca import coca_model_cfg, load_coca, write_coca_folder
from tests.helpers.open_clip_configs import open_clip_model_cfg, open_clip_names
from tests.helpers.open_clip_folders import assert_near, assert_returns_to_open_clip
from tests.helpers.peers import load_open_clip

PUBLISHED = ["coca_ViT-B-32", "coca_ViT-L-14"]


@pytest.fixture(scope="module")
def coca(tmp_path_factory):
    """Our model, its processor, OpenCLIP's model, pixels, and texts as OpenCLIP pads them, one with an id 0 within."""
    model, processor, peer = load_coca(tmp_path_factory.mktemp("coca") / "theirs")
    inputs = processor(
        images=[*IMAGES, IMAGES[0]], text=TEXTS, return_tensors="pt", padding="max_length", max_length=24
    )
    ids = inputs["input_ids"]
    assert processor.tokenizer.pad_token_id == 0 and ids.shape == (4, 24) and (ids[:3, -1] == 0).all()
    ids[1, 3] = 0
    assert ids[3, -1] != 0
    return model, processor, peer, inputs["pixel_values"], ids


def test_embeddings_and_logits_are_open_clips(coca):
    model, _, peer, pixel_values, ids = coca
    assert isinstance(model, HFCLIPCoCaModel)
    assert_near(unit_embeddings(model, pixel_values, ids), unit_embeddings(peer, pixel_values, ids))
    with torch.no_grad():
        theirs = peer(pixel_values, ids, output_labels=False)["logits"]
        ours = model(ids, pixel_values, return_logits=True)
        assert (ours.logits - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        # Shorter padding, and the image's tokens by themselves, change nothing.
        short = model(ids[:3, :20], pixel_values[:3], return_logits=True)
        alone = model(ids, image_tokens=model.encode_image_tokens(pixel_values))
    assert_near([short.text_embeds], [ours.text_embeds[:3]])
    assert_near([short.logits, alone.logits], [ours.logits[:3, :20], ours.logits])
    assert_near([ours.image_embeds], [unit_embeddings(peer, pixel_values, ids)[0]])


def test_places_are_embedded_by_the_value_path_of_the_queries(coca):
    model, _, _, pixel_values, _ = coca
    dense = model.dense_image_features(pixel_values)
    assert dense.shape == (4, 4, 4, 48) and torch.allclose(dense.norm(dim=-1), torch.ones(4, 4, 4))


@pytest.mark.slow
def test_a_folder_comes_back_bit_for_bit(tmp_path):
    peer = write_coca_folder(tmp_path / "theirs")
    assert_returns_to_open_clip(tmp_path / "theirs", peer, tmp_path)
    assert isinstance(load(tmp_path / "ours")[0], HFCLIPCoCaModel)


@pytest.mark.parametrize("name", open_clip_names() and PUBLISHED)
def test_published_configs_are_read_and_written(name):
    """Every tensor of the published architectures has its place."""
    model_cfg = open_clip_model_cfg(name)
    config = config_from_model_cfg(model_cfg)
    plain = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    with torch.device("meta"), NothingDrawn():
        theirs = load_open_clip().CoCa(**plain).state_dict()
        ours = export_tensors(HFCLIPCoCaModel(config).state_dict(), COCA_RULES)
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
    shapes = renamed_shapes({key: tensor.shape for key, tensor in theirs.items()}, COCA_RULES)
    assert published_config(shapes).to_dict() == config.to_dict()
    assert HFCLIPConfig.from_architecture(name).to_dict() == config.to_dict()
    said = find_architecture(name)["parameters"]
    assert said["total"] == sum(tensor.numel() for tensor in theirs.values())
    assert said["total"] == said["image"] + said["text"] + said["decoder"] + 1
    assert export_configs.missing_in_open_clip(config) == []
    assert config_from_model_cfg(export_configs.open_clip_model_cfg(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", open_clip_names() and ["coca_base", "coca_roberta-ViT-B-32"])
def test_configs_without_weights_are_refused_by_name(name):
    with pytest.raises(ConversionError, match=f"{name}\\), of which no weights"):
        config_from_model_cfg(open_clip_model_cfg(name))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"heads": 2, "mlp_ratio": 3}, "multimodal_cfg has mlp_ratio=3"),
        ({"width": 64}, "widths"),
        ({"cross": 1}, "multimodal_cfg has cross=1"),
    ],
)
def test_what_its_decoder_has_not_is_refused(change, problem):
    with pytest.raises(ConversionError, match=problem):
        config_from_model_cfg(coca_model_cfg(**change))
