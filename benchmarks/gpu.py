"""What an NVIDIA GPU gives: correctness first, then speed beside transformers and OpenCLIP, in one table.

    python benchmarks/gpu.py [--only PART ...] [--quick]

Parts: losses (both, float32 on the device beside float64 on the CPU, and bf16 products), attention (eager and sdpa
beside the CPU), steps (a short run in fp32, bf16 and fp16, resumed exactly, and by DDP in one process), embed (images,
texts and labels beside the CPU), inference (images/s, eager and compiled), training (pairs/s of a step, texts padded
and in chunks of like length), memory (the contrastive loss at large batches, beside plain cross entropy and memeff),
copies (from pinned and pageable memory). Peers that are not installed are skipped with a line; `gpu_wheels.py` brings
them to a machine without a network. `--quick` runs every part at its smallest size, on a CPU too. A part that fails is
named at the end, and the exit code is 1.
"""

import argparse
import copy
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gpu_wheels

# Before anything that the wheels bring.
UNPACKED = gpu_wheels.unpack()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

from bench_embed import captions as web_captions  # noqa: E402

from hf_clip import (  # noqa: E402
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPTokenizer,
    ZeroShotClassifier,
    contrastive_loss,
    embed_images,
    embed_texts,
    sigmoid_loss,
)
from hf_clip.training.texts import StepTexts, texts_of_step, tokens_of  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
CAPTIONS = ["a photo of a red apple", "two dogs on a beach", "the moon over a dark wooden house near a lake", "a cat"]


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """The median seconds of a call, after two that warm up."""
    times = []
    for index in range(repeats + 2):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        if index > 1:
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    found, exact = found.double().cpu(), exact.double().cpu()
    return ((found - exact).norm() / exact.norm()).item()


def check(name: str, value: float, limit: float) -> None:
    print(f"  {name:62}{value:12.2e}   limit {limit:.0e}")
    if not value <= limit:
        raise AssertionError(f"{name}: {value} is above {limit}.")


def losses(quick: bool) -> None:
    pairs, width = (64, 32) if quick else (4096, 512)
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(pairs, width, generator=generator), dim=-1) for _ in range(2))
    ids = torch.arange(pairs) // 2
    for name, loss, extra in (
        ("contrastive_loss", contrastive_loss, {}),
        ("contrastive_loss, pairs of equal concept_ids", contrastive_loss, {"concept_ids": ids}),
        ("sigmoid_loss", sigmoid_loss, {"logit_bias": torch.tensor(-10.0)}),
    ):
        results = []
        for device, dtype in ((torch.device("cpu"), torch.float64), (DEVICE, torch.float32)):
            leaves = [each.to(device, dtype, copy=True).requires_grad_() for each in (image, text)]
            scale = torch.tensor(20.0, device=device, dtype=dtype)
            options = {key: value.to(device) for key, value in extra.items()}
            value = loss(*leaves, scale, **options)
            value.backward()
            results.append([value.detach(), *(leaf.grad for leaf in leaves)])
        worst = max(relative_error(found, exact) for exact, found in zip(*results, strict=True))
        check(f"{name}, {pairs} pairs: value and gradients", worst, 1e-4)
    _half_products(image, text)


def _half_products(image: torch.Tensor, text: torch.Tensor) -> None:
    gradients = []
    for products in ("float32", "bfloat16"):
        leaves = [each.to(DEVICE, copy=True).requires_grad_() for each in (image, text)]
        contrastive_loss(*leaves, torch.tensor(20.0, device=DEVICE), products=products).backward()
        gradients.append(torch.cat([leaf.grad for leaf in leaves]))
    check("bf16 products: gradients beside float32's", relative_error(gradients[1], gradients[0]), 2e-2)


def vit_b_32(quick: bool) -> HFCLIPModel:
    torch.manual_seed(0)
    config = HFCLIPConfig.from_architecture("ViT-B/32")
    if quick:
        for tower in (config.text_config, config.vision_config):
            tower.num_hidden_layers = 1
    return HFCLIPModel(config).eval()


def inputs_of(count: int) -> dict[str, torch.Tensor]:
    tokens = HFCLIPTokenizer()([CAPTIONS[i % len(CAPTIONS)] for i in range(count)], padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": tokens["input_ids"], "pixel_values": torch.randn(count, 3, 224, 224, generator=generator)}


def attention(quick: bool) -> None:
    model, inputs = vit_b_32(quick), inputs_of(4)
    with torch.inference_mode():
        exact = model.encode_image(inputs["pixel_values"]), model.encode_text(inputs["input_ids"])
        for dtype, limit in ((torch.float32, 2e-3), (torch.bfloat16, 5e-2)):
            one = copy.deepcopy(model).to(DEVICE, dtype)
            for implementation in ("eager", "sdpa"):
                one.set_attn_implementation(implementation)
                image = one.encode_image(inputs["pixel_values"].to(DEVICE, dtype))
                text = one.encode_text(inputs["input_ids"].to(DEVICE))
                worst = max(relative_error(image, exact[0]), relative_error(text, exact[1]))
                check(f"{implementation}, {str(dtype)[6:]}: unit embeddings beside the CPU's float32", worst, limit)


def steps(quick: bool) -> None:
    count = 4 if quick else 40
    for precision in ("no", "bf16", "fp16"):
        if precision == "fp16" and not CUDA:
            print("  fp16: skipped, it needs a GPU")
            continue
        with tempfile.TemporaryDirectory() as folder:
            whole = _losses_of_a_run(Path(folder, "whole"), precision, count)
            resumed = _losses_of_a_run(Path(folder, "resumed"), precision, count, is_cut=True)
            if precision == "no":
                by_ddp = _losses_of_a_run(Path(folder, "ddp"), precision, count, launcher=LAUNCHER)
                check("DDP of one process: losses", _largest_difference(by_ddp, whole), 2e-2)
        assert quick or whole[-1] < whole[0], f"{precision}: the loss rose from {whole[0]} to {whole[-1]}."
        print(f"  {precision}: loss {whole[0]:.3f} to {whole[-1]:.3f} in {count} steps")
        check(f"{precision}: losses after resuming", _largest_difference(resumed, whole), 2e-2)


def _largest_difference(losses: list[float], others: list[float]) -> float:
    return max(abs(one - other) / other for one, other in zip(losses, others, strict=True))


def _losses_of_a_run(
    run: Path, precision: str, steps: int, is_cut: bool = False, launcher: tuple[str, ...] = ()
) -> list[float]:
    """The loss of every step of a short run of the emoji recipe; `is_cut` resumes it from its middle."""
    values = {
        "steps": steps,
        "mixed_precision": f"'{precision}'",
        "batch_size": 64,
        "log_every": 1,
        "optimizer.warmup_steps": 2,
        "checkpoints.save_every": steps // 2,
        "evaluations": "{}",
    }
    command = [sys.executable, *launcher, "-m", "hf_clip", "train", "--output-dir", str(run)]
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    _run([*command, "--recipe", "emoji", *settings])
    if is_cut:
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{steps}")
        (run / "results.json").unlink()
        _run([*command, "--resume"])
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def _run(command: list[str]) -> None:
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-1500:]}")


def embed(quick: bool) -> None:
    model = vit_b_32(quick)
    processor = HFCLIPProcessor(HFCLIPImageProcessor(), HFCLIPTokenizer())
    images = [Image.new("RGB", (300, 240), color) for color in ("red", "green", "blue")]
    results = []
    for device in (torch.device("cpu"), DEVICE):
        model.to(device)
        classifier = ZeroShotClassifier(model, processor, CAPTIONS, dtype=None, cache=False)
        found = embed_images(model, processor, images, dtype=None), embed_texts(model, processor, CAPTIONS, dtype=None)
        results.append((*found, classifier.class_embeddings.cpu()))
    for name, exact, found in zip(("embed_images", "embed_texts", "labels"), *results, strict=True):
        assert found.device.type == "cpu" and found.dtype == torch.float32
        check(f"{name} on {DEVICE.type} beside the CPU", relative_error(found, exact), 2e-3)


def peers(quick: bool) -> dict[str, torch.nn.Module]:
    """ViT-B/32 of each package, random weights."""
    models: dict[str, torch.nn.Module] = {"hf_clip": vit_b_32(quick)}
    config = transformers.CLIPConfig()
    if quick:
        config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    models["transformers"] = transformers.CLIPModel(config).eval()
    try:
        from tests.helpers.peers import load_open_clip

        model = load_open_clip().create_model("ViT-B-32").eval()
        if quick:
            for tower in (model, model.visual):
                del tower.transformer.resblocks[1:]
        models["OpenCLIP"] = model
    except Exception as error:
        print(f"  OpenCLIP is skipped: {type(error).__name__}: {str(error)[:80]}")
    return models


def encoder_of(name: str, model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if name == "transformers":
        return lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output
    return model.encode_image


def inference(quick: bool) -> None:
    batch, repeats = (2, 1) if quick else (256, 15)
    dtype = torch.bfloat16 if CUDA else torch.float32
    pixels = torch.randn(batch, 3, 224, 224, device=DEVICE, dtype=dtype)
    for name, model in peers(quick).items():
        model.to(DEVICE, dtype)
        encode = encoder_of(name, model)
        for mode in ("eager", "compiled"):
            if mode == "compiled" and not CUDA:
                continue
            run = encode if mode == "eager" else torch.compile(encode)
            with torch.inference_mode():
                seconds = seconds_of(lambda run=run: run(pixels), repeats)
            print(f"  {name:14}{mode:10}{str(dtype)[6:]}, {batch} images: {batch / seconds:12,.0f} images/s")
        del model


def training(quick: bool) -> None:
    """A step of ViT-B/32 with web-like captions, from pixels and ids that lie on the device."""
    for pairs in (4,) if quick else (1024, 4096):
        tokens = tokens_of(HFCLIPProcessor(HFCLIPImageProcessor(), HFCLIPTokenizer()), web_captions(pairs), None)
        pixels = torch.randn(pairs, 3, 224, 224, device=DEVICE, dtype=torch.bfloat16 if CUDA else torch.float32)
        padded = F.pad(tokens.input_ids, (0, 77 - tokens.input_ids.shape[1])).to(DEVICE)
        longest, chunks = tokens.input_ids.to(DEVICE), texts_of_step(tokens, 1, DEVICE)
        for name, model in peers(quick).items():
            model.to(DEVICE).train()
            optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=CUDA)
            ways: dict[str, Callable[[], tuple]] = {
                "hf_clip": {
                    "like length": partial(our_embeds, model, pixels, chunks),
                    "padded to the longest": partial(joint_embeds, model, pixels, longest),
                },
                "transformers": {"padded to the longest": partial(joint_embeds, model, pixels, longest)},
                "OpenCLIP": {"padded to 77": partial(open_clip_embeds, model, pixels, padded)},
            }[name]
            for way, embeds in ways.items():
                for mode in ("eager", "compiled") if CUDA else ("eager",):
                    _time_steps(f"{name}, {way}, {mode}", mode, pairs, embeds, optimizer, quick)
            model.cpu()
            if CUDA:
                torch.cuda.empty_cache()


def our_embeds(model: HFCLIPModel, pixels: torch.Tensor, texts: StepTexts) -> tuple:
    """Unit embeddings of a step as training computes it: texts in chunks of like length, in the order of the pairs."""
    [chunks] = texts.parts
    text = torch.cat([model.encode_text(**chunk) for chunk in chunks])
    return model.encode_image(pixels), text[texts.places], model.logit_scale.exp()


def joint_embeds(model: torch.nn.Module, pixels: torch.Tensor, ids: torch.Tensor) -> tuple:
    output = model(input_ids=ids, pixel_values=pixels)
    return output.image_embeds, output.text_embeds, model.logit_scale.exp()


def open_clip_embeds(model: torch.nn.Module, pixels: torch.Tensor, ids: torch.Tensor) -> tuple:
    return model(pixels, ids)[:3]


def _time_steps(name: str, mode: str, pairs: int, embeds: Callable, optimizer, quick: bool) -> None:
    run = torch.compile(embeds) if mode == "compiled" else embeds
    loss_of = contrastive_loss if name.startswith("hf_clip") else plain_loss

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            image, text, scale = run()
        loss_of(image.float(), text.float(), scale.reshape(())).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(step, 1 if quick else 8)
    peak = f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if CUDA else ""
    print(
        f"  {name:46}{'autocast bf16' if CUDA else 'float32'}, {pairs} pairs: {pairs / seconds:10,.0f} pairs/s{peak}",
        flush=True,
    )


def plain_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits, labels = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def memory(quick: bool) -> None:
    methods = {
        "contrastive_loss": contrastive_loss,
        "contrastive_loss, bf16 products": partial(contrastive_loss, products="bfloat16"),
        "cross entropy": plain_loss,
    }
    if CUDA:
        try:
            from memeff import MemoryEfficientCLIPLoss
        except Exception as error:
            print(f"  memeff is skipped: {type(error).__name__}: {str(error)[:80]}")
        else:
            # Its temperature is the inverse of the scale of 50 that all have here.
            theirs = MemoryEfficientCLIPLoss(temperature=1 / 50, normalized_inputs=True)
            methods["memeff (Triton)"] = lambda image, text, scale: theirs(image, text)
    for pairs in (128,) if quick else (32768, 65536):
        for name, loss in methods.items():
            leaves = [F.normalize(torch.randn(pairs, 512, device=DEVICE), dim=-1).requires_grad_() for _ in range(2)]
            scale = torch.tensor(50.0, device=DEVICE)
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() if CUDA else 0

            def run(loss=loss, leaves=leaves, scale=scale):
                loss(*leaves, scale).backward()
                for leaf in leaves:
                    leaf.grad = None

            seconds = seconds_of(run, 1 if quick else 3)
            over = f", {(torch.cuda.max_memory_allocated() - held) / 1e9:6.2f} GB over its inputs" if CUDA else ""
            print(f"  {name:34}{pairs:6} pairs: {seconds * 1e3:10,.1f} ms{over}", flush=True)
            del leaves


def copies(quick: bool) -> None:
    """A batch of bytes to the device, as a loader hands it over."""
    batch = torch.randint(0, 256, (4 if quick else 1024, 3, 224, 224), dtype=torch.uint8)
    ways = {"pageable": batch, **({"pinned": batch.pin_memory()} if CUDA else {})}
    for name, source in ways.items():
        seconds = seconds_of(lambda source=source: source.to(DEVICE, non_blocking=True, copy=True), 1 if quick else 9)
        print(f"  {name:12}{len(batch)} images of 224 x 224, bytes: {batch.nbytes / seconds / 1e9:8.1f} GB/s")


PARTS = {part.__name__: part for part in (losses, attention, steps, embed, inference, training, memory, copies)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="the smallest size of each part, on a CPU too")
    options = parser.parse_args()
    if not CUDA and not options.quick:
        print("There is no CUDA device here: --quick runs the script at its smallest size on a CPU.", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_name() if CUDA else platform.processor() or "CPU"
    print(
        f"{device}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )
    failed = []
    for name in options.only:
        print(f"{name}:", flush=True)
        started = time.perf_counter()
        try:
            PARTS[name](options.quick)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            failed.append(name)
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all parts passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
