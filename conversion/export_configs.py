"""What each format can express, and this package's configs in its words.

A table of a format names fields of a config and the values that the format can express. Fields that are not in the
table it takes with any value, or they change nothing after training. Whatever else a model has, the format
lacks, and an error names it.
"""

import math
from collections.abc import Mapping
from typing import Any

from PIL.Image import Resampling
from transformers import (
    ChineseCLIPConfig,
    CLIPConfig,
    MetaClip2Config,
    PretrainedConfig,
    Siglip2Config,
    SiglipConfig,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor

from .chinese_clip import chinese_clip_config, is_chinese_clip
from .coca import as_plain, coca_model_cfg, missing_for_coca
from .open_clip import config_from_model_cfg
from .timm_towers import missing_timm, timm_vision_cfg

Allowed = Mapping[str, tuple]

_PLAIN_TEXT = {
    "tower": ("clip",),
    "pooling": ("eos",),
    "is_causal": (True,),
    "layer_scale_init_value": (None,),
    "projection_size": (None,),
    "projection_type": ("linear",),
    "projection_bias": (False,),
}
_PLAIN_VIT = {
    "tower": ("vit",),
    "pooling": ("class",),
    "has_class_token": (True,),
    "has_pre_norm": (True,),
    "patch_bias": (False,),
    "layer_scale_init_value": (None,),
    "projection_type": ("linear",),
    "projection_bias": (False,),
}
_SIGLIP_TEXT = {
    "tower": ("clip",),
    "pooling": ("last",),
    "is_causal": (False,),
    "layer_scale_init_value": (None,),
    "projection_type": ("none",),
}
_SIGLIP_VIT = {
    "tower": ("vit",),
    "pooling": ("attention",),
    "has_class_token": (False,),
    "has_pre_norm": (False,),
    "patch_bias": (True,),
    "norm_before_pooling": (True,),
    "layer_scale_init_value": (None,),
    "projection_type": ("none",),
}
# Of the text and the image tower, by the model type of transformers' class.
_TRANSFORMERS: dict[str, tuple[Allowed, Allowed]] = {
    "clip": (_PLAIN_TEXT, _PLAIN_VIT),
    "siglip": (_SIGLIP_TEXT, _SIGLIP_VIT),
    "siglip2": (_SIGLIP_TEXT, {"tower": ("naflex",), "projection_type": ("none",)}),
    # Whatever ends its texts, it pools there.
    "metaclip_2": (_PLAIN_TEXT | {"pooling": ("first_eos",)}, _PLAIN_VIT),
    "chinese_clip": ({"projection_type": ("linear",), "projection_bias": (False,)}, _PLAIN_VIT),
}
_OPENAI_NUMBERS = {"hidden_act": ("quick_gelu",), "layer_norm_eps": (1e-5,)}
_OPEN_CLIP_TEXT = {
    "tower": ("clip",),
    "pooling": ("eos", "first_eos", "first", "last"),
    "projection_type": ("linear", "none"),
    "hidden_act": ("quick_gelu", "gelu", "gelu_pytorch_tanh"),
}
_OPEN_CLIP_VIT = {
    "tower": ("vit",),
    "pooling": ("class", "average"),
    "has_class_token": (True,),
    "patch_bias": (False,),
    "projection_type": ("linear",),
    "projection_bias": (False,),
    "hidden_act": ("quick_gelu", "gelu", "gelu_pytorch_tanh"),
}
_RESNET = {
    "tower": ("resnet",),
    "projection_type": ("linear",),
    "projection_bias": (True,),
    "layer_norm_eps": (1e-5,),
}


def is_siglip(config: HFCLIPConfig) -> bool:
    """Whether a model is trained with the sigmoid loss, and so has a logit bias."""
    return config.model_type == "hf_clip_siglip"


def _missing_fields(config: PretrainedConfig, allowed: Allowed, tower: str) -> list[str]:
    """A phrase for each field of a tower that the format cannot express. Another kind of tower is one phrase."""
    wrong = [field for field, values in allowed.items() if getattr(config, field) not in values]
    if "tower" in wrong:
        wrong = ["tower"]
    return [
        f"{tower}.{field}={getattr(config, field)!r} (it has {' and '.join(map(repr, allowed[field]))} alone)"
        for field in wrong
    ]


def transformers_type(config: HFCLIPConfig) -> str:
    """The model type of transformers' class that a model is written as, which may not be able to express all of it."""
    if is_siglip(config):
        return "siglip2" if config.vision_config.tower == "naflex" else "siglip"
    if is_chinese_clip(config):
        return "chinese_clip"
    return "metaclip_2" if config.text_config.pooling == "first_eos" else "clip"


def missing_in_transformers(config: HFCLIPConfig) -> list[str]:
    """What transformers' class for the model, by its `transformers_type`, cannot express."""
    text, vision = _TRANSFORMERS[transformers_type(config)]
    return _missing_fields(config.text_config, text, "text_config") + _missing_fields(
        config.vision_config, vision, "vision_config"
    )


def missing_in_openai(config: HFCLIPConfig) -> list[str]:
    """What a state dict of OpenAI's cannot express: all that its `build_model` does not find from the shapes."""
    text, vision = config.text_config, config.vision_config
    missing = ["the sigmoid loss and its logit_bias"] if is_siglip(config) else []
    text_missing = _missing_fields(text, _PLAIN_TEXT | _OPENAI_NUMBERS, "text_config")
    missing += text_missing
    if not text_missing:
        missing += _missing_shapes(text, "text_config")
        if not pools_at_highest_id(text):
            missing.append(f"text_config.eos_token_id={text.eos_token_id} (it pools at the highest id)")
    if vision.tower == "resnet":
        missing += _missing_fields(vision, _RESNET, "vision_config")
        if vision.num_attention_heads * 64 != vision.hidden_size:
            missing.append(
                f"vision_config.num_attention_heads={vision.num_attention_heads} (it has hidden_size / 64 alone, "
                f"{vision.hidden_size / 64:g})"
            )
    else:
        vision_missing = _missing_fields(vision, _PLAIN_VIT | _OPENAI_NUMBERS, "vision_config")
        missing += vision_missing or _missing_shapes(vision, "vision_config")
    return missing


def _missing_shapes(config: HFCLIPTextConfig | HFCLIPVisionConfig, tower: str) -> list[str]:
    missing = []
    if config.num_attention_heads * 64 != config.hidden_size:
        missing.append(
            f"{tower}.num_attention_heads={config.num_attention_heads} (it has heads of width 64 alone, of which "
            f"hidden_size={config.hidden_size} has {config.hidden_size / 64:g})"
        )
    if config.intermediate_size != 4 * config.hidden_size:
        missing.append(f"{tower}.intermediate_size={config.intermediate_size} (it has 4 * hidden_size alone)")
    return missing


def pools_at_highest_id(text: HFCLIPTextConfig) -> bool:
    """Whether a text is pooled where its highest id stands: OpenAI's way, by argmax."""
    return text.pooling == "eos" and text.eos_token_id in (POOL_AT_HIGHEST_ID, text.vocab_size - 1)


def transformers_config(config: HFCLIPConfig) -> CLIPConfig | MetaClip2Config | SiglipConfig | ChineseCLIPConfig:
    """The config of transformers' own model for the same weights. `missing_in_transformers` must be empty."""
    kind = transformers_type(config)
    if kind == "chinese_clip":
        return chinese_clip_config(config)
    classes = {"siglip": SiglipConfig, "siglip2": Siglip2Config, "metaclip_2": MetaClip2Config}
    config_class = classes.get(kind, CLIPConfig)
    towers = {}
    for name in ("text_config", "vision_config"):
        ours, theirs = getattr(config, name).to_dict(), getattr(config_class(), name).to_dict()
        towers[name] = {key: ours[key] for key in theirs if key in ours and key not in ("model_type", "architectures")}
    if kind in ("siglip", "siglip2"):
        return config_class(**towers)
    scale = config.logit_scale_init_value
    return config_class(**towers, projection_dim=config.projection_dim, logit_scale_init_value=scale)


def missing_in_open_clip(config: HFCLIPConfig) -> list[str]:
    """What neither OpenCLIP's own towers nor, for SigLIP, timm's towers of known names can express."""
    if isinstance(config, HFCLIPCoCaConfig):
        return missing_for_coca(config) or missing_in_open_clip(as_plain(config))
    text, vision = config.text_config, config.vision_config
    missing = _missing_fields(text, _OPEN_CLIP_TEXT, "text_config")
    if vision.tower == "resnet":
        missing += _missing_fields(vision, _RESNET, "vision_config")
        return missing
    if vision.tower == "timm":
        return missing + missing_timm(vision)
    if vision.pooling == "attention":
        siglip_missing = _missing_fields(vision, _SIGLIP_VIT, "vision_config")
        if not siglip_missing and timm_siglip_name(vision) is None:
            siglip_missing = [
                "an attention-pooling image tower that timm has no SigLIP name for (hidden_size="
                f"{vision.hidden_size}, hidden_act={vision.hidden_act!r}, patch_size={vision.patch_size})"
            ]
        return missing + siglip_missing
    missing += _missing_fields(vision, _OPEN_CLIP_VIT, "vision_config")
    if not missing and len({text.hidden_act == "quick_gelu", vision.hidden_act == "quick_gelu"}) == 2:
        missing.append(
            f"text_config.hidden_act={text.hidden_act!r} with vision_config.hidden_act={vision.hidden_act!r} "
            "(it has quick_gelu in both towers or in none)"
        )
    return missing


# The image towers of SigLIP that timm has names for: size, patch, and pixels.
_TIMM_SIGLIP = {
    ("base", 16): (224, 256, 384, 512),
    ("base", 32): (256,),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
_TIMM_SIGLIP_FIELDS = ("intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")


def timm_siglip_name(vision: HFCLIPVisionConfig) -> str | None:
    """timm's name for an image tower of SigLIP's, None where it has none for the shape."""
    for (size, patch), pixels in _TIMM_SIGLIP.items():
        if vision.patch_size != patch or vision.image_size not in pixels:
            continue
        name = f"vit_{size}_patch{patch}_siglip_{vision.image_size}"
        vision_cfg = {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
        model_cfg = {"embed_dim": vision.hidden_size, "vision_cfg": vision_cfg, "text_cfg": {}}
        try:
            named = config_from_model_cfg(model_cfg).vision_config
        # Sizes of another width than `embed_dim`.
        except ValueError:
            continue
        if all(getattr(named, field) == getattr(vision, field) for field in _TIMM_SIGLIP_FIELDS):
            return name
    return None


def open_clip_model_cfg(config: HFCLIPConfig) -> dict:
    """The `model_cfg` of OpenCLIP's `open_clip_config.json`. `missing_in_open_clip` must be empty.

    The tokenizer's keys are left to the caller.
    """
    if isinstance(config, HFCLIPCoCaConfig):
        return coca_model_cfg(config, open_clip_model_cfg(as_plain(config)))
    text, vision = config.text_config, config.vision_config
    model_cfg: dict[str, Any] = {"embed_dim": config.projection_dim}
    # One switch for both towers; a ResNet has ReLUs, whatever its config says.
    if text.hidden_act == "quick_gelu" or (vision.tower == "vit" and vision.hidden_act == "quick_gelu"):
        model_cfg["quick_gelu"] = True
    if is_siglip(config):
        model_cfg["init_logit_bias"] = -10
    if is_siglip(config) or vision.tower == "timm":
        model_cfg["custom_text"] = True
    model_cfg["vision_cfg"] = _open_clip_vision_cfg(vision)
    model_cfg["text_cfg"] = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        **_open_clip_knobs(text),
    }
    text_cfg = model_cfg["text_cfg"]
    if not text.is_causal:
        text_cfg["no_causal_mask"] = True
    if text.pooling in ("first", "last"):
        text_cfg["pool_type"] = text.pooling
    elif not pools_at_highest_id(text):
        text_cfg |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    if text.projection_bias or text.projection_size is not None:
        text_cfg["proj_bias"] = True
    elif text.projection_type == "none":
        text_cfg["proj_type"] = "none"
    return model_cfg


def _open_clip_vision_cfg(vision: HFCLIPVisionConfig) -> dict:
    if vision.tower == "resnet":
        assert vision.stage_depths is not None, "the config of a ResNet was validated to have them"
        return {
            "image_size": vision.image_size,
            "layers": list(vision.stage_depths),
            "width": vision.stem_width,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": None,
        }
    if vision.tower == "timm":
        return timm_vision_cfg(vision)
    if vision.pooling == "attention":
        return {
            "image_size": vision.image_size,
            "timm_model_name": timm_siglip_name(vision),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        }
    vision_cfg = {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        **_open_clip_knobs(vision),
    }
    if not vision.has_pre_norm:
        vision_cfg["no_ln_pre"] = True
    if vision.pooling == "average":
        vision_cfg["pool_type"] = "avg"
        if not vision.norm_before_pooling:
            vision_cfg["final_ln_after_pool"] = True
    if vision.patch_dropout:
        vision_cfg["patch_dropout"] = vision.patch_dropout
    return vision_cfg


def _open_clip_knobs(config: HFCLIPTextConfig | HFCLIPVisionConfig) -> dict:
    """What both kinds of tower have, where it is not OpenCLIP's default."""
    knobs = {}
    if config.intermediate_size != 4 * config.hidden_size:
        ratio = config.intermediate_size / config.hidden_size
        # OpenCLIP rounds width * ratio down.
        is_exact = int(config.hidden_size * ratio) == config.intermediate_size
        knobs["mlp_ratio"] = ratio if is_exact else math.nextafter(ratio, math.inf)
    if config.layer_scale_init_value is not None:
        knobs["ls_init_value"] = config.layer_scale_init_value
    if config.hidden_act == "gelu_pytorch_tanh":
        knobs["act_kwargs"] = {"approximate": "tanh"}
    if config.layer_norm_eps != 1e-5:
        knobs["norm_kwargs"] = {"eps": config.layer_norm_eps}
    return knobs


def transformers_image_settings(image_processor: HFCLIPImageProcessor) -> tuple[dict, list[str]]:
    """The arguments of transformers' image processors, and what these lack."""
    if image_processor.max_num_patches is not None:
        names = ("max_num_patches", "patch_size", "resample", "image_mean", "image_std", "rescale_factor")
        switches = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
        return {name: getattr(image_processor, name) for name in (*names, *switches)}, []
    size = image_processor.size if image_processor.do_resize else {}
    if size.get("longest_edge"):
        return {}, [f"an image transform that fits the longer edge (size={dict(size)})"]
    names = ("resample", "image_mean", "image_std", "rescale_factor")
    switches = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    settings = {name: getattr(image_processor, name) for name in (*names, *switches)}
    return settings | {name: dict(getattr(image_processor, name)) for name in ("size", "crop_size")}, []


def open_clip_preprocess_cfg(image_processor: HFCLIPImageProcessor, config: HFCLIPConfig) -> tuple[dict, list[str]]:
    """OpenCLIP's `preprocess_cfg` of an image processor, and what cannot be said in one.

    There an image is brought to the model's square in one of three ways, and nothing is cropped but by the first.
    """
    if image_processor.max_num_patches is not None:
        return {}, ["an image transform that keeps the aspect (max_num_patches)"]
    edge = config.vision_config.image_size
    size = {key: value for key, value in dict(image_processor.size).items() if value}
    resize_mode = {
        (("shortest_edge", edge),): "shortest",
        (("longest_edge", edge),): "longest",
        (("height", edge), ("width", edge)): "squash",
    }.get(tuple(sorted(size.items())))
    missing = []
    crop = dict(image_processor.crop_size) if image_processor.do_center_crop else None
    if not image_processor.do_resize or resize_mode is None:
        missing.append(f"an image transform of size={size} for a model of {edge} pixels")
    elif crop != {"height": edge, "width": edge} and not (crop is None and resize_mode == "squash"):
        missing.append(f"an image transform of crop_size={crop} for a model of {edge} pixels")
    interpolation = {Resampling.BICUBIC: "bicubic", Resampling.BILINEAR: "bilinear"}.get(image_processor.resample)
    if interpolation is None:
        missing.append(f"the interpolation resample={image_processor.resample} (it has bicubic and bilinear alone)")
    rescaling = image_processor.rescale_factor if image_processor.do_rescale else 1
    if not (image_processor.do_normalize and math.isclose(rescaling, 1 / 255)):
        missing.append("pixel values other than normalized ones of 1 / 255")
    preprocess_cfg = {
        "size": edge,
        "mode": "RGB",
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
        "interpolation": interpolation,
        "resize_mode": resize_mode,
        "fill_color": image_processor.fill_color,
    }
    return preprocess_cfg, missing


def missing_in_openai_transform(preprocess_cfg: dict) -> list[str]:
    """What OpenAI's one transform, given in OpenCLIP's words, does otherwise."""
    one = {
        "mean": list(OPENAI_CLIP_MEAN),
        "std": list(OPENAI_CLIP_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return [
        f"an image transform of {key}={preprocess_cfg[key]} (it has {value} alone)"
        for key, value in one.items()
        if preprocess_cfg[key] != value
    ]
