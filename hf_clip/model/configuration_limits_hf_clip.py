"""Numbers of no model, refused before anything is made by them."""

import math
from typing import Any

from transformers import PreTrainedConfig

# The most that a config may say, ten times or more beyond any published model: what is made by these counts (labels by
# name, layers) takes memory and time before any weights could confirm them.
LIMITS = {
    "num_labels": 2**18,
    "num_classes": 2**18,
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "embed_dim": 2**16,
    "projection_dim": 2**16,
    "projection_size": 2**16,
    "intermediate_size": 2**19,
    "num_hidden_layers": 1000,
    "num_layers": 1000,
    "depth": 1000,
    "depths": 1000,
    "stage_depths": 1000,
    "stage_widths": 2**16,
    "stem_width": 2**14,
    "num_attention_heads": 2**12,
    "num_heads": 2**12,
    "num_channels": 2**10,
    "in_chans": 2**10,
    "max_position_embeddings": 2**20,
    "image_size": 2**14,
    "img_size": 2**14,
    "patch_size": 2**12,
    "num_patches": 2**20,
    "num_queries": 2**16,
    "num_decoder_layers": 1000,
    "pool_grid": 2**10,
}


def require_plausible(fields: dict[str, Any]) -> None:
    """Raises ValueError for counts beyond LIMITS, at any depth, and for numbers that are not finite."""
    for name, value in fields.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            require_plausible({str(key): one for key, one in value.items()})
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"`{name}={value}` must be finite.")
            if isinstance(number, int | float) and number > LIMITS.get(name, math.inf):
                raise ValueError(f"`{name}={value}` is beyond any model: at most {LIMITS[name]} is taken.")


_SIZES = ("projection_dim", "hidden_size", "num_attention_heads", "image_size", "patch_size", "vocab_size")


def require_sizes(config: PreTrainedConfig) -> None:
    """Raises ValueError for sizes below 1, for an epsilon that is none, and for a dropout of 1 or more."""
    for field in _SIZES:
        if (value := getattr(config, field, 1)) < 1:
            raise ValueError(f"`{field}={value}` must be 1 or more.")
    if not 0 <= (epsilon := getattr(config, "layer_norm_eps", 1e-5)) < math.inf:
        raise ValueError(f"`layer_norm_eps={epsilon}` must be 0 or more: a small number, such as 1e-5.")
    for field in ("attention_dropout", "projection_dropout"):
        if not 0 <= (dropout := getattr(config, field, 0.0)) < 1:
            raise ValueError(f"`{field}={dropout}` must be 0 or more, and below 1.")


def require_whole_heads(config: PreTrainedConfig) -> None:
    """Raises ValueError where heads do not divide the width."""
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"`hidden_size={config.hidden_size}` cannot be divided into "
            f"`num_attention_heads={config.num_attention_heads}`: make it a multiple of the number of heads."
        )
