"""Towers of every kind, in ONNX Runtime, give the embeddings that they give in torch."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, ConvNextConfig

from hf_clip import ExportError, HFCLIPConfig, HFCLIPModel, HFCLIPProcessor, HFCLIPSiglipConfig, HFCLIPSiglipModel
from hf_clip.export import export_model, load_exported
from tests.helpers.counts import soak_count
from tests.helpers.toys import scatter_weights, tiny_clip

pytestmark = pytest.mark.slow

TEXTS = ["a photo of a cat", "two dogs on a beach", "one"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert(length: int, vocab_size: int) -> dict:
    backbone = BertConfig(vocab_size=vocab_size, max_position_embeddings=length, **SMALL)
    return {"tower": "transformers", "pooling": "mean", "hidden_size": 32, "tower_config": backbone}


def siglip() -> dict:
    """Attention pooling, texts of one length that see their padding, a bias of the logits."""
    vision = {**SMALL, "pooling": "attention", "has_class_token": False, "has_pre_norm": False, "patch_bias": True}
    vision |= {"patch_size": 8, "norm_before_pooling": True, "hidden_act": "gelu_pytorch_tanh"}
    return {"vision": vision, "text": {**SMALL, "pooling": "last", "is_causal": False, "projection_size": 16}}


def resnet() -> dict:
    """Batch norm and attention pooling, beside a text tower with layer scale."""
    vision = {"tower": "resnet", "stem_width": 8, "stage_depths": [1, 1, 1, 1], "hidden_size": 256}
    vision |= {"num_attention_heads": 4, "projection_bias": True}
    return {"vision": vision, "text": {**SMALL, "layer_scale_init_value": 0.5}}


def transformers_towers() -> dict:
    """Maps of any size, and a text tower with an attention mask."""
    backbone = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    vision = {"tower": "transformers", "pooling": "average", "hidden_size": 16, "tower_config": backbone}
    return {"vision": vision, "text": bert}


KINDS = {"transformers": transformers_towers, "siglip": siglip, "resnet": resnet}


def write_model(kind: str, folder) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    _, processor = tiny_clip(TEXTS)
    tokenizer, towers = processor.tokenizer, KINDS[kind]()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = towers["text"](24, len(tokenizer)) if callable(towers["text"]) else towers["text"]
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, **ids, **text}
    config_class, model_class = HFCLIPConfig, HFCLIPModel
    tokenizer.model_max_length = 24
    if kind == "siglip":
        config_class, model_class = HFCLIPSiglipConfig, HFCLIPSiglipModel
        processor.text_padding = "max_length"
        text["projection_type"] = "none"
        towers["vision"]["projection_type"] = "none"
        text["projection_size"] = 32
    processor.returns_text_mask = kind == "transformers"
    vision = {"image_size": 32, **towers["vision"]}
    dimensions = 32 if kind == "siglip" else 16
    model = model_class(config_class(text_config=text, vision_config=vision, projection_dim=dimensions))
    model = scatter_weights(model, by=0.05)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def largest_difference(one, other) -> float:
    return (F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).abs().max().item()


def check(model, processor, folder, sizes: tuple[int, ...]) -> None:
    runtime, _ = load_exported(folder)
    for texts in (TEXTS[:1], TEXTS):
        inputs = processor(text=texts, return_tensors="pt")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        with torch.no_grad():
            assert largest_difference(runtime.encode_text(**inputs), model.encode_text(**inputs)) < 1e-5
    for size in sizes:
        pixels = torch.randn(3, 3, size, size)
        with torch.no_grad():
            assert largest_difference(runtime.encode_image(pixels), model.encode_image(pixels)) < 1e-5
    assert runtime.logit_scale.exp().allclose(model.logit_scale.exp())
    assert (runtime.logit_bias is None) == (model.logit_bias is None)


@pytest.mark.parametrize("kind", list(KINDS)[: soak_count(0, len(KINDS))])
def test_a_tower_of_this_kind_is_exported(kind, tmp_path):
    model, processor = write_model(kind, tmp_path / "model")
    export_model(tmp_path / "model", to="onnx", output_dir=tmp_path / "onnx")
    # A map's size is free.
    check(model, processor, tmp_path / "onnx", (32, 64) if kind == "transformers" else (32,))
    if kind != "siglip":
        return
    runtime, _ = load_exported(tmp_path / "onnx")
    with pytest.raises(ValueError, match="do not fit the exported 24"):
        runtime.encode_text(torch.zeros(1, 7, dtype=torch.long))


def test_naflex_is_refused(tmp_path, monkeypatch):
    model, processor = tiny_clip(TEXTS)
    model.config.vision_config.tower = "naflex"
    monkeypatch.setattr("hf_clip.export.exporting.load", lambda source: (model, processor))
    with pytest.raises(ExportError, match="NaFlex cannot be exported"):
        export_model(tmp_path / "model", to="onnx", output_dir=tmp_path / "onnx")
