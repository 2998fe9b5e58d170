"""What transformers writes into a `config.json` of CLIP, MetaCLIP 2 and SigLIP, read as a config of this package."""

import math
from typing import Any

# Types of a config.json, transformers' among them, and those of this package that they are read as.
_READ_AS = {
    "clip": "hf_clip",
    "clip_text_model": "hf_clip_text_model",
    "clip_vision_model": "hf_clip_vision_model",
    "siglip": "hf_clip_siglip",
    "siglip_text_model": "hf_clip_text_model",
    "siglip_vision_model": "hf_clip_vision_model",
    "siglip2": "hf_clip_siglip",
    "siglip2_text_model": "hf_clip_text_model",
    "siglip2_vision_model": "hf_clip_vision_model",
    "metaclip_2": "hf_clip",
    "metaclip_2_text_model": "hf_clip_text_model",
    "metaclip_2_vision_model": "hf_clip_vision_model",
}
_DUAL_ENCODERS = ("clip", "siglip", "siglip2", "metaclip_2")
_OURS = ("hf_clip", "hf_clip_siglip", "hf_clip_coca", "hf_clip_text_model", "hf_clip_vision_model")

# transformers writes down only what differs from its defaults, and these differ from CLIP's.
_SIGLIP_ACTIVATION = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "projection_type": "none"}
_THEIR_DEFAULTS = {
    "siglip_text_model": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "pooling": "last",
        "is_causal": False,
        **_SIGLIP_ACTIVATION,
    },
    "siglip_vision_model": {
        "patch_size": 16,
        "pooling": "attention",
        "has_class_token": False,
        "has_pre_norm": False,
        "patch_bias": True,
        "norm_before_pooling": True,
        **_SIGLIP_ACTIVATION,
    },
    # Its id 2 means itself: the end token of XLM-R's vocabularies.
    "metaclip_2_text_model": {"pooling": "first_eos", "pad_token_id": 1},
}
_THEIR_DEFAULTS["siglip2_text_model"] = _THEIR_DEFAULTS["siglip_text_model"]
# SigLIP 2's of fixed resolution are saved as SigLIP's; these are NaFlex's.
_THEIR_DEFAULTS["siglip2_vision_model"] = _THEIR_DEFAULTS["siglip_vision_model"] | {
    "tower": "naflex",
    "num_patches": 256,
}


def as_ours(config_dict: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` of transformers' CLIP, MetaCLIP 2 or SigLIP as if this package had written it; ours as it is."""
    kind: Any = config_dict.get("model_type")
    if kind is not None and kind not in (*_READ_AS, *_OURS):
        raise ValueError(f"`model_type={kind!r}` cannot be read: use a folder of {', '.join((*_OURS, *_READ_AS))}.")
    defaults_of_kind = {} if kind is None else _THEIR_DEFAULTS.get(kind, {})
    ours = {**defaults_of_kind, **config_dict}
    for key in ("text_config", "vision_config"):
        # Files of 2022 hold a tower's full shape in `..._config_dict` and at times null in `..._config`.
        first_format = ours.pop(f"{key}_dict", None) or {}
        tower = {**(ours.get(key) or {}), **first_format}
        if kind in _DUAL_ENCODERS:
            tower = {"model_type": f"{kind}_{key.removesuffix('_config')}_model", **tower}
        if tower:
            ours[key] = as_ours(tower)
    if kind in ("siglip", "siglip2"):
        ours["projection_dim"] = ours["text_config"]["projection_size"]
    elif kind in ("siglip_text_model", "siglip2_text_model"):
        ours["projection_size"] = ours.get("projection_size") or ours["hidden_size"]
    elif kind in ("siglip_vision_model", "siglip2_vision_model") and not ours.pop("vision_use_head", True):
        raise ValueError(
            "`vision_use_head=False` leaves the SigLIP image tower without a pooled embedding: use another."
        )
    if kind in ("clip_vision_model", "siglip_vision_model", "metaclip_2_vision_model"):
        defaults = {"image_size": 224, "patch_size": 32} | ours
        if defaults["image_size"] % defaults["patch_size"]:
            ours["crops_remainder"] = True
    if kind == "siglip2_vision_model":
        ours["image_size"] = math.isqrt(ours["num_patches"]) * ours["patch_size"]
    if "projection_dim" in ours:
        # transformers leaves a tower's own projection_dim at its default, whatever the dual encoder's is.
        for key in ("text_config", "vision_config"):
            if isinstance(ours.get(key), dict):
                ours[key]["projection_dim"] = ours["projection_dim"]
    if kind is not None:
        ours["model_type"] = _READ_AS.get(kind, kind)
    return ours
