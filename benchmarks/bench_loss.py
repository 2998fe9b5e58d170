"""The loss of a large batch, forward and backward: this package beside plain cross entropy and sentence-transformers.

    python benchmarks/bench_loss.py [--quick]

Each method runs in a process of its own, on the same unit embeddings in float32, after a small batch that warms it up.
Memory is the process's peak over what it held with embeddings and gradients. Plain cross entropy takes 20 GB at the
paper's batch. `sentence-transformers` (`CachedMultipleNegativesRankingLoss`, both directions, rows of 1,024, fixed
scale) is measured where it can be imported: its wheel, unpacked and named in PYTHONPATH, is enough. Linux only.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F

from hf_clip import contrastive_loss, sigmoid_loss
from hf_clip.model import loss_hf_clip

SCALE, BIAS = 20.0, -10.0
OURS, PEER = "contrastive_loss", "sentence-transformers"
# The plain sigmoid's batch stops here: 13 more GB and two more minutes would only say the same.
LARGEST_PLAIN_SIGMOID = 8192


def plain_cross_entropy(image, text, scale):
    logits, labels = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def plain_sigmoid(image, text, scale):
    signs = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(signs * (scale * image @ text.T + BIAS)).sum() / len(image)


def sentence_transformers(image, text, scale):
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    loss = CachedMultipleNegativesRankingLoss(
        torch.nn.Sequential(torch.nn.Identity()),
        scale=SCALE,
        similarity_fct=dot_score,
        mini_batch_size=1024,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    # It calls backward itself, block by block; what it returns is the loss's value.
    return loss.calculate_loss([[image], [text]], with_backward=True)


@torch.no_grad()
def products_alone(image, text, scale):
    """The four products of matrices of the loss, tile by tile, and nothing else."""
    tile_rows, tile_columns = loss_hf_clip._CPU_TILE
    slope_RC = torch.rand(tile_rows, tile_columns)
    for start in range(0, len(image), tile_rows):
        image_RD = image[start : start + tile_rows]
        for first in range(0, len(text), tile_columns):
            text_CD = text[first : first + tile_columns]
            some_RC = slope_RC[: len(image_RD), : len(text_CD)]
            for left, right in (
                (image_RD, text_CD.T),
                (image_RD, text_CD.T),
                (some_RC, text_CD),
                (some_RC.T, image_RD),
            ):
                loss_hf_clip.matrix_product(left, right)
    return torch.zeros(())


METHODS = {
    OURS: contrastive_loss,
    "its products alone": products_alone,
    "bf16 products": partial(contrastive_loss, products="bfloat16"),
    "cross entropy": plain_cross_entropy,
    PEER: sentence_transformers,
    "sigmoid_loss": lambda image, text, scale: sigmoid_loss(image, text, scale, torch.tensor(BIAS)),
    "plain sigmoid": plain_sigmoid,
}


def held_bytes(field: str) -> int:
    """VmRSS, what this process holds now, or VmHWM, the most that it held."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def leaves(batch: int, dimensions: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    image, text = torch.randn(batch, dimensions), torch.randn(batch, dimensions)
    # A text lies nearer to its image than to others', as in training.
    text += image / 3
    for embeddings in (image, text):
        embeddings /= embeddings.norm(dim=-1, keepdim=True)
    return [tensor.requires_grad_() for tensor in (image, text, torch.tensor(SCALE))]


def measure(method: str, batch: int, dimensions: int, runs: int) -> None:
    """Prints the loss, the seconds of the fastest run, and the bytes of peak memory over embeddings and gradients."""

    def run(tensors: list[torch.Tensor]) -> float:
        loss = METHODS[method](*tensors)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    run(leaves(256, dimensions))
    tensors, seconds = leaves(batch, dimensions), []
    for tensor in tensors:
        # Zeros alone would not be given memory before they are touched.
        tensor.grad = torch.zeros_like(tensor).add_(0)
    with open("/proc/self/clear_refs", "w") as file:
        # Resets the peak to what is held now.
        file.write("5")
    before = held_bytes("VmRSS")
    for _ in range(runs):
        # The gradients that a run makes are its result, not its cost: these allocate them first.
        for tensor in tensors:
            tensor.grad = None
        started = time.perf_counter()
        value = run(tensors)
        seconds.append(time.perf_counter() - started)
    print(value, min(seconds), held_bytes("VmHWM") - before)


def measured(method: str, batch: int, dimensions: int, runs: int) -> tuple[float, float, float]:
    command = [sys.executable, __file__, "--measure", method, "--batches", str(batch)]
    command += ["--dimensions", str(dimensions), "--runs", str(runs)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{method} at {batch} pairs ended with {finished.returncode}: {finished.stderr[-2000:]}")
    return tuple(map(float, finished.stdout.split()[-3:]))


def print_error_of_halves(batch: int, dimensions: int) -> None:
    """By how much products of what is rounded to bf16 change gradients, beside their norm."""
    found = {}
    for name in ("float32", "bfloat16"):
        tensors = leaves(batch, dimensions)
        contrastive_loss(*tensors, products=name).backward()
        found[name] = [tensor.grad for tensor in tensors]
    pairs = zip(("images", "texts", "scale"), found["bfloat16"], found["float32"], strict=True)
    errors = ", ".join(f"{name} {float((half - single).norm() / single.norm()):.1e}" for name, half, single in pairs)
    print(f"{batch:7}  gradients with bf16 products differ by (of their norm): {errors}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--runs", type=int, default=1, help="the fastest counts")
    parser.add_argument("--only", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="16 pairs of 8 dimensions")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.batches, options.dimensions = [16], 8
    if options.measure:
        return measure(options.measure, *options.batches, options.dimensions, options.runs)

    has_peer = importlib.util.find_spec("sentence_transformers") is not None
    if not has_peer:
        print("sentence-transformers can't be imported: it is skipped.")
    print(f"{options.dimensions} dimensions, float32, {torch.get_num_threads()} threads; memory above the embeddings'")
    print(f"{'pairs':>7}  {'method':24}{'time':>11}{'memory':>15}{'ours is faster':>17}{'loss':>12}")
    print_error_of_halves(min(options.batches), options.dimensions)
    for batch in options.batches:
        ours_seconds = {}
        for method in options.only:
            kind = "sigmoid" if "sigmoid" in method else "softmax"
            if (method == PEER and not has_peer) or (method == "plain sigmoid" and batch > LARGEST_PLAIN_SIGMOID):
                continue
            loss, seconds, peak = measured(method, batch, options.dimensions, options.runs)
            ratio = f"{seconds / ours_seconds[kind]:.2f} x" if kind in ours_seconds else ""
            ours_seconds.setdefault(kind, seconds)
            print(f"{batch:7}  {method:24}{seconds:9.3f} s{peak / 1e9:12.3f} GB{ratio:>17}{loss:12.6f}", flush=True)


if __name__ == "__main__":
    main()
