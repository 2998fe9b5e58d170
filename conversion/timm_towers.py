"""OpenCLIP's image towers that timm makes (`timm_model.py`), in this package's words and back.

There timm's trunk pools and projects as the `timm_*` keys of `vision_cfg` say: by layers behind it (`visual.head`) or,
where `timm_proj` is null or empty, by its own classifier.
"""

from typing import Any

import torch

from hf_clip.model.configuration_hf_clip import HFCLIPVisionConfig
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn, make_map_pool, make_trunk

from .errors import ConversionError
from .openai import with_weight_and_bias
from .rules import Rule

# OpenCLIP's words for the pooling; the empty one leaves the trunk its own.
_POOLINGS = {
    "": "pooler",
    "avg": "average",
    "token": "class",
    "map": "attention",
    "abs_attn": "absolute_attention",
    "rot_attn": "rotary_attention",
}
_MAP_POOLS = ("abs_attn", "rot_attn")
# Its keys that timm is told as it makes the trunk: each does something in training alone.
_TRAINING = {"timm_drop_path": "drop_path_rate", "patch_dropout": "patch_drop_rate"}
# All that it tells timm of a trunk besides.
_CLASSIFIER = ("num_classes", "global_pool")

TIMM_RULES = [
    Rule("visual.trunk.**", "vision_model.trunk.**"),
    Rule("visual.head.pool.**", "vision_model.pool.**"),
    *with_weight_and_bias("visual.head.proj", "visual_projection"),
    *with_weight_and_bias("visual.head.mlp.fc1", "visual_projection.fc1"),
    *with_weight_and_bias("visual.head.mlp.fc2", "visual_projection.fc2"),
]


def timm_tower(cfg: dict[str, Any], embed_dim: int, image_size: int, hidden_act: str) -> HFCLIPVisionConfig:
    """The config of the image tower that OpenCLIP builds from a `vision_cfg` with `timm_model_name`.

    Args:
        cfg: the `vision_cfg`.
        embed_dim: dimensions of the shared space.
        image_size: of the `vision_cfg`, in pixels.
        hidden_act: of the text tower. The trunk has its own, whatever this says.

    Raises:
        ConversionError: for what OpenCLIP cannot build, or has no embedding of.
        ImportError: without timm, which alone knows the trunk's width.
        ValueError: for a name that timm does not know, with the nearest.
    """
    pool, projection = cfg.get("timm_pool", "avg"), cfg.get("timm_proj", "linear")
    trunk_kwargs: dict[str, Any] = {}
    has_layers = projection in ("linear", "mlp")
    if not has_layers and projection not in ("none", "", None):
        raise ConversionError(f"timm_proj={projection!r} is not known: OpenCLIP has 'linear', 'mlp', 'none' and null.")
    if not has_layers and pool not in _MAP_POOLS:
        if pool == "":
            raise ConversionError(
                f"timm_pool='' with timm_proj={projection!r} is a trunk that pools nothing: it has no embedding."
            )
        trunk_kwargs["num_classes"] = 0 if projection == "none" else embed_dim
        trunk_kwargs |= {} if pool is None else {"global_pool": pool}
        pooling = "pooler"
    elif (pool or "") in _POOLINGS:
        pooling = _POOLINGS[pool or ""]
    else:
        raise ConversionError(
            f"timm_pool={pool!r} has no counterpart here: {', '.join(filter(None, _POOLINGS))} have."
        )
    for theirs, ours in _TRAINING.items():
        # A drop of paths of 0 is said to timm, one of patches is not.
        if (value := cfg.get(theirs)) is not None and (value or theirs == "timm_drop_path"):
            trunk_kwargs[ours] = value
    fields = {
        "tower": "timm",
        "backbone": cfg["timm_model_name"],
        "backbone_kwargs": trunk_kwargs,
        "pooling": pooling,
        "projection_dim": embed_dim,
        "projection_type": projection if has_layers else "none",
        "projection_bias": bool(cfg.get("timm_proj_bias", False)) and has_layers,
        "projection_dropout": cfg.get("timm_drop", 0.0) if has_layers else 0.0,
        "hidden_act": hidden_act,
    }
    width, size = _width_and_size(HFCLIPVisionConfig(**fields))
    return HFCLIPVisionConfig(**fields, hidden_size=width, image_size=size or image_size)


def _width_and_size(config: HFCLIPVisionConfig) -> tuple[int, int | None]:
    """Of the embedding that the trunk gives, and of the images where it takes one size alone; without weights."""
    try:
        with torch.device("meta"), NothingDrawn():
            trunk = make_trunk(config)
            make_map_pool(config, trunk)
    except (AssertionError, TypeError) as error:
        raise ConversionError(
            f"timm's {config.backbone} cannot be made with {config.backbone_kwargs} ({error}), as OpenCLIP makes it."
        ) from error
    patches: Any = getattr(trunk, "patch_embed", None)
    # Its images are as large as its name says, whatever the `image_size` beside it.
    sides = patches.img_size if getattr(patches, "strict_img_size", False) else None
    size = sides[0] if sides else None
    return getattr(trunk, "head_hidden_size", trunk.num_features), size


def missing_timm(vision: HFCLIPVisionConfig) -> list[str]:
    """What of a tower of timm OpenCLIP has no key for."""
    options = vision.backbone_kwargs or {}
    known = (*_CLASSIFIER, *_TRAINING.values())
    missing = [
        f"vision_config.backbone_kwargs[{name!r}]={options[name]!r} (it has {' and '.join(known)} alone)"
        for name in options
        if name not in known
    ]
    has_layers = vision.projection_type in ("linear", "mlp")
    is_own = "num_classes" in options
    if is_own and (has_layers or vision.pooled_size != vision.projection_dim):
        missing.append("a projection behind the classifier that timm makes for `num_classes` in `backbone_kwargs`")
    if not is_own and not has_layers and _pool_of(vision) not in _MAP_POOLS:
        missing.append("a tower of timm without a projection, unless `backbone_kwargs` have `num_classes` of 0")
    if not is_own and "global_pool" in options:
        missing.append("`global_pool` in `backbone_kwargs` without `num_classes` (it has `pooling` for that)")
    return missing


def _pool_of(vision: HFCLIPVisionConfig) -> str:
    return next(theirs for theirs, ours in _POOLINGS.items() if ours == vision.pooling)


def timm_vision_cfg(vision: HFCLIPVisionConfig) -> dict[str, Any]:
    """OpenCLIP's `vision_cfg` of a tower of timm. `missing_timm` must be empty."""
    options = vision.backbone_kwargs or {}
    has_layers = vision.projection_type in ("linear", "mlp")
    projection = vision.projection_type if has_layers else "none" if options.get("num_classes") == 0 else None
    cfg: dict[str, Any] = {
        "image_size": vision.image_size,
        "timm_model_name": vision.backbone,
        "timm_model_pretrained": False,
        "timm_pool": options.get("global_pool") if "num_classes" in options else _pool_of(vision),
        "timm_proj": projection,
    }
    if vision.projection_bias:
        cfg["timm_proj_bias"] = True
    if vision.projection_dropout:
        cfg["timm_drop"] = vision.projection_dropout
    return cfg | {theirs: options[ours] for theirs, ours in _TRAINING.items() if ours in options}
