"""Numbers beyond any model, refused before anything is made by them."""

import math
from typing import Any

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
