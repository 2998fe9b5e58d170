"""Time and memory of ranking images against texts in tiles: `rank_positives` alone, on embeddings drawn at random.

    python benchmarks/bench_retrieval.py --images 100000 --texts 500000

The embeddings are held once, (images + texts) x width x 4 bytes; a tile is 2048 x 2048 x 4 bytes, of which a few are
alive at once; the rest are a few numbers for each image, text and pair. For 100,000 x 500,000 at width 512: 1.23 GB
of embeddings, 0.1 GB of tiles, 0.1 GB of numbers, and what Python and torch take by themselves.
"""

import argparse
import resource
import sys
import time

import torch

from hf_clip.evaluation.retrieval import rank_positives


def unit_rows(count: int, width: int) -> torch.Tensor:
    embeddings = torch.randn(count, width)
    for rows in embeddings.split(16384):
        rows /= rows.norm(dim=-1, keepdim=True)
    return embeddings


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    images, texts = unit_rows(options.images, options.width), unit_rows(options.texts, options.width)
    captions = max(1, options.texts // options.images)
    positives = [
        range(index * captions, (index + 1) * captions) for index in range(min(options.images, options.texts))
    ]
    embeddings, before = (images.nbytes + texts.nbytes) / 1e6, peak_megabytes()
    started = time.perf_counter()
    rank_positives(images, texts, positives)
    seconds = time.perf_counter() - started
    print(f"{options.images:,} images x {options.texts:,} texts, {options.width} wide: {seconds:.1f} s")
    print(f"embeddings {embeddings:,.0f} MB, peak {peak_megabytes():,.0f} MB, before ranking {before:,.0f} MB")


if __name__ == "__main__":
    main()
