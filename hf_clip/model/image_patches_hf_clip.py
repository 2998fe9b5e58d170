"""Images in patches at their own aspect, as NaFlex takes them (Tschannen et al. 2025, SigLIP 2, section 2.4.2).

Shapes: N patches, P numbers of a patch (rows, columns and colors in turn), C = 3 colors.
"""

import math
from collections.abc import Sequence

import numpy as np

# Between which factors of an image's size the largest that fits is searched for, and how finely: another bound or step
# would round some images to other sizes than transformers' Siglip2ImageProcessor does.
_LEAST_FACTOR, _GREATEST_FACTOR, _STEP = 1e-6, 100.0, 1e-5


def shape_in_patches(width: int, height: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """(rows, columns) of patches of an image that is scaled until no more of them fit.

    Each side is rounded up to whole patches, so that the aspect changes by less than one of them, and has one or more.
    """

    def counts(factor: float) -> tuple[int, int]:
        rows, columns = (max(math.ceil(side * factor / patch_size), 1) for side in (height, width))
        return rows, columns

    low, high = _LEAST_FACTOR, _GREATEST_FACTOR
    while high - low >= _STEP:
        middle = (low + high) / 2
        if math.prod(counts(middle)) <= max_num_patches:
            low = middle
        else:
            high = middle
    return counts(low)


def patches_of(pixels: np.ndarray, patch_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The patches (N, P) of an image (C, rows, columns), row by row, and how many rows and columns there are of them.

    Raises:
        ValueError: for sides that are no whole numbers of patches.
    """
    channels, height, width = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    if (rows * patch_size, columns * patch_size) != (height, width) or not rows * columns:
        raise ValueError(
            f"An image of {height} x {width} pixels cannot be divided into patches of {patch_size} x {patch_size}: "
            "resize it (`do_resize=True`)."
        )
    grid = pixels.reshape(channels, rows, patch_size, columns, patch_size).transpose(1, 3, 2, 4, 0)
    return grid.reshape(rows * columns, -1), (rows, columns)


def padded_to(patches: Sequence[np.ndarray], length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Patches of several images with zeros behind them, (length, P) each, and masks (length,) that tell them apart."""
    padded, masks = [], []
    for one in patches:
        mask = np.zeros(length, np.int32)
        mask[: len(one)] = 1
        masks.append(mask)
        padded.append(np.concatenate([one, np.zeros((length - len(one), one.shape[1]), one.dtype)]))
    return padded, masks
