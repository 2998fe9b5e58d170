"""The memory of a training step on a CPU beside what `hf-clip plan` says of it.

    python benchmarks/bench_plan.py --micro-batch-size 256
    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 python benchmarks/bench_plan.py --micro-batch-size 256

A small model (64 pixels) in float32 takes a first step of 8 pairs, which makes the optimizer's state, and then one of
`--pairs`. What is measured is how far the process grows above where it stood between them; what is compared is the
plan without weights and optimizer. Linux only.
"""

import argparse
import threading
import time
from functools import partial
from pathlib import Path

from batches import make_batch
from bench_batch import SIZE, distinct_caption

from hf_clip.training.build import build_start
from hf_clip.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from hf_clip.training.decisions import decide
from hf_clip.training.device import keep_freed_memory
from hf_clip.training.plan import footprint, plan_memory
from hf_clip.training.prepare import prepare
from hf_clip.training.step import TrainStep

TOWER = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
SHAPE = {
    "projection_dim": 256,
    "vision_config": {**TOWER, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
    # As long as the batch's captions are: plans take texts of full length.
    "text_config": {**TOWER, "num_hidden_layers": 2, "max_position_embeddings": 12},
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def growth(work) -> int:
    """By how many bytes the process grows at most while `work` runs."""
    start = peak = resident_bytes()
    is_over = threading.Event()

    def watch():
        nonlocal peak
        while not is_over.wait(0.005):
            peak = max(peak, resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    is_over.set()
    thread.join()
    return peak - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=64)
    options = parser.parse_args()
    config = TrainConfig(
        model=ModelConfig(config=SHAPE),
        data=DataConfig(train=["none"]),
        steps=10,
        batch_size=options.pairs,
        micro_batch_size=options.micro_batch_size,
        mixed_precision="no",
        optimizer=OptimizerConfig(warmup_steps=1),
    )
    size = options.micro_batch_size
    planned = plan_memory(config, footprint(config, "cpu"), 1, is_sharded=False, micro_batch_size=size, device="cpu")
    decisions = decide(config)
    keep_freed_memory()
    batch = partial(make_batch, pixels=SIZE, caption=distinct_caption)
    model, processor = build_start(config.model, (), config.seed)
    objective, optimizer = prepare(model, config, decisions)
    TrainStep(config, decisions, objective, optimizer, processor).update(batch(8), 0)
    # A step gives its gradients back: they are part of what grows.
    said = planned.total - planned.lines["weights"] - planned.lines["optimizer"]
    train_step = TrainStep(config, decisions, objective, optimizer, processor)
    started = time.perf_counter()
    grown = growth(lambda: train_step.update(batch(options.pairs), 1))
    seconds = time.perf_counter() - started
    print(
        f"{options.pairs} pairs in micro-batches of {size}: {grown / 1e6:,.0f} MB measured, {said / 1e6:,.0f} MB "
        f"planned, {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
