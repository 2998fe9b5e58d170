"""Trunks of timm as image towers, equal to timm and to OpenCLIP's wrapper of it. timm is imported over a stub."""

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers.utils import is_torchvision_available

from hf_clip import HFCLIPConfig, HFCLIPModel, HFCLIPVisionConfig, HFCLIPVisionModelWithProjection, join_towers
from hf_clip.model.modeling_timm_hf_clip import HFCLIPTimmModel
from tests.helpers.peers import load_open_clip, load_timm
from tests.helpers.toys import scatter_weights, tiny_clip

CLOSE = {"rtol": 0, "atol": 1e-5}
# timm's own small models for tests, and a Swin with buffers that no checkpoint holds.
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
TRUNKS = {
    "test_vit": (64, {"img_size": 32}),
    "test_resnet": (96, {}),
    "test_convnext": (64, {}),
    "swin_tiny_patch4_window7_224": (32, SWIN),
}


@pytest.fixture(scope="module", autouse=True)
def timm():
    return load_timm()


def make_images() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, 32, 32)


def config(name: str, **fields) -> HFCLIPVisionConfig:
    width, kwargs = TRUNKS[name]
    given = {"tower": "timm", "backbone": name, "backbone_kwargs": kwargs, "hidden_size": width, "pooling": "pooler"}
    return HFCLIPVisionConfig(**{**given, "projection_dim": 24, **fields})


@pytest.mark.parametrize("name", TRUNKS)
def test_timms_own_embeddings_and_states(name, timm):
    tower = scatter_weights(HFCLIPTimmModel(config(name)), by=0.05)
    trunk = timm.create_model(name, num_classes=0, **TRUNKS[name][1]).eval()
    trunk.load_state_dict(tower.trunk.state_dict())
    with torch.no_grad():
        output = tower(make_images(), output_hidden_states=True)
        torch.testing.assert_close(output.pooler_output, trunk(make_images()), **CLOSE)
        features, states = trunk.forward_intermediates(make_images())
        torch.testing.assert_close(output.hidden_states, tuple(states), **CLOSE)
        torch.testing.assert_close(tower(make_images()).last_hidden_state, output.last_hidden_state, **CLOSE)
    # Of maps, the positions in reading order.
    if name == "swin_tiny_patch4_window7_224":
        features = features.flatten(1, 2)
    elif features.ndim == 4:
        features = features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(output.last_hidden_state, features, **CLOSE)


# timm's name, OpenCLIP's pool, proj and proj_bias, and ours.
WRAPPERS = [
    ("test_vit", "avg", "linear", False, {"pooling": "average", "projection_type": "linear"}),
    ("test_vit", "token", "linear", True, {"pooling": "class", "projection_type": "linear", "projection_bias": True}),
    ("test_vit", "", "mlp", False, {"projection_type": "mlp"}),
    ("test_vit", "map", "none", False, {"kwargs": {"num_classes": 0, "global_pool": "map"}, "projection_dim": 64}),
    ("test_vit", "avg", None, False, {"kwargs": {"num_classes": 24, "global_pool": "avg"}}),
    ("test_resnet", "avg", "mlp", True, {"pooling": "average", "projection_type": "mlp", "projection_bias": True}),
    ("test_convnext", "", "linear", False, {"projection_type": "linear"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pool", "projection", "bias", "fields"), WRAPPERS)
def test_open_clips_wrapper_gives_the_same_embeddings(name, pool, projection, bias, fields):
    load_open_clip()
    from open_clip.timm_model import TimmModel

    fields = dict(fields)
    options = fields.pop("kwargs", {})
    dimensions = fields.get("projection_dim", 24)
    theirs = scatter_weights(TimmModel(name, dimensions, 160, pool, projection, bias), by=0.05)
    kind = {"projection_type": "none"} if options else {}
    ours = HFCLIPVisionModelWithProjection(config(name, backbone_kwargs=options, **kind, **fields)).eval()
    ours.vision_model.trunk.load_state_dict(theirs.trunk.state_dict())
    for parameter, other in zip(ours.visual_projection.parameters(), theirs.head.parameters(), strict=True):
        parameter.data = other.data
    torch.manual_seed(3)
    pixel_values = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        embeddings, expected = ours(pixel_values).image_embeds, theirs(pixel_values)
    assert embeddings.shape == (2, dimensions)
    torch.testing.assert_close(F.normalize(embeddings), F.normalize(expected), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUNKS)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    model = HFCLIPModel(HFCLIPConfig(vision_config=config(name), text_config=small_text(), projection_dim=24))
    scatter_weights(model, by=0.05).save_pretrained(tmp_path)
    again, info = HFCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    # Buffers that the file does not hold as well.
    for loaded, saved in zip(again.vision_model.buffers(), model.vision_model.buffers(), strict=True):
        assert torch.equal(loaded, saved)
    with torch.no_grad():
        expected = model.encode_image(make_images())
        torch.testing.assert_close(again.eval().encode_image(make_images()), expected, rtol=0, atol=1e-6)
    # timm's own widths of initial weights hold where the model is made without memory, too.
    with torch.device("meta"):
        tower = HFCLIPTimmModel(config(name))
    tower.to_empty(device="cpu")
    tower.init_weights()
    drawn = HFCLIPTimmModel(config(name))
    for (key, tensor), other in zip(tower.state_dict().items(), drawn.state_dict().values(), strict=True):
        if tensor.numel() > 2000:
            assert tensor.std().item() == pytest.approx(other.std().item(), rel=0.1), key
    assert all(tensor.isfinite().all() for tensor in tower.state_dict().values())


def small_text() -> dict:
    return {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def test_gradient_checkpointing_gives_the_same_gradients():
    tower = scatter_weights(HFCLIPTimmModel(config("test_vit")), by=0.05).train()
    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            tower.gradient_checkpointing_enable()
            assert tower.trunk.grad_checkpointing and tower.is_gradient_checkpointing
        tower.zero_grad()
        tower(make_images()).pooler_output.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in tower.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_a_trunk_joins_a_text_tower_with_the_images_it_asks_for(tmp_path):
    text, processor = tiny_clip(["a cat", "a dog"])
    text.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, processor = join_towers("timm/test_vit.r160_in1k", tmp_path, 16, use_pretrained_weights=False)
    asked = model.vision_model.trunk.pretrained_cfg
    assert processor.image_processor.image_mean == tuple(asked["mean"])
    inputs = processor(text=["a cat", "a dog"], images=torch.zeros(3, 300, 200).byte().numpy(), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 160, 160)
    model(**inputs).logits_per_image.sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision_model.parameters())


def test_what_timm_cannot_make_raises(monkeypatch):
    with pytest.raises(ValueError, match="'tset_vit'` is no model of timm .* Nearest: .*'test_vit'"):
        HFCLIPTimmModel(config("test_vit", backbone="tset_vit"))
    with pytest.raises(ValueError, match="test_resnet cannot pool as `pooling='class'`.*set `pooling='pooler'`"):
        HFCLIPTimmModel(config("test_resnet", pooling="class"))
    with pytest.raises(ValueError, match="`hidden_size=63` is not the width of timm's test_vit: set `hidden_size=64`"):
        HFCLIPTimmModel(config("test_vit", hidden_size=63))
    with pytest.raises(ValueError, match="`backbone=None`: set it to timm's name"):
        HFCLIPVisionConfig(tower="timm")
    with pytest.raises(ValueError, match="`pooling='first'` is not known"):
        config("test_vit", pooling="first")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="needs timm, and timm needs torchvision .*pip install timm torchvision"):
        HFCLIPTimmModel(config("test_vit"))


def test_the_stub_is_gone():
    """transformers takes a torchvision that is broken for a real one."""
    if not is_torchvision_available():
        assert not any(name.split(".")[0] == "torchvision" for name in sys.modules)
    assert is_torchvision_available() == (importlib.util.find_spec("torchvision") is not None)
