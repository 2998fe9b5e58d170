"""The section of a recipe about low-rank adapters.

The text below each field is its entry in the recipe reference.
"""

import math
from dataclasses import dataclass, field

from .recipe_error import require

_TOWERS = ("vision_tower", "text_tower")


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, "LoRA") by PEFT: they alone are trained, and all else stays as it was. They
    are saved by themselves in `adapters/`, and merged into the model that is exported."""

    rank: int = 8
    """The rank of each adapter."""
    alpha: float | None = None
    """An adapter counts `alpha / rank`. Null takes twice the rank."""
    dropout: float = 0.0
    """The probability that an input of an adapter is dropped in training."""
    targets: list[str] | None = None
    """Ends of the names of the modules that get one, such as q_proj and v_proj. Null takes all linear layers within
    the towers' layers."""
    towers: list[str] = field(default_factory=lambda: list(_TOWERS))
    """Which towers get adapters: vision_tower, text_tower, or both. The other one is frozen."""

    def __post_init__(self):
        require(self.rank > 0, f"`rank={self.rank}` must be 1 or more.")
        require(
            self.alpha is None or 0 < self.alpha < math.inf,
            f"`alpha={self.alpha}` must be above 0 and finite, or null.",
        )
        require(0 <= self.dropout < 1, f"`dropout={self.dropout}` must be 0 or more, and below 1.")
        require(self.targets is None or bool(self.targets), "`targets` is empty: null takes all linear layers.")
        require(bool(self.towers), f"`towers` is empty: give it {' or '.join(_TOWERS)}, or both.")
        for tower in self.towers:
            require(tower in _TOWERS, f"`towers`: {tower!r} is not known: use {' and '.join(_TOWERS)}.")
