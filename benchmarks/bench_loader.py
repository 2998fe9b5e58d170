"""Pairs to batches for training, one thread: this package beside the processor's own pixels and OpenCLIP's steps.

    python benchmarks/bench_loader.py [--quick]

JPEGs of 256 to 512 pixels a side with a caption, read from a parquet file into batches of bytes at 224 pixels. The
loader as it is (with simplejpeg where that is installed, and without), the same with what the processor gives
(Pillow, JPEGs decoded at a fraction), and OpenCLIP's transform in Pillow over the same bytes. Each side is a process
of its own, one round after the other, medians; then by how much pixels differ from the processor's exact ones.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from bench_decode import peer, photograph
from sides import alternated, print_table, serve

SIDES = ("hf_clip", "hf_clip, Pillow decodes", "the processor's pixels", "OpenCLIP's steps")


def photographs(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [photograph(*rng.integers(256, 513, 2).tolist(), seed) for seed in range(count)]


def write_pairs(file: Path, count: int) -> None:
    import datasets

    rows = [
        {"image": {"bytes": content, "path": None}, "caption": f"photograph {index}"}
        for index, content in enumerate(photographs(count))
    ]
    kinds = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=kinds).to_parquet(str(file))


def work(side: str, file: Path, count: int):
    """A function that makes one batch of all pairs."""
    import torch

    import hf_clip.training.stream.decoding as decoding
    import hf_clip.training.stream.images as images
    from hf_clip import HFCLIPImageProcessor
    from hf_clip.training.config import AugmentationConfig, DataConfig
    from hf_clip.training.stream import PairStream, open_training_source

    torch.set_num_threads(1)
    if side == "OpenCLIP's steps":
        contents = photographs(count)
        return lambda: torch.stack([peer(content, 224) for content in contents])
    if side == "hf_clip, Pillow decodes":
        images._simplejpeg = lambda: None
    if side == "the processor's pixels":
        decoding.training_pixels = lambda processor, image: processor.resize_and_crop(image, may_reduce_jpeg=True)
    config = DataConfig(train=[str(file)], workers=0, decoded_cache_gb=0)
    stream = PairStream(open_training_source(config), config, HFCLIPImageProcessor(), count, 0, AugmentationConfig())
    batches = stream.batches()
    return lambda: next(batches)


def print_differences(count: int) -> None:
    """Of levels of 255, on average and at most."""
    import hf_clip.training.stream.images as images
    from hf_clip import HFCLIPImageProcessor

    processor, contents = HFCLIPImageProcessor(), photographs(count)
    exact = np.stack([processor.resize_and_crop(content) for content in contents]).astype(int)
    ways = {images.jpeg_decoder(): images._simplejpeg, "Pillow": lambda: None}
    for name, decoder in ways.items():
        images._simplejpeg = decoder
        found = np.stack([images.training_pixels(processor, content) for content in contents])
        differences = np.abs(found - exact)
        print(f"{name}: pixels differ by {differences.mean():.2f} levels on average, {differences.max()} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="four pairs, one round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.pairs = 1, 4
    if options.side:
        make_batch = work(options.side, options.file, options.pairs)
        make_batch()
        return serve(make_batch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.parquet"
        write_pairs(file, options.pairs)
        shared = ["--file", str(file), "--pairs", str(options.pairs)]
        sides = {side: [__file__, "--side", side, *shared] for side in SIDES}
        print_table(f"{options.pairs} pairs, one thread", alternated(sides, options.runs))
    print_differences(options.pairs)


if __name__ == "__main__":
    main()
