"""One training step of a small ViT: this package beside transformers' CLIPModel as it comes, alternated.

    python benchmarks/bench_step.py

Same weights, images and texts; AdamW; bf16 by autocast. The peer has its default attention (sdpa) and memory layout,
and gets images normalized and texts as tokens with their mask: padded to the longest, and to 77 tokens, as
transformers' example of its training has them. Here a step begins with bytes and captions. Each side has a process of
its own, as a process's settings are part of what is compared. Prints medians and the median of the ratios of
neighbouring steps.
"""

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from batches import WORDS, make_batch
from transformers import CLIPModel

from hf_clip.training.build import build_start
from hf_clip.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from hf_clip.training.decisions import decide
from hf_clip.training.prepare import prepare
from hf_clip.training.step import TrainStep

SIZE = 64


def caption(draw: random.Random, _: int) -> str:
    return f"a photo of {' '.join(draw.choices(WORDS, k=draw.randint(4, 12)))}"


def shape(width: int, heads: int, layers: int) -> dict:
    """64 patches and the class token; half as many layers for texts."""
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return {
        "projection_dim": 256,
        "vision_config": {**tower, "num_hidden_layers": layers, "image_size": SIZE, "patch_size": 8},
        "text_config": {**tower, "num_hidden_layers": layers // 2},
    }


def recipe(options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(config=shape(options.width, options.heads, options.layers)),
        data=DataConfig(train=["none"]),
        optimizer=OptimizerConfig(warmup_steps=0),
        steps=1000,
        batch_size=options.pairs,
        mixed_precision=options.precision,
        torch_compile=options.compile,
    )


def our_step(options: argparse.Namespace) -> Callable[[], float]:
    config = recipe(options)
    decisions = decide(config)
    model, processor = build_start(config.model, [], config.seed)
    train_step = TrainStep(config, decisions, *prepare(model, config, decisions), processor)
    batch = make_batch(options.pairs, SIZE, caption)
    return lambda: train_step.update(batch, 0).loss.item()


def peer_step(options: argparse.Namespace, padding: bool | str) -> Callable[[], float]:
    config = recipe(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = build_start(config.model, [], config.seed)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        peer = CLIPModel.from_pretrained(folder).train().to(device)
    told = config.optimizer
    optimizer = torch.optim.AdamW(
        peer.parameters(), lr=told.learning_rate, betas=(told.beta1, told.beta2), eps=told.epsilon, weight_decay=0.2
    )
    batch = make_batch(options.pairs, SIZE, caption)
    inputs = processor(
        images=list(batch.images.numpy()),
        text=batch.captions,
        padding=padding,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = peer(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def serve(connection: Connection, make_step: Callable[[], Callable[[], float]]) -> None:
    """Makes one step whenever asked, and answers with its seconds; until the other end hangs up."""
    step = make_step()
    try:
        while connection.recv():
            started = time.perf_counter()
            step()
            connection.send(time.perf_counter() - started)
    except EOFError:
        pass


def alternated(sides: list[Callable], runs: int) -> tuple[float, float, float]:
    """Median seconds of both sides, and of their ratio; two pairs of steps warm up (and compile) before."""
    context = multiprocessing.get_context("spawn")
    connections, processes, seconds = [], [], []
    for make_step in sides:
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(there, make_step), daemon=True))
        processes[-1].start()
        there.close()
        connections.append(here)
    for _ in range(runs + 2):
        pair = []
        for connection in connections:
            connection.send(True)
            pair.append(connection.recv())
        seconds.append(pair)
    for connection, process in zip(connections, processes, strict=True):
        connection.close()
        process.join()
    mine, other = (statistics.median(column) for column in zip(*seconds[2:], strict=True))
    return mine, other, statistics.median(theirs / ours for ours, theirs in seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4, help="of the image tower, and twice those of the text tower")
    parser.add_argument("--precision", choices=["bf16", "no"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="torch_compile for this package's step")
    options = parser.parse_args()
    print(f"{options.pairs} pairs, 65 tokens an image, {options.precision}, {torch.get_num_threads()} threads")
    for name, padding in (("the longest", True), ("77 tokens", "max_length")):
        sides = [partial(our_step, options), partial(peer_step, options, padding)]
        mine, other, ratio = alternated(sides, options.runs)
        print(
            f"peer pads to {name:12} hf_clip {mine:.3f} s   CLIPModel {other:.3f} s   {ratio:.2f} x faster", flush=True
        )


if __name__ == "__main__":
    main()
