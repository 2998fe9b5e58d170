"""OpenCLIP's CoCa: the table between its names and ours, and its part of a `model_cfg`.

Facts are from `open_clip_torch` 3.3 (coca_model.py, transformer.py).
"""

from collections.abc import Iterable
from typing import Any

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig

from .errors import ConversionError
from .openai import (
    ARCHIVE_NUMBERS,
    LOGIT_SCALE,
    VISION_TRANSFORMER,
    text_tower,
    transformer_layer,
    with_weight_and_bias,
)
from .rules import Rule, Shapes

_POOL, _HEAD = "visual.attn_pool", "vision_model.head"
_DECODER = "text_decoder"


def _pooling_rules() -> list[Rule]:
    """Queries of another width than the patches: torch's attention module then has the weights of q, k, v apart."""
    attention = [f"{_HEAD}.attention.{name}_proj" for name in "qkv"]
    return [
        Rule(f"{_POOL}.query", f"{_HEAD}.query"),
        *with_weight_and_bias(f"{_POOL}.ln_q", f"{_HEAD}.layer_norm_query"),
        *with_weight_and_bias(f"{_POOL}.ln_k", f"{_HEAD}.layer_norm_context"),
        *(Rule(f"{_POOL}.attn.{name}_proj_weight", f"{_HEAD}.attention.{name}_proj.weight") for name in "qkv"),
        Rule(f"{_POOL}.attn.in_proj_bias", tuple(f"{name}.bias" for name in attention)),
        *with_weight_and_bias(f"{_POOL}.attn.out_proj", f"{_HEAD}.attention.out_proj"),
    ]


def _layer_scales(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.*.ls_{n}.gamma", f"{ours}.*.layer_scale{n}.weight") for n in (1, 2)]


COCA_RULES = [
    *text_tower("text."),
    *_layer_scales("text.transformer.resblocks", "text_model.encoder.layers"),
    Rule("text.cls_emb", "text_model.embeddings.class_embedding"),
    Rule("text.text_projection", "text_projection.weight", transpose=True),
    *VISION_TRANSFORMER,
    *_layer_scales("visual.transformer.resblocks", "vision_model.encoder.layers"),
    *_pooling_rules(),
    *transformer_layer(f"{_DECODER}.resblocks.*", f"{_DECODER}.layers.*"),
    *_layer_scales(f"{_DECODER}.resblocks", f"{_DECODER}.layers"),
    *transformer_layer(f"{_DECODER}.cross_attn.*", f"{_DECODER}.cross_layers.*", "cross_attn"),
    *_layer_scales(f"{_DECODER}.cross_attn", f"{_DECODER}.cross_layers"),
    *with_weight_and_bias(f"{_DECODER}.cross_attn.*.ln_1_kv", f"{_DECODER}.cross_layers.*.layer_norm_context"),
    *with_weight_and_bias(f"{_DECODER}.ln_final", f"{_DECODER}.final_layer_norm"),
    Rule(f"{_DECODER}.text_projection", "lm_head.weight", transpose=True),
    *LOGIT_SCALE,
    *ARCHIVE_NUMBERS,
    Rule("text.attn_mask", why="the causal mask, which older versions saved"),
    Rule(f"{_DECODER}.attn_mask", why="the causal mask, which older versions saved"),
]

# The keys that make a CoCa of a `model_cfg`, by section, and what they must be.
_VISION = {"attentional_pool", "attn_pooler_heads", "attn_pooler_queries"}
_TEXT = {"embed_cls", "pad_id"}
_DECODER_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "ls_init_value"}
# What OpenCLIP's decoder reads of its section no more than its default, or not at all.
_UNREAD = {"mlp_ratio": 4, "dim_head": 64, "n_queries": None, "attn_pooler_heads": None}


# By the width of the text tower, coca_ViT-B-32 and coca_ViT-L-14: fields of the image tower, and heads.
_PUBLISHED = {
    512: ({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32}, 8),
    768: ({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}, 12),
}


def published_config(shapes: Shapes) -> HFCLIPCoCaConfig:
    """The config of a published CoCa, from the shapes of its tensors by this package's names.

    Raises:
        ConversionError: for another width than those of the two. All other shapes are compared when they are read.
    """
    width = int(shapes["lm_head.weight"][1])
    if width not in _PUBLISHED:
        raise ConversionError(
            f"it is a CoCa of width {width}, and those of known shapes are coca_ViT-B-32 (512) and coca_ViT-L-14 "
            "(768): pass the folder that has its open_clip_config.json, or `config` (an HFCLIPCoCaConfig)."
        )
    vision, heads = _PUBLISHED[width]
    text = {"tower": "class_token", "pooling": "class", "hidden_size": width, "intermediate_size": 4 * width}
    text |= {"num_attention_heads": heads, "max_position_embeddings": 76, "pad_token_id": 0, "hidden_act": "gelu"}
    vision = vision | {"num_attention_heads": vision["hidden_size"] // 64, "hidden_act": "gelu", "pooling": "queries"}
    return HFCLIPCoCaConfig(
        projection_dim=width,
        text_config=text,
        vision_config=vision,
        num_decoder_heads=heads,
        decoder_intermediate_size=4 * width,
    )


def is_coca(names: Iterable[str]) -> bool:
    """Whether these are names of OpenCLIP's CoCa."""
    return "text_decoder.text_projection" in set(names)


def split_model_cfg(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """The `model_cfg` of a CoCa without what makes it one: that of a CLIP.

    Raises:
        ConversionError: for those that this package has no counterpart for. No weights of these were published.
    """
    text, vision = dict(model_cfg["text_cfg"]), dict(model_cfg["vision_cfg"])
    no_weights = "of which no weights were published: coca_ViT-B-32 and coca_ViT-L-14 are read."
    if text.get("hf_model_name"):
        raise ConversionError(
            f"it is a CoCa with a text tower of transformers (OpenCLIP's coca_roberta-ViT-B-32), {no_weights}"
        )
    if vision.get("attentional_pool") is not True or vision.get("timm_model_name"):
        raise ConversionError(f"it is a CoCa without attentional_pool (OpenCLIP's coca_base), {no_weights}")
    if not text.get("embed_cls") or text.get("correct_cls_mask") or text.get("no_causal_mask"):
        raise ConversionError(
            "it is a CoCa without embed_cls, or with correct_cls_mask or no_causal_mask, and those published have "
            "none of that."
        )
    decoder = model_cfg["multimodal_cfg"]
    wrong = {key: value for key, value in decoder.items() if key not in _DECODER_KEYS and key not in _UNREAD}
    wrong |= {key: decoder[key] for key in ("mlp_ratio",) if decoder.get(key, 4) != 4}
    if wrong:
        named = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
        raise ConversionError(f"OpenCLIP's multimodal_cfg has {named}, which its own decoder does not take.")
    widths = {model_cfg["embed_dim"], text.get("width", 512), decoder.get("width", 512)}
    if len(widths) > 1:
        raise ConversionError(
            f"it is a CoCa of the widths {sorted(widths)} (embed_dim, text_cfg, multimodal_cfg), which must be one: "
            "its decoder reads the tokens of both towers as they are."
        )
    text = {key: value for key, value in text.items() if key not in _TEXT}
    vision = {key: value for key, value in vision.items() if key not in _VISION}
    plain = {key: value for key, value in model_cfg.items() if key != "multimodal_cfg"}
    return plain | {"text_cfg": text, "vision_cfg": vision}


def coca_config(plain: HFCLIPConfig, model_cfg: dict[str, Any]) -> HFCLIPCoCaConfig:
    """The config of a CoCa, from that of its towers without what makes it one."""
    text_cfg, vision_cfg, decoder = (model_cfg[f"{name}_cfg"] for name in ("text", "vision", "multimodal"))
    text, vision = plain.text_config.to_dict(), plain.vision_config.to_dict()
    text |= {"tower": "class_token", "pooling": "class", "pad_token_id": text_cfg.get("pad_id", 0)}
    vision |= {
        "pooling": "queries",
        "num_queries": vision_cfg.get("attn_pooler_queries", 256),
        "pooling_heads": vision_cfg.get("attn_pooler_heads", 8),
    }
    if not {decoder.get("ls_init_value"), text["layer_scale_init_value"]} == {text["layer_scale_init_value"]}:
        raise ConversionError("it is a CoCa with ls_init_value in one of text_cfg and multimodal_cfg alone.")
    return HFCLIPCoCaConfig(
        projection_dim=plain.projection_dim,
        text_config=text,
        vision_config=vision,
        num_decoder_layers=decoder.get("layers", 12),
        num_decoder_heads=decoder.get("heads", 8),
        decoder_intermediate_size=4 * text["hidden_size"],
    )


def as_plain(config: HFCLIPCoCaConfig) -> HFCLIPConfig:
    """The config of a CLIP with a CoCa's towers, without what makes them a CoCa's: `coca_config` read backwards."""
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    text |= {"tower": "clip", "pooling": "eos", "eos_token_id": text["vocab_size"] - 1}
    vision |= {"pooling": "class"}
    return HFCLIPConfig(projection_dim=config.projection_dim, text_config=text, vision_config=vision)


def missing_for_coca(config: HFCLIPCoCaConfig) -> list[str]:
    """What OpenCLIP's CoCa cannot express, its towers' other fields apart."""
    text, vision = config.text_config, config.vision_config
    missing = []
    if vision.tower != "vit" or vision.pooling != "queries":
        missing.append(
            f"vision_config of tower={vision.tower!r} and pooling={vision.pooling!r} (it has 'queries' alone)"
        )
    if len({config.projection_dim, text.hidden_size, config.image_token_size}) > 1:
        missing.append(
            f"projection_dim={config.projection_dim} with text_config.hidden_size={text.hidden_size} (one width)"
        )
    if vision.tower == "vit" and vision.hidden_size == vision.pooled_size:
        missing.append("an image tower as wide as the embedding (its queries' weights lie otherwise then)")
    if config.decoder_intermediate_size != 4 * text.hidden_size:
        missing.append(
            f"decoder_intermediate_size={config.decoder_intermediate_size} (it has 4 * {text.hidden_size} alone)"
        )
    return missing


def coca_model_cfg(config: HFCLIPCoCaConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """OpenCLIP's `model_cfg` of a CoCa, from that of its plain towers."""
    text, vision = config.text_config, config.vision_config
    pooling = {"attn_pooler_queries": vision.num_queries} if vision.num_queries != 256 else {}
    pad = {"pad_id": text.pad_token_id} if text.pad_token_id else {}
    decoder: dict[str, Any] = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": config.num_decoder_heads,
        "layers": config.num_decoder_layers,
        "attn_pooler_heads": vision.pooling_heads,
    }
    if text.layer_scale_init_value is not None:
        decoder["ls_init_value"] = text.layer_scale_init_value
    vision_cfg = plain["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": vision.pooling_heads}
    return plain | {
        "vision_cfg": vision_cfg | pooling | {"output_tokens": True},
        "text_cfg": plain["text_cfg"] | pad | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": decoder,
        "custom_text": True,
    }
