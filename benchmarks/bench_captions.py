"""CoCa: seconds of `generate` with its cache and without, and time and memory of the caption loss in tiles and plain.

    python benchmarks/bench_captions.py [--quick]

Captions of 30 tokens of 1 and of 16 images by coca_ViT-B-32 with random weights, greedy, images encoded before; sides
in turn. The loss is that of 128 captions of 75 tokens in a vocabulary of 49,408, width 512, forward and backward, each
side in a process of its own; its memory is the process's peak over what it held with states and weights. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from bench_loss import held_bytes

from hf_clip import HFCLIPCoCaModel
from hf_clip.conversion.open_clip import config_from_model_cfg
from hf_clip.model.caption_loss_hf_clip import caption_loss, plain_caption_loss

TOKENS = 30
PUBLISHED = {
    "embed_dim": 512,
    "vision_cfg": {
        "image_size": 224, "layers": 12, "width": 768, "patch_size": 32, "attentional_pool": True,
    },
    "text_cfg": {
        "context_length": 76, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "embed_cls": True,
    },
    "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}  # fmt: skip
LOSSES = {"in tiles": caption_loss, "plain": plain_caption_loss}


def generation(quick: bool, images: int) -> None:
    cfg = json.loads(json.dumps(PUBLISHED))
    if quick:
        for section in ("vision_cfg", "text_cfg", "multimodal_cfg"):
            cfg[section]["layers"] = 1
    torch.manual_seed(0)
    model = HFCLIPCoCaModel(config_from_model_cfg(cfg)).eval()
    with torch.no_grad():
        tokens = model.encode_image_tokens(torch.randn(images, 3, 224, 224))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    count = 4 if quick else TOKENS
    for turn in range(2 if quick or images > 1 else 6):
        for use_cache in seconds:
            started = time.perf_counter()
            asked = {"min_new_tokens": count, "max_new_tokens": count, "use_cache": use_cache}
            model.generate(image_tokens=tokens, **asked)
            # The first warms up.
            if turn:
                seconds[use_cache].append(time.perf_counter() - started)
    with_cache, without = (statistics.median(seconds[each]) for each in (True, False))
    print(
        f"{count} tokens of {images} images: {with_cache:.3f} s with the cache, {without:.3f} s without, "
        f"{without / with_cache:.1f} times as long"
    )


def loss_of(side: str, captions: int, tokens: int, vocabulary: int) -> None:
    """Prints seconds and bytes of one side, as JSON."""
    torch.manual_seed(0)
    # What the products take before they have run once is no part of it.
    LOSSES[side](torch.randn(8, 512, requires_grad=True), torch.randn(99, 512), torch.zeros(8).long()).backward()
    states = torch.randn(captions, tokens, 512).requires_grad_()
    weight = (torch.randn(vocabulary, 512) / 512**0.5).requires_grad_()
    labels = torch.randint(0, vocabulary, (captions, tokens))
    held, started = held_bytes("VmRSS"), time.perf_counter()
    loss = LOSSES[side](states, weight, labels)
    loss.backward()
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, held_bytes("VmHWM") - held, loss.item()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--loss", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (8, 10, 999) if options.quick else (128, 75, 49_408)
    if options.loss:
        return loss_of(options.loss, *shape)
    for images in (1, 2 if options.quick else 16):
        generation(options.quick, images)
    found = {}
    for side in LOSSES:
        command = [sys.executable, __file__, "--loss", side, *(["--quick"] if options.quick else [])]
        found[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds, taken, loss = found[side]
        print(
            f"caption loss of {shape[0]} x {shape[1]} x {shape[2]:,} {side}: {seconds:.2f} s, "
            f"{taken / 2**20:.0f} MiB, {loss:.4f}"
        )
    print(f"memory: 1 / {found['plain'][1] / max(1, found['in tiles'][1]):.1f} of the plain one's")


if __name__ == "__main__":
    main()
