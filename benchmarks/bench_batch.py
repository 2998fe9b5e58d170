"""A training step by batch size, in memory and time: this package beside OpenCLIP's and sentence-transformers' ways.

    python benchmarks/bench_batch.py

Every row is a process of its own that takes one step of the same small model (64 pixels), forward, backward and
optimizer, in micro-batches of one size. Memory is the process's peak, data and libraries included. The peers' losses
drive the same towers, arranged for this machine alike:

OpenCLIP: its `ClipLoss` as its trainer has it for `accum_freq` above 1: embeddings of all micro-batches without a
graph, then for each micro-batch the loss of the whole batch again, with its own embeddings in the place of the cached
ones. sentence-transformers: `CachedMultipleNegativesRankingLoss`, both directions, rows of 1,024, with a fixed
temperature, where it can be imported: its wheel, unpacked and named in PYTHONPATH, is enough.

Peers hold images as normalized floats. What goes over `--max-gb` or `--max-seconds` is stopped, and larger batches
of that method are skipped. Linux only.
"""

import argparse
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution

import torch
from batches import WORDS, make_batch
from torch import nn

from hf_clip.model.modeling_hf_clip import HFCLIPModel, unit_embeddings
from hf_clip.training.build import build_start
from hf_clip.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from hf_clip.training.decisions import decide
from hf_clip.training.device import keep_freed_memory
from hf_clip.training.prepare import prepare
from hf_clip.training.step import TrainStep
from hf_clip.training.stream import Batch

OURS, OPEN_CLIP, PEER = "hf_clip", "OpenCLIP", "sentence-transformers"
SIZE = 64
TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
SHAPE = {
    "projection_dim": 256,
    "vision_config": {**TOWER, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8},
    "text_config": {**TOWER, "num_hidden_layers": 2, "max_position_embeddings": 32},
}


def distinct_caption(draw: random.Random, index: int) -> str:
    """All are different: equal captions would be positives of each other."""
    return f"{' '.join(draw.choices(WORDS, k=8))} {index}"


def pixel_values(train_step: TrainStep, images: torch.Tensor) -> torch.Tensor:
    processor = train_step.processor.image_processor
    mean, std = (torch.tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def encode(
    train_step: TrainStep, images: torch.Tensor | None = None, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=train_step.decisions.precision == "bf16"):
        model: HFCLIPModel = train_step.model
        tower = model.get_text_features(tokens) if images is None else model.get_image_features(images)
        return unit_embeddings(tower.pooler_output)


def open_clip_loss() -> type[nn.Module]:
    """OpenCLIP's `ClipLoss`, loaded by path: its package needs torchvision, the loss does not."""
    path = distribution("open_clip_torch").locate_file("open_clip/loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss


def by_open_clip(train_step: TrainStep, batch: Batch, micro: int) -> Callable[[], float]:
    images, tokens = (
        pixel_values(train_step, batch.images),
        train_step.processor(text=batch.captions, return_tensors="pt"),
    )
    spans = [slice(first, first + micro) for first in range(0, len(images), micro)]
    loss_of, tokens = open_clip_loss()(), tokens["input_ids"]

    def step() -> float:
        with torch.no_grad():
            cached = [(encode(train_step, images[rows]), encode(train_step, None, tokens[rows])) for rows in spans]
        for index, rows in enumerate(spans):
            own = (encode(train_step, images[rows]), encode(train_step, None, tokens[rows]))
            image, text = (
                torch.cat(
                    [*(each[side] for each in cached[:index]), own[side], *(e[side] for e in cached[index + 1 :])]
                )
                for side in (0, 1)
            )
            loss = loss_of(image, text, train_step.model.logit_scale.exp())
            loss.backward()
        train_step.optimizer.step()
        train_step.optimizer.zero_grad()
        return loss.item()

    return step


class _BothTowers(nn.Module):
    """What sentence-transformers takes for its one encoder."""

    def __init__(self, train_step: TrainStep):
        super().__init__()
        self.encode = lambda features: encode(train_step, features.get("images"), features.get("tokens"))

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": self.encode(features)}


def by_sentence_transformers(train_step: TrainStep, batch: Batch, micro: int) -> Callable[[], float]:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    loss_of = CachedMultipleNegativesRankingLoss(
        nn.Sequential(_BothTowers(train_step)),
        scale=train_step.model.logit_scale.exp().item(),
        similarity_fct=dot_score,
        mini_batch_size=micro,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    tokens = train_step.processor(text=batch.captions, return_tensors="pt")["input_ids"]
    columns = [{"images": pixel_values(train_step, batch.images)}, {"tokens": tokens}]

    def step() -> float:
        loss = loss_of(columns, None)
        loss.backward()
        train_step.optimizer.step()
        train_step.optimizer.zero_grad()
        return loss.item()

    return step


def by_hf_clip(train_step: TrainStep, batch: Batch, micro: int) -> Callable[[], float]:
    return lambda: train_step.update(batch, 0).loss.item()


METHODS = {OURS: by_hf_clip, OPEN_CLIP: by_open_clip, PEER: by_sentence_transformers}


def measure(method: str, size: int, micro: int) -> None:
    """Prints the loss, the seconds of a step, and the peak of this process's memory in bytes."""
    config = TrainConfig(
        model=ModelConfig(config=SHAPE),
        data=DataConfig(train=["none"]),
        optimizer=OptimizerConfig(warmup_steps=0),
        steps=10,
        batch_size=size,
        micro_batch_size=micro,
    )
    decisions = decide(config)
    keep_freed_memory()
    model, processor = build_start(config.model, [], config.seed)
    train_step = TrainStep(config, decisions, *prepare(model, config, decisions), processor)
    # What a first step alone does (moments, kernels) is not to be counted.
    METHODS[method](train_step, make_batch(micro, SIZE, distinct_caption), micro)()
    step = METHODS[method](train_step, make_batch(size, SIZE, distinct_caption), micro)
    started = time.perf_counter()
    loss = step()
    print(loss, time.perf_counter() - started, held_bytes("self", "VmHWM"))


def held_bytes(process: int | str, field: str) -> int:
    """VmRSS, what a process holds now, or VmHWM, the most that it held; 0 when it is gone."""
    try:
        with open(f"/proc/{process}/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field)), 0)
    except OSError:
        return 0


def measured(method: str, size: int, options: argparse.Namespace) -> tuple[float, float, float] | str:
    """(loss, seconds, bytes), or why there are none."""
    command = [sys.executable, __file__, "--measure", method, "--batches", str(size), "--micro", str(options.micro)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while True:
        try:
            out, error = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            over_memory = held_bytes(process.pid, "VmRSS") > options.max_gb * 1e9
            if over_memory or time.monotonic() - started > options.max_seconds:
                process.kill()
                process.communicate()
                return f"over {options.max_gb:g} GB" if over_memory else f"over {options.max_seconds:g} s"
    if process.returncode:
        raise SystemExit(f"{method} at {size} pairs ended with {process.returncode}: {error[-2000:]}")
    return tuple(map(float, out.split()[-3:]))


def methods_at_hand() -> list[str]:
    found = [OURS]
    try:
        distribution("open_clip_torch")
        found.append(OPEN_CLIP)
    except PackageNotFoundError:
        print("open_clip_torch is not installed: it is skipped.")
    if importlib.util.find_spec("sentence_transformers") is not None:
        found.append(PEER)
    else:
        print("sentence-transformers can't be imported: it is skipped.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--micro", type=int, default=256, help="pairs in a micro-batch")
    parser.add_argument("--max-gb", type=float, default=12.0, help="memory of one process")
    parser.add_argument("--max-seconds", type=float, default=1800.0, help="for one process")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, *options.batches, options.micro)

    methods = methods_at_hand()
    print(f"micro-batches of {options.micro}, {torch.get_num_threads()} threads")
    print(f"{'pairs':>7}  {'method':24}{'peak memory':>14}{'a pair':>12}{'a step':>12}{'loss':>10}")
    stopped: dict[str, str] = {}
    for size in options.batches:
        for method in methods:
            result = stopped.get(method) or measured(method, size, options)
            if isinstance(result, str):
                stopped[method] = result
                print(f"{size:7}  {method:24}{result:>14}", flush=True)
                continue
            loss, seconds, peak = result
            row = f"{peak / 1e9:11.2f} GB{seconds / size * 1e3:9.2f} ms{seconds:10.1f} s{loss:10.4f}"
            print(f"{size:7}  {method:24}{row}", flush=True)


if __name__ == "__main__":
    main()
