"""Random changes to training images, a whole batch at a time on the model's device.

Shape suffixes: B images, H and W rows and columns, C = 3 colors.

Each number drawn is a function of (seed, epoch, sample id) alone: not of the rank, the batch, or what was drawn
before. So a resumed run, or one on another number of processes, sees the same images.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from .config import AugmentationConfig

DRAWS_PER_IMAGE = 24

# Of a round image, in half sides of the canvas.
DISC_RADIUS = 0.95

# Luminance and two color differences (NTSC's YIQ): hue is an angle in the plane of the differences, saturation a
# length in it.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


def uniforms(seed: int, epochs: np.ndarray, sample_ids: np.ndarray, count: int) -> np.ndarray:
    """Independent numbers in [0, 1), (B, count) float32, by hashing their indices (Steele et al. 2014, SplitMix64)."""

    def mix(bits: np.ndarray) -> np.ndarray:
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key_B = mix(np.full(len(sample_ids), seed, np.uint64) + golden)
        key_B = mix(key_B + epochs.astype(np.uint64) * golden)
        key_B = mix(key_B + sample_ids.astype(np.uint64) * golden)
        columns = np.arange(1, count + 1, dtype=np.uint64) * golden
        bits = mix(key_B[:, None] + columns[None])
    return ((bits >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def swap_neighbours(rows: torch.Tensor) -> torch.Tensor:
    """Rows 0 and 1 changed over, 2 and 3, and so on: (B, ...) with an even B.

    Neighbours stay neighbours however a batch is cut into even pieces: for ranks, or micro-batches.
    """
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mix_neighbours(images: torch.Tensor, fraction: float) -> torch.Tensor:
    """Each image with `fraction` of its neighbour's in it (mixup, Zhang et al. 2018): (B, ...) with an even B."""
    return torch.lerp(images, swap_neighbours(images), fraction) if fraction else images


def mixed_fraction(seed: int, step: int, mixup: float) -> float:
    """What neighbours have of each other in a step's images, from Beta(mixup, mixup); 0 where mixup is 0."""
    return float(np.random.default_rng([seed, step]).beta(mixup, mixup)) if mixup else 0.0


def augment(
    images: torch.Tensor,
    draws: torch.Tensor,
    may_flip: torch.Tensor,
    may_crop: torch.Tensor,
    config: AugmentationConfig,
) -> torch.Tensor:
    """Moves, colors, blurs and covers a batch.

    Args:
        images: uint8, (B, H, W, 3).
        draws: (B, DRAWS_PER_IMAGE) in [0, 1), from `uniforms`.
        may_flip: False where a mirror would make the caption false.
        may_crop: True where a part shows what the whole does.
        config: the strengths; all zeros give the image back.

    Returns:
        (B, 3, H, W) float32 in [0, 1]. What moves in from outside is white, as is what a cutout covers.
    """
    # Worked on as ink (white is 0): then padding with zeros is white, and white stays white under every gain.
    ink_BCHW = 1 - images.permute(0, 3, 1, 2).float() / 255
    signed = 2 * draws - 1
    ink_BCHW = _move(ink_BCHW, draws, signed, may_flip, may_crop, config)
    ink_BCHW = _color(ink_BCHW, draws, signed, config)
    if config.blur:
        # Away from the local mean sharpens, towards it blurs. As a depthwise convolution with channels last, the mean
        # is 15 times faster on a CPU than avg_pool2d.
        mean_BCHW = F.conv2d(
            ink_BCHW.contiguous(memory_format=torch.channels_last),
            ink_BCHW.new_full((3, 1, 3, 3), 1 / 9),
            padding=1,
            groups=3,
        )
        ink_BCHW = torch.lerp(ink_BCHW, mean_BCHW, (signed[:, 14] * config.blur)[:, None, None, None])
    ink_BCHW = ink_BCHW.clamp(0, 1)
    if config.cutout:
        ink_BCHW = ink_BCHW.masked_fill(_cutout(draws, (ink_BCHW.shape[-2], ink_BCHW.shape[-1]), config), 0.0)
    return 1 - ink_BCHW


def _move(ink_BCHW, draws, signed, may_flip_B, may_crop_B, config: AugmentationConfig) -> torch.Tensor:
    """One affine map per image: mirror, scale, aspect, shear, rotation, shift; and discs made rectangles."""
    if not any((config.rotation, config.scale, config.aspect, config.shear, config.shift, config.flip, config.crop)):
        return ink_BCHW
    angle = signed[:, 0] * math.radians(config.rotation)
    scale, aspect = torch.exp(signed[:, 1] * config.scale), torch.exp(signed[:, 2] * config.aspect)
    mirror = torch.where((draws[:, 3] < config.flip) & may_flip_B, -1.0, 1.0)
    shear, cos, sin = signed[:, 4] * config.shear, angle.cos(), angle.sin()
    along_x, along_y = scale * aspect * mirror, scale / aspect
    # Rows map output coordinates in [-1, 1] to where in the input to look.
    affine = torch.stack(
        [
            cos * along_x,
            (shear * cos - sin) * along_y,
            2 * signed[:, 5] * config.shift,
            sin * along_x,
            (shear * sin + cos) * along_y,
            2 * signed[:, 6] * config.shift,
        ],
        dim=1,
    ).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(ink_BCHW.shape), align_corners=False)
    if not config.crop:
        return F.grid_sample(ink_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # A band of the disc, each of its rows stretched to the width of a rectangle: stripes stay straight, and what is at
    # the sides of the disc stays in, which an upright cut would lose.
    is_cut_B = may_crop_B & (draws[:, 21] < config.crop)
    half_band, half_height = (low + 0.3 * draws[:, column, None, None] for low, column in ((0.55, 22), (0.55, 23)))
    x, y = grid[..., 0], grid[..., 1] / half_height
    is_inside = ((x.abs() <= 1) & (y.abs() <= 1)) | ~is_cut_B[:, None, None]
    row = half_band * y
    unrolled = DISC_RADIUS * torch.stack([x * (1 - row.square()).clamp(min=0).sqrt(), row], dim=-1)
    grid = torch.where(is_cut_B[:, None, None, None], unrolled, grid)
    moved_BCHW = F.grid_sample(ink_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved_BCHW * is_inside[:, None]


def _color(ink_BCHW, draws, signed, config: AugmentationConfig) -> torch.Tensor:
    """Saturation, hue, brightness and gains of single channels, as one 3 x 3 matrix per image."""
    if not any((config.saturation, config.gray, config.hue, config.brightness, config.channels)):
        return ink_BCHW
    saturation = torch.exp(signed[:, 7] * config.saturation) * (draws[:, 8] >= config.gray)
    hue = signed[:, 9] * config.hue * 2 * math.pi
    zero, one = torch.zeros_like(hue), torch.ones_like(hue)
    cos, sin = saturation * hue.cos(), saturation * hue.sin()
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    gain_BC = torch.exp(signed[:, 10:11] * config.brightness + signed[:, 11:14] * config.channels)
    matrix = gain_BC[:, :, None] * (_FROM_YIQ.to(turn) @ turn @ _TO_YIQ.to(turn))
    return (matrix @ ink_BCHW.flatten(2)).view_as(ink_BCHW)


def _cutout(draws, size: tuple[int, int], config: AugmentationConfig) -> torch.Tensor:
    """Where a rectangle covers the image, (B, 1, H, W); its sides are 0.4 to 1 of `cutout_size`."""
    covered = draws[:, 18] < config.cutout
    inside = []
    for axis, length in enumerate(size):
        half = config.cutout_size * (0.4 + 0.6 * draws[:, 16 + axis]) / 2
        position = (torch.arange(length, device=draws.device) + 0.5) / length
        inside.append(((position[None] - draws[:, 19 + axis, None]).abs() < half[:, None]) & covered[:, None])
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
