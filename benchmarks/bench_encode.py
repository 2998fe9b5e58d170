"""Encoding images and labels: this package beside transformers' CLIPModel, same weights, same machine, alternated.

    python benchmarks/bench_encode.py

Prints medians and the ratio of each pair of runs. The labels are as classifiers have them (a few words in a prompt);
transformers' stock pipeline pads them to the longest and passes a mask, its examples pad to 77.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from hf_clip import HFCLIPImageProcessor, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer


def compare(name: str, ours: Callable, peer: Callable, runs: int) -> None:
    """Runs the two in turn; the first pair warms up and does not count."""
    seconds: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        pair = []
        for work in (ours, peer):
            started = time.perf_counter()
            work()
            pair.append(time.perf_counter() - started)
        seconds.append(tuple(pair))
    mine, theirs = zip(*seconds[1:], strict=True)
    ratio = statistics.median(b / a for a, b in seconds[1:])
    print(f"{name:44}{statistics.median(mine):9.3f} s{statistics.median(theirs):9.3f} s{ratio:8.2f} x")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--labels", type=int, default=128)
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        CLIPModel(CLIPConfig()).save_pretrained(folder)
        peer = CLIPModel.from_pretrained(folder).eval()
        model = HFCLIPModel.from_pretrained(folder).eval()
        HFCLIPTokenizer().save_pretrained(folder)
        peer_tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = HFCLIPProcessor(HFCLIPImageProcessor(), HFCLIPTokenizer())
    peer_processor = CLIPImageProcessorPil()

    words = "red green old small wooden shiny dog cat house tree apple car boat bird chair lamp".split()
    rng = np.random.default_rng(0)
    labels = [f"a photo of a {' '.join(rng.choice(words, 2))}." for _ in range(options.labels)]
    images = [rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(options.images)]

    def ours_text():
        return model.encode_text(processor(text=labels, return_tensors="pt")["input_ids"])

    def peer_text(padding):
        inputs = peer_tokenizer(labels, padding=padding, max_length=77, truncation=True, return_tensors="pt")
        return peer.get_text_features(**inputs).pooler_output

    def ours_images():
        return model.encode_image(processor(images=images, return_tensors="pt")["pixel_values"])

    def peer_images():
        return peer.get_image_features(**peer_processor(images=images, return_tensors="pt")).pooler_output

    print(
        f"ViT-B/32, float32, {torch.get_num_threads()} threads\n{'':44}{'hf_clip':>11}{'CLIPModel':>11}{'faster':>10}"
    )
    compare(f"{options.labels} labels, peer pads to the longest", ours_text, lambda: peer_text(True), options.runs)
    compare(f"{options.labels} labels, peer pads to 77", ours_text, lambda: peer_text("max_length"), options.runs)
    compare(f"{options.images} images of 320 x 240", ours_images, peer_images, options.runs)


if __name__ == "__main__":
    main()
