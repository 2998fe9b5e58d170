"""LongCLIP (Zhang et al. 2024): OpenAI's names, and positions for texts of 248 tokens in two parameters.

The first 20 positions are the original's, which training left alone, and stand in `positional_embedding`; the others
were stretched and trained, and stand in `positional_embedding_res`. The model adds the two under masks
(model_longclip.py of https://github.com/beichenzbc/Long-CLIP), so that of each the other rows mean nothing.
"""

from collections.abc import Iterable

import torch

from .errors import ConversionError
from .safe_torch.weights import WeightsFile

_POSITIONS, _STRETCHED = "positional_embedding", "positional_embedding_res"
_KEPT = 20


def is_long_clip(names: Iterable[str]) -> bool:
    return {_POSITIONS, _STRETCHED} <= set(names)


def join_positions(weights: WeightsFile) -> WeightsFile:
    """The same file with one tensor of positions, the rows that the model adds. Changes `weights`."""
    if is_long_clip(weights.tensors):
        tensors = weights.tensors
        positions, stretched = tensors[_POSITIONS], tensors.pop(_STRETCHED)
        if positions.shape != stretched.shape:
            raise ConversionError(
                f"{_POSITIONS} is {tuple(positions.shape)} and {_STRETCHED} {tuple(stretched.shape)}: a LongCLIP has "
                "both of one shape."
            )
        tensors[_POSITIONS] = torch.cat([positions[:_KEPT], stretched[_KEPT:]])
    return weights
