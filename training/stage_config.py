"""The section of a recipe about stages.

The text below each field is its entry in the recipe reference.
"""

from dataclasses import dataclass

from .recipe_error import require


@dataclass
class StageConfig:
    """One stage of a run, in the order of the list (Li et al. 2022, "FLIP"; Li et al. 2023, "CLIPA"). Rates follow one
    schedule over the steps of all stages."""

    steps: int
    """Updates of the weights in this stage."""
    image_size: int | None = None
    """Pixels of a side of its images. The model's positions are resampled to them. Null is the model's own size."""
    text_length: int | None = None
    """The most tokens of its texts; longer ones are cut. Null is the model's own."""
    patch_dropout: float | None = None
    """The fraction of patches that a ViT drops in it. Null is the model's own."""
    batch_size: int | None = None
    """Pairs of an update. Null is the recipe's."""
    micro_batch_size: int | None = None
    """Pairs whose activations a process holds at once. Null is the recipe's."""

    def __post_init__(self):
        for name in ("steps", "image_size", "micro_batch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, f"`{name}={value}` must be 1 or more.")
        require(
            self.text_length is None or self.text_length > 1,
            f"`text_length={self.text_length}` must be 2 or more: the start and end tokens take two.",
        )
        require(
            self.batch_size is None or self.batch_size > 1,
            f"`batch_size={self.batch_size}`: a contrastive loss needs 2 pairs or more.",
        )
        require(
            self.patch_dropout is None or 0 <= self.patch_dropout < 1,
            f"`patch_dropout={self.patch_dropout}` must be 0 or more, and below 1.",
        )
