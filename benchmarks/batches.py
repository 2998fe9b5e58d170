"""Made-up training batches: images of noise, captions of plain words."""

import random
from collections.abc import Callable

import numpy as np
import torch

from hf_clip.training.stream import Batch

WORDS = "red green old small wooden shiny dog cat house tree apple car boat bird chair lamp on under near with".split()


def make_batch(size: int, pixels: int, caption: Callable[[random.Random, int], str]) -> Batch:
    """`size` pairs of `pixels` a side; `caption` makes a text of a source of chance and the pair's number."""
    draw, rng = random.Random(0), np.random.default_rng(0)
    images_BHWC = torch.from_numpy(rng.integers(0, 256, (size, pixels, pixels, 3), dtype=np.uint8))
    captions = [caption(draw, index) for index in range(size)]
    flags, ids = torch.zeros(size, dtype=torch.bool), np.arange(size)
    return Batch(images_BHWC, captions, None, torch.from_numpy(ids), flags, flags, ids, np.zeros_like(ids), {})
