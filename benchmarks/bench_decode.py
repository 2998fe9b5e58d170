"""Photographs to pixels for training: this package beside OpenCLIP's steps in Pillow, alternated.

    python benchmarks/bench_decode.py

The peer opens the file, converts it to RGB, resizes its shorter edge (bicubic), crops the middle, makes a float tensor
and normalizes it, as OpenCLIP's transform for evaluation does. Here a JPEG is decoded at a fraction of its size, as in
training, and normalized by the same arithmetic. Prints the medians, their ratio and by how much the pixels differ.
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
from PIL import Image

from hf_clip import HFCLIPImageProcessor

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG with the spectrum of a photograph: soft shapes of all sizes, and the grain of a sensor."""
    rng = np.random.default_rng(seed)
    values = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 10):
        coarse = rng.normal(size=(2**octave + 1, 2**octave + 1, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., channel]).resize((width, height), Image.BICUBIC) for channel in range(3)]
        values += np.stack([np.asarray(layer) for layer in layers], -1) / 2**octave
    values = (values - values.min()) / (values.max() - values.min()) * 255 + rng.normal(scale=4, size=values.shape)
    buffer = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def normalized(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255) - MEAN) / STD


def peer(content: bytes, size: int) -> torch.Tensor:
    image = Image.open(io.BytesIO(content))
    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    image = image.resize((width, height), Image.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return normalized(np.array(image.crop((left, top, left + size, top + size)).convert("RGB")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()

    torch.set_num_threads(1)
    size = options.size
    processor = HFCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    files = [photograph(2048, 1536, seed) for seed in range(options.images)]
    work = {
        "hf_clip": lambda content: normalized(processor.resize_and_crop(content, may_reduce_jpeg=True)),
        "OpenCLIP's steps": lambda content: peer(content, size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    difference = torch.stack([(work["hf_clip"](file) - peer(file, size)).abs() * STD * 255 for file in files])
    for _ in range(options.runs):
        for content in files:
            for name, decode in work.items():
                started = time.perf_counter()
                decode(content)
                seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:18}{1e3 * statistics.median(times):8.1f} ms an image of 2048 x 1536, one thread")
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds.values(), strict=True))
    print(
        f"{ratio:.2f} times faster; pixels differ by {difference.mean():.2f} levels of 255, "
        f"{difference.max():.0f} at most"
    )


if __name__ == "__main__":
    main()
