"""The demo's data and minutes, trained by OpenCLIP's parts in a plain loop: what its R@1 in the unseen style is then.

    python benchmarks/bench_demo.py --minutes 10 [--tower vit|resnet] [--seed 0] [--threads 2]

Towers, tokenizer, loss and the optimizer's settings are OpenCLIP's: AdamW of rate 5e-4, betas 0.9 and 0.98 (0.999 for
its ResNet), decay 0.2 but for gains and biases, a cosine to 0 after a warmup of 5% (of 10,000 steps as it comes, which
these minutes do not have), crops of 0.9 to 1 of an image, batches of 128, bf16 by autocast where that is fast. The
schedule follows the clock. Images are read once, before the clock starts. `make demo` is the other side.
"""

import argparse
import io
import math
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from sides import describe_machine

from hf_clip.evaluation import retrieval_metrics
from hf_clip.model.device_hf_clip import is_fast_at_bf16

RECIPE = "training/recipes/emoji.yaml"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2}
VISION = {
    "vit": {"layers": 6, "width": 192, "head_width": 64, "patch_size": 8, "image_size": 64},
    "resnet": {"layers": [1, 1, 1, 1], "width": 32, "head_width": 64, "image_size": 64},
}


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    root = Path(__file__).resolve().parents[1]
    recipe = yaml.safe_load((root / RECIPE).read_text())
    train = read(root, recipe["data"]["train"], recipe["data"]["where"], options)
    tests = {
        name: read(root, each["data"], each["where"], options)
        for name, each in recipe["evaluations"].items()
        if each.get("task") is None
    }
    # Over the stub of torchvision, where that is missing.
    sys.path.insert(0, str(root))
    from tests.helpers.peers import load_open_clip

    open_clip = load_open_clip()
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    model = open_clip.model.CLIP(256, VISION[options.tower], TEXT)
    ids = tokenizer(train[1])
    print(describe_machine("open_clip_torch"))
    steps, seconds = learn(model, open_clip.ClipLoss(), train[0], ids, options)
    print(f"OpenCLIP, {options.tower}, seed {options.seed}: {steps} steps of {options.batch_size} in {seconds:.0f} s")
    for name, (images, captions) in tests.items():
        metrics = evaluate(model, tokenizer, images, captions)["image_to_text"]
        print(f"{name}: image to text R@1 {metrics['recall_at_1']:.3f}, R@5 {metrics['recall_at_5']:.3f}")


def read(root: Path, files: list[str], where: dict, options: argparse.Namespace) -> tuple[torch.Tensor, list[str]]:
    """(N, 3, 64, 64) bytes and a caption each."""
    images, captions = [], []
    conditions = [(name, "==", value) for name, value in where.items()]
    for file in files:
        for row in pq.read_table(root / file, columns=["image", "caption"], filters=conditions).to_pylist():
            pixels = np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((64, 64)))
            images.append(torch.from_numpy(pixels).permute(2, 0, 1))
            captions.append(row["caption"])
            if options.quick and len(images) == 40:
                return torch.stack(images), captions
    return torch.stack(images), captions


def learn(model, loss_of, images, ids, options: argparse.Namespace) -> tuple[int, float]:
    """Trains until the minutes are over; steps and seconds."""
    decayed = [each for name, each in model.named_parameters() if not is_gain_or_bias(name, each)]
    others = [each for name, each in model.named_parameters() if is_gain_or_bias(name, each)]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    is_vit = options.tower == "vit"
    optimizer = torch.optim.AdamW(
        groups, lr=5e-4, betas=(0.9, 0.98 if is_vit else 0.999), eps=1e-6 if is_vit else 1e-8
    )
    draws, limit = torch.Generator().manual_seed(options.seed), options.minutes * 60
    started, step, shown = time.perf_counter(), 0, -1
    while (passed := (time.perf_counter() - started) / limit) < 1:
        for rows in torch.randperm(len(images), generator=draws).split(options.batch_size):
            passed = (time.perf_counter() - started) / limit
            if passed >= 1 or len(rows) < options.batch_size:
                break
            rate = 5e-4 * (passed / 0.05 if passed < 0.05 else (1 + math.cos(math.pi * (passed - 0.05) / 0.95)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=is_fast_at_bf16(torch.device("cpu"))):
                found = model(cropped(images[rows], draws), ids[rows])
                loss = loss_of(*found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            if int(passed * 20) > shown:
                shown = int(passed * 20)
                print(f"{passed:4.0%}  step {step}  loss {loss.item():.3f}", flush=True)
    return step, time.perf_counter() - started


def is_gain_or_bias(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name


def cropped(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """torchvision's RandomResizedCrop of 0.9 to 1 of the area, sides 3:4 to 4:3, as one sampling of the batch."""
    count = len(images)
    area = torch.rand(count, generator=draws) * 0.1 + 0.9
    ratio = torch.exp((torch.rand(count, generator=draws) * 2 - 1) * math.log(4 / 3))
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide, high
    theta[:, 0, 2] = (torch.rand(count, generator=draws) * 2 - 1) * (1 - wide)
    theta[:, 1, 2] = (torch.rand(count, generator=draws) * 2 - 1) * (1 - high)
    places = F.affine_grid(theta, list(images.shape), align_corners=False)
    pixels = F.grid_sample(images.float() / 255, places, align_corners=False, padding_mode="border")
    return normalized(pixels)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return (pixels - mean) / std


@torch.no_grad()
def evaluate(model, tokenizer, images: torch.Tensor, captions: list[str]):
    model.eval()
    image_embeds = torch.cat([model.encode_image(normalized(part.float() / 255)) for part in images.split(256)])
    text_embeds = torch.cat(
        [model.encode_text(tokenizer(captions[i : i + 256])) for i in range(0, len(captions), 256)]
    )
    model.train()
    return retrieval_metrics(image_embeds, text_embeds, list(range(len(captions))))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of training")
    parser.add_argument("--tower", choices=list(VISION), default="resnet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, help="torch's by default")
    parser.add_argument("--quick", action="store_true", help="40 images, a second")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.batch_size = 1 / 60, 16
    return options


if __name__ == "__main__":
    main()
