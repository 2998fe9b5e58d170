"""A training step: this package beside transformers' CLIPModel and OpenCLIP, alternated.

    python benchmarks/bench_step.py [--only PART] [--quick]

`small` is a ViT of 65 tokens with short captions. CLIPModel comes with its default attention (sdpa) and memory layout,
and gets texts as tokens with their mask: padded to the longest, and to 77 tokens, as transformers' example of its
training has them. `base` is ViT-B/32 with captions of web-like lengths (log-normal numbers of tokens, mean 18, cut at
77): transformers at its best (padded to the longest, eager attention, no mask), and OpenCLIP as it comes (padded to
77). `micro` is the small ViT in two micro-batches, beside the same without the first one's graph kept.

The same shapes and pairs, AdamW, the precision that is fast on the processor by autocast. Peers get images normalized;
here a step begins with bytes and captions. Each side is a process of its own, as a process's settings are part of what
is compared. Prints medians, and the median of each round's ratios.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from batches import WORDS, make_batch
from bench_embed import captions as web_captions
from sides import alternated, print_table, serve

from hf_clip.training.build import build_start
from hf_clip.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from hf_clip.training.decisions import decide
from hf_clip.training.device import keep_freed_memory
from hf_clip.training.prepare import prepare
from hf_clip.training.step import TrainStep
from hf_clip.training.stream import Batch
from hf_clip.training.texts import tokens_of

# Of each part, the sides and the pairs of a step.
PARTS = {
    "small": (("hf_clip", "CLIPModel, the longest", "CLIPModel, 77 tokens"), 256),
    "base": (("hf_clip", "CLIPModel, eager, the longest", "OpenCLIP"), 64),
    "micro": (("hf_clip", "no graph kept"), 256),
}


def short_caption(draw: random.Random, _: int) -> str:
    return f"a photo of {' '.join(draw.choices(WORDS, k=draw.randint(4, 12)))}"


def shape(width: int, heads: int, layers: int) -> dict:
    """64 patches and the class token; half as many layers for texts."""
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return {
        "projection_dim": 2 * width,
        "vision_config": {**tower, "num_hidden_layers": layers, "image_size": 64, "patch_size": 8},
        "text_config": {**tower, "num_hidden_layers": layers // 2},
    }


def recipe(options: argparse.Namespace) -> TrainConfig:
    small = shape(16, 2, 2) if options.quick else shape(128, 4, 4)
    is_base = options.only == "base" and not options.quick
    return TrainConfig(
        model=ModelConfig(architecture="ViT-B/32") if is_base else ModelConfig(config=small),
        data=DataConfig(train=["none"]),
        optimizer=OptimizerConfig(warmup_steps=0),
        steps=1000,
        batch_size=options.pairs,
        micro_batch_size=options.pairs // 2 if options.only == "micro" else None,
        mixed_precision=options.precision,
        torch_compile=options.compile,
    )


def batch_of(options: argparse.Namespace, image_size: int) -> Batch:
    texts = web_captions(options.pairs)
    caption = (lambda _, index: texts[index]) if options.only == "base" else short_caption
    return make_batch(options.pairs, image_size, caption)


def our_step(options: argparse.Namespace) -> Callable[[], float]:
    config = recipe(options)
    decisions = decide(config)
    keep_freed_memory()
    model, processor = build_start(config.model, [], config.seed)
    train_step = TrainStep(config, decisions, *prepare(model, config, decisions), processor)
    batch = batch_of(options, model.config.vision_config.image_size)
    if options.side == "hf_clip":
        return lambda: train_step.update(batch, 0).loss.item()

    def with_a_forward_more() -> float:
        """As each micro-batch, the first too, would be embedded once without and once with a graph."""
        half = slice(0, options.pairs // 2)
        texts = train_step._texts(batch, [half, slice(half.stop, options.pairs)])
        with torch.no_grad():
            train_step.objective(train_step._images(batch, half, 0.0), texts.parts[0])
        return train_step.update(batch, 0).loss.item()

    return with_a_forward_more


def peer_step(options: argparse.Namespace) -> Callable[[], float]:
    config, device = recipe(options), "cuda" if torch.cuda.is_available() else "cpu"
    precision = decide(config).precision
    model, processor = build_start(config.model, [], config.seed)
    batch = batch_of(options, model.config.vision_config.image_size)
    tokens = tokens_of(processor, batch.captions, None)
    pixels = processor(images=list(batch.images.numpy()), return_tensors="pt")["pixel_values"].to(device)
    longest, length = int(tokens.lengths.max()), model.config.text_config.max_position_embeddings
    padded = torch.zeros(options.pairs, longest if options.side.endswith("the longest") else length, dtype=torch.long)
    padded[:, :longest] = tokens.input_ids
    loss_of = open_clip_loss if options.side == "OpenCLIP" else clip_model_loss
    peer, loss_of = loss_of(options, model.config, pixels, padded.to(device))
    told = config.optimizer
    optimizer = torch.optim.AdamW(
        peer.train().to(device).parameters(),
        lr=told.learning_rate,
        betas=(told.beta1, told.beta2),
        eps=told.epsilon,
        weight_decay=0.2,
    )

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def clip_model_loss(options: argparse.Namespace, config, pixels: torch.Tensor, ids: torch.Tensor):
    """transformers' model, and a function of its loss."""
    from transformers import CLIPConfig, CLIPModel

    towers = {name: getattr(config, name).to_dict() for name in ("vision_config", "text_config")}
    theirs = CLIPConfig(projection_dim=config.projection_dim, **towers)
    peer = CLIPModel._from_config(theirs, attn_implementation="eager" if "eager" in options.side else "sdpa")
    # Behind the end token, which is the first of its id, nothing counts.
    has_ended = (ids == config.text_config.eos_token_id).cumsum(1).cumsum(1) > 1
    mask = None if "eager" in options.side else (~has_ended & (ids > 0)).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "return_loss": True}
    return peer, lambda: peer(**inputs).loss


def open_clip_loss(options: argparse.Namespace, config, pixels: torch.Tensor, ids: torch.Tensor):
    """OpenCLIP's model, and a function of its loss as its trainer has it."""
    open_clip: ModuleType = load_open_clip()
    if options.quick:
        tower = {"layers": 2, "width": 16}
        vision, text = {**tower, "head_width": 8, "patch_size": 8, "image_size": 64}, {**tower, "heads": 2}
        peer = open_clip.model.CLIP(32, vision, text)
    else:
        peer = open_clip.create_model("ViT-B-32-quickgelu")
    loss_of = open_clip.ClipLoss()
    return peer, lambda: loss_of(*peer(pixels, ids))


def load_open_clip() -> ModuleType:
    # Over the stub of torchvision, where that is missing.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.helpers.peers import load_open_clip

    return load_open_clip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, help="of a step; by default 256, and 64 for ViT-B/32")
    parser.add_argument("--precision", choices=["auto", "bf16", "no"], default="auto")
    parser.add_argument("--compile", action="store_true", help="torch_compile for this package's step")
    parser.add_argument("--quick", action="store_true", help="four pairs of a tiny model, two sides, one round")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        is_ours = options.side in ("hf_clip", "no graph kept")
        step = our_step(options) if is_ours else peer_step(options)
        step()
        if options.compile:
            # Other shapes are compiled again.
            step()
        return serve(step)
    for part, (names, pairs) in PARTS.items():
        if options.only not in (None, part):
            continue
        pairs = options.pairs or (4 if options.quick else pairs)
        shared = ["--only", part, "--pairs", str(pairs), "--precision", options.precision]
        shared += [f"--{name}" for name in ("compile", "quick") if getattr(options, name)]
        # One peer at a time: three of ViT-B/32's steps want 20 GB.
        for peer in names[1 : 2 if options.quick else None]:
            sides = {name: [__file__, "--side", name, *shared] for name in (names[0], peer)}
            print_table(f"{part}, {pairs} pairs", alternated(sides, 1 if options.quick else options.runs))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
