"""The configs that come with `open_clip_torch`, and OpenCLIP's models of them without memory."""

import functools
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import M2M100Config, MT5Config, PreTrainedConfig, RobertaConfig, XLMRobertaConfig

from hf_clip.conversion.confirm import class_of
from hf_clip.conversion.open_clip import config_from_model_cfg
from hf_clip.model.configuration_hf_clip import HFCLIPConfig
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn
from tests.helpers.peers import load_open_clip, load_timm

# Of the trunks of timm, by the family that their names in OpenCLIP begin with; the smallest and the largest.
FAMILIES = {
    "convnext": ("convnext_tiny", "convnext_xxlarge_320"),
    "ViTamin": ("ViTamin-S", "ViTamin-XL-384"),
    "MobileCLIP-": ("MobileCLIP-S1", "MobileCLIP-B"),
    "MobileCLIP2": ("MobileCLIP2-S0", "MobileCLIP2-L-14"),
    "EVA": ("EVA02-B-16", "EVA02-E-14-plus"),
    "PE-Core": ("PE-Core-T-16-384", "PE-Core-bigG-14-448"),
    "vit_": ("vit_medium_patch16_gap_256", "vit_relpos_medium_patch16_cls_224"),
    "swin": ("swin_base_patch4_window7_224",),
}
_SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_SMALL_T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
_SMALL_M2M100 = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip


@functools.cache
def open_clip_names() -> list[str]:
    """The names of all configs, from their files; none where the peer is not installed."""
    try:
        folder = distribution("open_clip_torch").locate_file("open_clip/model_configs")
    except PackageNotFoundError:
        return []
    return sorted(file.stem for file in Path(str(folder)).glob("*.json"))


def open_clip_model_cfg(name: str) -> dict:
    """A config of OpenCLIP's by name."""
    folder = distribution("open_clip_torch").locate_file("open_clip/model_configs")
    return json.loads((Path(str(folder)) / f"{name}.json").read_text(encoding="utf-8"))


def stand_in(name: str, **options) -> PreTrainedConfig:
    """A small config in the place of the one that the Hub has for a text tower of transformers."""
    if "mt5" in name:
        return MT5Config(**_SMALL_T5)
    if "nllb" in name:
        return M2M100Config(**_SMALL_M2M100)
    return (XLMRobertaConfig if "xlm" in name else RobertaConfig)(**_SMALL, num_attention_heads=2)


def read_on_meta(model_cfg: dict) -> tuple[HFCLIPConfig, dict[str, torch.Tensor]]:
    """Config and state dict of our model of OpenCLIP's `model_cfg`."""
    load_timm()
    config = config_from_model_cfg(model_cfg, stand_in)
    with torch.device("meta"), NothingDrawn():
        return config, class_of(config)(config).state_dict()


def open_clip_on_meta(model_cfg: dict, monkeypatch) -> dict[str, torch.Tensor]:
    """State dict of OpenCLIP's own model of it, with the same stand-ins."""
    load_timm()
    open_clip = load_open_clip()
    monkeypatch.setattr(open_clip.hf_model, "AutoConfig", SimpleNamespace(from_pretrained=stand_in))
    model_cfg = json.loads(json.dumps(model_cfg))
    is_apart = model_cfg.pop("custom_text", False)
    if "hf_model_name" in model_cfg["text_cfg"]:
        is_apart, model_cfg["text_cfg"]["hf_model_pretrained"] = True, False
    with torch.device("meta"), NothingDrawn():
        return (open_clip.CustomTextCLIP if is_apart else open_clip.CLIP)(**model_cfg).state_dict()
