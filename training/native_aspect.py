"""Batches of images of unlike sizes, as NaFlex takes them: worked on by size, given to the model in patches.

Shape suffixes: B images, H and W rows and columns of pixels, C = 3 colors, N patches, P numbers of a patch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


def rows_of_one_size(images: Sequence[torch.Tensor], rows: slice) -> list[list[int]]:
    """The positions of the images (H, W, C) within `rows`, those of one size together."""
    groups: dict[torch.Size, list[int]] = {}
    for row in range(len(images))[rows]:
        groups.setdefault(images[row].shape, []).append(row)
    return list(groups.values())


def in_patches(groups: Sequence[torch.Tensor], rows: Sequence[Sequence[int]], patch_size: int) -> dict[str, Any]:
    """What a NaFlex model takes of images, padded to the longest, as its image processor makes it.

    Args:
        groups: images of one size each, (B, C, H, W).
        rows: the position of each image of each group; the result is in the order of these.
    """
    patches: dict[int, torch.Tensor] = {}
    shapes: dict[int, tuple[int, int]] = {}
    for images_BCHW, positions in zip(groups, rows, strict=True):
        height, width = (side // patch_size for side in images_BCHW.shape[-2:])
        grid = images_BCHW.unflatten(2, (height, patch_size)).unflatten(4, (width, patch_size))
        patches_BNP = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        patches |= zip(positions, patches_BNP, strict=True)
        shapes |= dict.fromkeys(positions, (height, width))
    order = sorted(patches)
    pixel_values = pad_sequence([patches[position] for position in order], batch_first=True)
    # As numbers: of a tensor on an accelerator the model would have to wait for them.
    return {"pixel_values": pixel_values, "spatial_shapes": [shapes[position] for position in order]}
