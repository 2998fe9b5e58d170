"""OpenCLIP: its names, in all the forms that its models take, and its `model_cfg`.

Facts are from `open_clip_torch` 3.3 (model.py, transformer.py, timm_model.py, hf_model.py, factory.py) and, for the
image towers of SigLIP, from timm 1.0 (models/vision_transformer.py, layers/attention_pool.py).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import (
    POOL_AT_HIGHEST_ID,
    HFCLIPConfig,
    HFCLIPSiglipConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)

from .coca import COCA_RULES, coca_config, is_coca, split_model_cfg
from .errors import ConversionError
from .openai import ARCHIVE_NUMBERS, LOGIT_SCALE, RESNET, VISION_TRANSFORMER, text_tower, with_weight_and_bias
from .rules import Rule
from .timm_towers import TIMM_RULES, timm_tower

OPENAI_VOCABULARY_SIZE = 49408


@dataclass(frozen=True)
class Layout:
    """Which modules an OpenCLIP state dict is made of.

    Attributes:
        image: "vit", "resnet", "siglip" (timm's trunk with attention pooling) or "timm" (any other trunk).
        text: "clip", "coca" (with its decoder and the pooling of images), or "transformers" for a text model of that
            library.
        is_text_apart: the text tower is a module of its own, `text` (OpenCLIP's CustomTextCLIP).
        text_projection: "matrix" (a bare parameter), "linear" (a layer, with or without bias), "head" (a layer that
            belongs to the tower, as in transformers' SigLIP) or "mlp".
    """

    image: str
    text: str
    is_text_apart: bool
    text_projection: str


_COCA = Layout("vit", "coca", True, "matrix")


def layout_of_names(names: Iterable[str]) -> Layout | None:
    """The layout of a state dict of OpenAI or OpenCLIP; None for names of another format."""
    names = set(names)
    if is_coca(names):
        return _COCA
    if any(name.startswith("visual.trunk.") for name in names):
        # Other trunks with such a pooling have a class token, a norm before their layers or a classifier.
        is_siglip = "visual.trunk.attn_pool.latent" in names and names.isdisjoint(_NOT_IN_SIGLIP)
        image = "siglip" if is_siglip else "timm"
    elif "visual.conv1.weight" in names:
        image = "resnet" if "visual.layer1.0.conv1.weight" in names else "vit"
    else:
        return None
    is_apart = any(name.startswith("text.") for name in names)
    prefix = "text." if is_apart else ""
    if is_apart and f"{prefix}positional_embedding" not in names:
        return Layout(image, "transformers", True, "mlp" if "text.proj.0.weight" in names else "linear")
    projection = "linear" if f"{prefix}text_projection.weight" in names else "matrix"
    if projection == "linear" and image == "siglip":
        projection = "head"
    return Layout(image, "clip", is_apart, projection)


def layout_of_file(names: Iterable[str], config: HFCLIPConfig) -> Layout | None:
    """`layout_of_names` of a model of this config, which alone knows what stands behind a trunk of timm."""
    found, known = layout_of_names(names), layout_of_config(config)
    if found is None or config.vision_config.tower != "timm":
        return found
    return replace(known, is_text_apart=found.is_text_apart)


def layout_of_config(config: HFCLIPConfig) -> Layout:
    """The layout that OpenCLIP's own model of this shape has."""
    text, vision = config.text_config, config.vision_config
    if isinstance(config, HFCLIPCoCaConfig):
        return _COCA
    image = "siglip" if vision.tower == "vit" and vision.pooling == "attention" else vision.tower
    if text.tower == "transformers":
        return Layout(image, "transformers", True, text.projection_type)
    projection = "linear" if text.projection_bias else "matrix"
    if text.projection_size is not None:
        projection = "head"
    is_apart = config.model_type == HFCLIPSiglipConfig.model_type or vision.tower == "timm"
    return Layout(image, "clip", is_apart, projection)


def open_clip_rules(config: HFCLIPConfig) -> list[Rule]:
    """The table between OpenCLIP's names and those of a model of this config."""
    return rules_of_layout(layout_of_config(config))


def rules_of_layout(layout: Layout) -> list[Rule]:
    """The table of a layout."""
    if layout == _COCA:
        return COCA_RULES
    prefix = "text." if layout.is_text_apart else ""
    if layout.text == "transformers":
        text = _FOREIGN_TEXT + _FOREIGN_PROJECTIONS[layout.text_projection]
    else:
        text = text_tower(prefix) + _layer_scales(f"{prefix}transformer", "text_model")
        text += {
            "matrix": [Rule(f"{prefix}text_projection", "text_projection.weight", transpose=True)],
            "linear": with_weight_and_bias(f"{prefix}text_projection", "text_projection"),
            "head": with_weight_and_bias(f"{prefix}text_projection", "text_model.head"),
        }[layout.text_projection]
    numbers = [*LOGIT_SCALE, Rule("logit_bias", "logit_bias", is_scalar=True), *ARCHIVE_NUMBERS]
    return [*text, *_IMAGE_TOWERS.get(layout.image, _OWN_NAMES), *numbers]


def _layer_scales(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.resblocks.*.ls_{n}.gamma", f"{ours}.encoder.layers.*.layer_scale{n}.weight") for n in (1, 2)
    ]


def _siglip_trunk(theirs: str = "visual.trunk", ours: str = "vision_model") -> list[Rule]:
    """timm's vision transformer with attention pooling, whose names OpenCLIP's SigLIP models have."""
    block, layer = f"{theirs}.blocks.*", f"{ours}.encoder.layers.*"
    pool, head = f"{theirs}.attn_pool", f"{ours}.head"
    rules = [
        *with_weight_and_bias(f"{theirs}.patch_embed.proj", f"{ours}.embeddings.patch_embedding"),
        Rule(f"{theirs}.pos_embed", f"{ours}.embeddings.position_embedding.weight", has_leading_axis=True),
        *with_weight_and_bias(f"{block}.norm1", f"{layer}.layer_norm1"),
        *with_weight_and_bias(f"{block}.attn.proj", f"{layer}.self_attn.out_proj"),
        *with_weight_and_bias(f"{block}.norm2", f"{layer}.layer_norm2"),
        *with_weight_and_bias(f"{block}.mlp.fc1", f"{layer}.mlp.fc1"),
        *with_weight_and_bias(f"{block}.mlp.fc2", f"{layer}.mlp.fc2"),
        *with_weight_and_bias(f"{theirs}.norm", f"{ours}.post_layernorm"),
        Rule(f"{pool}.latent", f"{head}.probe"),
        *with_weight_and_bias(f"{pool}.proj", f"{head}.attention.out_proj"),
        *with_weight_and_bias(f"{pool}.norm", f"{head}.layernorm"),
        *with_weight_and_bias(f"{pool}.mlp.fc1", f"{head}.mlp.fc1"),
        *with_weight_and_bias(f"{pool}.mlp.fc2", f"{head}.mlp.fc2"),
    ]
    for kind in ("weight", "bias"):
        parts = tuple(f"{layer}.self_attn.{name}_proj.{kind}" for name in "qkv")
        rules.append(Rule(f"{block}.attn.qkv.{kind}", parts))
        # torch's attention module holds the three in one, timm's the query apart.
        rules.append(Rule((f"{pool}.q.{kind}", f"{pool}.kv.{kind}"), f"{head}.attention.in_proj_{kind}", parts=(1, 2)))
    return rules


_IMAGE_TOWERS = {
    "vit": VISION_TRANSFORMER + _layer_scales("visual.transformer", "vision_model"),
    "resnet": RESNET,
    "siglip": _siglip_trunk(),
    "timm": TIMM_RULES,
}
# Of image towers that OpenCLIP has not (convnets of this package, NaFlex): nothing of it could load them.
_OWN_NAMES = [Rule("vision_model.**", "vision_model.**"), Rule("visual_projection.**", "visual_projection.**")]
_NOT_IN_SIGLIP = {"visual.trunk.cls_token", "visual.trunk.norm_pre.weight", "visual.trunk.head.weight"}
_FOREIGN_TEXT = [
    Rule("text.transformer.**", "text_model.backbone.**"),
    Rule("text.transformer.embeddings.position_ids", why="0, 1, 2, ..., which the model makes itself"),
]
_FOREIGN_PROJECTIONS = {
    "linear": [Rule("text.proj.weight", "text_projection.weight")],
    "mlp": [
        Rule("text.proj.0.weight", "text_projection.fc1.weight"),
        Rule("text.proj.2.weight", "text_projection.fc2.weight"),
    ],
    "none": [],
}

# Width, layers, heads and the ratio of the MLP of the sizes in timm's names.
_SIGLIP_SIZES = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
_SIGLIP_NAME = re.compile(r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<image>\d+)")
_SIGLIP_WITH_GELU_TANH = re.compile(
    r"vit_(base_patch32_siglip_256|large_patch16_siglip_512|(so400m_patch16|giantopt_patch16)_siglip_\d+)"
)

_MODEL_KEYS = {
    "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias", "init_logit_scale",
    "nonscalar_logit_scale", "output_dict",
}  # fmt: skip
_VISION_KEYS = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout",
    "no_ln_pre", "pos_embed_type", "final_ln_after_pool", "pool_type", "output_tokens", "act_kwargs", "norm_kwargs",
    "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
    "timm_drop_path",
}  # fmt: skip
_TEXT_KEYS = {
    "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "width", "heads",
    "layers", "mlp_ratio", "ls_init_value", "pad_id", "eos_id", "no_causal_mask", "final_ln_after_pool", "pool_type",
    "proj_bias", "proj_type", "output_tokens", "act_kwargs", "norm_kwargs", "hf_model_name", "hf_model_pretrained",
    "hf_proj_type", "hf_pooler_type", "proj", "pooler_type",
}  # fmt: skip
# What OpenCLIP called keys before they got their prefix, as files of that time do (BiomedCLIP's), and today's names.
_OLDER_TEXT_KEYS = {"proj": "hf_proj_type", "pooler_type": "hf_pooler_type"}


def config_from_model_cfg(
    model_cfg: dict[str, Any], find_tower_config: Callable[[str], PreTrainedConfig] | None = None
) -> HFCLIPConfig:
    """The config of the model that OpenCLIP builds from this `model_cfg`.

    Args:
        find_tower_config: gives the config of the transformers model of a name (`hf_model_name`).

    Raises:
        ConversionError: for a key, or a value of one, that asks for what this package's models lack.
    """
    if model_cfg.get("multimodal_cfg"):
        return coca_config(config_from_model_cfg(split_model_cfg(model_cfg)), model_cfg)
    _refuse_unknown("model_cfg", model_cfg, _MODEL_KEYS)
    is_sigmoid = model_cfg.get("init_logit_bias") is not None
    try:
        fields = {
            "projection_dim": model_cfg["embed_dim"],
            "text_config": _text_config(model_cfg, find_tower_config),
            "vision_config": _vision_config(model_cfg),
        }
        return (HFCLIPSiglipConfig if is_sigmoid else HFCLIPConfig)(**fields)
    except KeyError as error:
        raise ConversionError(
            f"OpenCLIP's model_cfg lacks the key {error}: fetch open_clip_config.json again."
        ) from error


def _refuse_unknown(section: str, given: dict[str, Any], known: set[str]) -> None:
    # A key that is off, as it is where configs are written out whole, asks for nothing.
    wrong = [key for key, value in given.items() if key not in known and value not in (None, False, 0, "", "default")]
    if section == "vision_cfg" and not given.get("attentional_pool"):
        wrong = [key for key in wrong if not key.startswith("attn_pooler_")]
    if wrong:
        named = ", ".join(f"{key}={given[key]!r}" for key in wrong)
        raise ConversionError(
            f"OpenCLIP's {section} has {named}, which the models of this package have no counterpart for."
        )


def _activation(model_cfg: dict[str, Any], tower: dict[str, Any]) -> str:
    arguments = tower.get("act_kwargs") or {}
    if not arguments:
        return "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    if arguments != {"approximate": "tanh"} or model_cfg.get("quick_gelu"):
        raise ConversionError(
            f"act_kwargs={arguments} with quick_gelu={model_cfg.get('quick_gelu')}: only approximate='tanh' "
            "without quick_gelu can be read."
        )
    return "gelu_pytorch_tanh"


def _epsilon(tower: dict[str, Any]) -> float:
    arguments = dict(tower.get("norm_kwargs") or {})
    epsilon = arguments.pop("eps", 1e-5)
    if arguments:
        raise ConversionError(f"norm_kwargs has {', '.join(arguments)}: layer norms here have eps alone.")
    return epsilon


def _side(name: str, value: Any) -> int:
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise ConversionError(f"{name}={value}: images and patches are squares here.")
    return value


def _choice(section: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ConversionError(f"{section}={value!r} has no counterpart here: {', '.join(choices)} have.")
    return choices[value]


def _vision_config(model_cfg: dict[str, Any]) -> HFCLIPVisionConfig:
    cfg = model_cfg["vision_cfg"]
    _refuse_unknown("vision_cfg", cfg, _VISION_KEYS)
    if cfg.get("timm_model_name"):
        return _timm_config(model_cfg)
    width, size = cfg.get("width", 768), _side("image_size", cfg.get("image_size", 224))
    layers, head_width = cfg.get("layers", 12), cfg.get("head_width", 64)
    if isinstance(layers, list | tuple):
        return HFCLIPVisionConfig(
            tower="resnet",
            stem_width=width,
            stage_depths=list(layers),
            hidden_size=32 * width,
            num_attention_heads=32 * width // head_width,
            image_size=size,
            # Its own activation is ReLU; this one keeps to the text tower's.
            hidden_act=_activation(model_cfg, cfg),
            projection_bias=True,
        )
    patch = _side("patch_size", cfg.get("patch_size", 16))
    pooling = _choice("vision_cfg.pool_type", cfg.get("pool_type", "tok"), {"tok": "class", "avg": "average"})
    return HFCLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * cfg.get("mlp_ratio", 4.0)),
        num_hidden_layers=layers,
        num_attention_heads=width // head_width,
        image_size=size,
        patch_size=patch,
        crops_remainder=size % patch > 0,
        hidden_act=_activation(model_cfg, cfg),
        layer_norm_eps=_epsilon(cfg),
        layer_scale_init_value=cfg.get("ls_init_value"),
        patch_dropout=cfg.get("patch_dropout", 0.0),
        has_pre_norm=not cfg.get("no_ln_pre", False),
        pooling=pooling,
        # For the class token the order makes no difference.
        norm_before_pooling=pooling == "average" and not cfg.get("final_ln_after_pool", False),
    )


def _timm_config(model_cfg: dict[str, Any]) -> HFCLIPVisionConfig:
    """For SigLIP's own trunks a vision transformer of this package, which needs no timm; else a trunk of timm."""
    cfg = model_cfg["vision_cfg"]
    name = cfg["timm_model_name"].partition(".")[0]
    is_plain_map = cfg.get("timm_pool", "avg") == "map" and cfg.get("timm_proj", "linear") == "none"
    if not (found := _SIGLIP_NAME.fullmatch(name)) or found["size"] not in _SIGLIP_SIZES or not is_plain_map:
        size = _side("image_size", cfg.get("image_size", 224))
        return timm_tower(cfg, model_cfg["embed_dim"], size, _activation(model_cfg, model_cfg["text_cfg"]))
    width, layers, heads, ratio = _SIGLIP_SIZES[found["size"]]
    size, patch = int(found["image"]), int(found["patch"])
    return HFCLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * ratio),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=size,
        patch_size=patch,
        crops_remainder=size % patch > 0,
        hidden_act="gelu_pytorch_tanh" if _SIGLIP_WITH_GELU_TANH.fullmatch(name) else "gelu",
        layer_norm_eps=1e-6,
        patch_dropout=cfg.get("patch_dropout", 0.0),
        **SIGLIP_IMAGE_TOWER,
    )


# What distinguishes the image towers of SigLIP, and the text towers, from those of CLIP.
SIGLIP_IMAGE_TOWER = {
    "pooling": "attention",
    "has_class_token": False,
    "has_pre_norm": False,
    "patch_bias": True,
    "norm_before_pooling": True,
    "projection_type": "none",
}


def _text_config(model_cfg: dict[str, Any], find_tower_config: Callable | None) -> HFCLIPTextConfig:
    cfg = model_cfg["text_cfg"]
    _refuse_unknown("text_cfg", cfg, _TEXT_KEYS if cfg.get("hf_model_name") else _TEXT_KEYS - set(_OLDER_TEXT_KEYS))
    if cfg.get("hf_model_name"):
        return _foreign_text_config(model_cfg, find_tower_config)
    width, vocabulary = cfg.get("width", 512), cfg.get("vocab_size", OPENAI_VOCABULARY_SIZE)
    pooling = _choice(
        "text_cfg.pool_type",
        cfg.get("pool_type", "argmax"),
        {"argmax": "eos", "eos": "first_eos", "last": "last", "first": "first"},
    )
    fields: dict[str, Any] = {}
    if pooling == "first_eos":
        fields["eos_token_id"] = cfg.get("eos_id", 2)
    elif pooling == "eos" and vocabulary != OPENAI_VOCABULARY_SIZE:
        fields["eos_token_id"] = POOL_AT_HIGHEST_ID
    if cfg.get("proj_type", "linear") == "none":
        fields["projection_type"] = "none"
    elif cfg.get("proj_bias") and model_cfg["vision_cfg"].get("timm_model_name"):
        fields |= {"projection_type": "none", "projection_size": model_cfg["embed_dim"]}
    else:
        fields["projection_bias"] = bool(cfg.get("proj_bias", False))
    return HFCLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * cfg.get("mlp_ratio", 4.0)),
        num_hidden_layers=cfg.get("layers", 12),
        num_attention_heads=cfg.get("heads", 8),
        max_position_embeddings=cfg.get("context_length", 77),
        hidden_act=_activation(model_cfg, cfg),
        layer_norm_eps=_epsilon(cfg),
        layer_scale_init_value=cfg.get("ls_init_value"),
        is_causal=not cfg.get("no_causal_mask", False),
        pooling=pooling,
        **fields,
    )


def _with_keys_of_today(cfg: dict[str, Any]) -> dict[str, Any]:
    """A `text_cfg` whose older keys are renamed. Raises ConversionError where both names of one differ in value."""
    cfg = dict(cfg)
    for older, name in _OLDER_TEXT_KEYS.items():
        if older in cfg and cfg.setdefault(name, cfg[older]) != cfg.pop(older):
            raise ConversionError(
                f"text_cfg has {name}={cfg[name]!r}, and another value under its older name {older}."
            )
    return cfg


def _foreign_text_config(model_cfg: dict[str, Any], find_tower_config: Callable | None) -> HFCLIPTextConfig:
    cfg = _with_keys_of_today(model_cfg["text_cfg"])
    assert find_tower_config is not None, "a text tower of transformers has a config of its own"
    backbone = find_tower_config(cfg["hf_model_name"])
    # Encoders of translation models pool nothing themselves: there OpenCLIP takes the first token.
    own_pooling = "first" if backbone.is_encoder_decoder else "pooler"
    pooling = _choice(
        "text_cfg.hf_pooler_type",
        cfg.get("hf_pooler_type", "mean_pooler"),
        {"mean_pooler": "mean", "cls_pooler": own_pooling, "cls_last_hidden_state_pooler": "first"},
    )
    return HFCLIPTextConfig(
        tower="transformers",
        tower_config=backbone.to_dict(),
        hidden_size=backbone.hidden_size,
        vocab_size=backbone.vocab_size,
        max_position_embeddings=cfg.get("context_length", 77),
        pooling=pooling,
        projection_type=cfg.get("hf_proj_type", "mlp") or "none",
        pad_token_id=backbone.pad_token_id,
        bos_token_id=backbone.bos_token_id,
        # BERTs have none.
        **({} if backbone.eos_token_id is None else {"eos_token_id": backbone.eos_token_id}),
    )
