"""`hf-clip doctor`: what is installed, what works, what would be fast. It answers whatever is missing or broken."""

import argparse
import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .arguments import add_verb, check_model
from .arguments import device as device_type
from .main import DONE, FAILED
from .usage import UsageError, one_line, start_library

PACKAGES = (
    "hf_clip", "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "pillow", "numpy", "ftfy",
    "datasets", "accelerate", "matplotlib", "tensorboard", "torchvision", "scikit-learn", "peft", "lancedb", "fastapi",
    "onnxruntime", "openvino", "ray", "sacrebleu",
)  # fmt: skip
NEEDED_FOR = {
    "ftfy": "cleaning of captions",
    "datasets": "training and evaluation",
    "accelerate": "training",
    "matplotlib": "plots of the model card",
    "scikit-learn": "linear probes",
    "peft": "adapters (LoRA)",
    "lancedb": "search",
    "fastapi": "hf-clip serve",
    "onnxruntime": "export to ONNX",
    "openvino": "export to OpenVINO",
    "ray": "search on several machines",
    "sacrebleu": "scores of captions",
}
# The extra of hf_clip that brings a package, where one does.
EXTRAS = {"scikit-learn": "eval", "lancedb": "search", "fastapi": "app", "onnxruntime": "export", "openvino": "export"}
EXTRAS |= {"ray": "ray", "sacrebleu": "captions"}
# Modules that fail in ways of their own where two packages do not fit together, in an order that blames the cause.
MODULES = ("numpy", "torch", "torchvision", "transformers.modeling_utils", "hf_clip")
FIXES = {
    "torchvision": "it is optional: pip uninstall torchvision, or install the one for this torch",
    "transformers.modeling_utils": "pip install --force-reinstall transformers",
    "torch": "https://pytorch.org/get-started has the command for this machine",
    "numpy": "pip install --force-reinstall numpy",
}


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "doctor",
        run,
        "what is installed, what works, what would be fast",
        "hf-clip doctor",
        prints_results=True,
    )
    parser.add_argument("--model", help="run eight texts and images on the device and on the CPU, and compare")
    parser.add_argument("--device", type=device_type, help="of --model: cpu, cuda, mps, ... (default: the fastest)")
    together = "of a launcher's processes: do they reach each other, how fast, with what clocks and versions"
    parser.add_argument("--distributed", action="store_true", help=together)
    parser.add_argument("--json", action="store_true", help="print JSON, for bug reports")
    parser.add_argument(
        "--architectures", action="store_true", help="the architectures that can be named, with their sizes"
    )


def run(options: argparse.Namespace) -> int:
    if options.distributed:
        return check_distributed(options.json)
    if options.model is not None:
        return check_model_on_device(options)
    if options.architectures:
        architectures = read_architectures()
        print(json.dumps(architectures, indent=2) if options.json else table_of_architectures(architectures))
    else:
        findings = examine()
        print(json.dumps(findings, indent=2) if options.json else table(findings))
    return 0


def check_distributed(as_json: bool) -> int:
    """Prints, on the first process, what `check_processes` finds."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UsageError(
            "--distributed is for several processes: torchrun --nproc-per-node 2 -m hf_clip doctor --distributed."
        )
    start_library()
    from hf_clip.training.check_processes import check_processes

    found = check_processes()
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found.to_dict(), indent=2) if as_json else found.report())
    return FAILED if found.problems else DONE


def check_model_on_device(options: argparse.Namespace) -> int:
    """Prints the largest differences between a model's embeddings on a device and on the CPU, and a verdict."""
    check_model(options.model)
    start_library()
    from hf_clip.model.device_check_hf_clip import compare_with_cpu

    from .models import open_model, usable_device

    model, processor = open_model(options.model, usable_device(options.device), {})
    check = compare_with_cpu(model, processor)
    print(json.dumps(asdict(check) | {"is_passed": check.is_passed}, indent=2) if options.json else check)
    return DONE if check.is_passed else FAILED


def read_architectures() -> list[dict[str, Any]]:
    """All published architectures, sorted by name, read without the library."""
    folder = Path(__file__).parents[1] / "hf_clip/assets/architectures"
    files = sorted(folder.glob("*.json"), key=lambda file: _parts(file.stem))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _parts(name: str) -> list[str | int]:
    """A key by which RN50x4 comes before RN50x16: words at even places, whole numbers at odd ones."""
    parts = re.split(r"(\d+)", re.sub(r"[^a-z0-9]+", "", name.lower()))
    return [int(part) if part.isdecimal() else part for part in parts]


def examine() -> dict[str, Any]:
    """Versions, broken packages, devices and what training would choose there.

    Nothing is downloaded and no weights are loaded.
    """
    broken = _broken_modules()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "broken": broken,
        "torchvision_works": "torchvision" not in broken
        if _version("torchvision") or "torchvision" in broken
        else None,
        "devices": [] if "torch" in broken else _examine_devices("hf_clip" not in broken),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _broken_modules() -> dict[str, str]:
    """Why each of MODULES cannot be imported. An optional one that is not installed is not broken."""
    broken = {}
    for name in MODULES:
        try:
            import_module(name)
        # A build for another torch fails in ways of its own: missing operators, missing symbols.
        except Exception as error:
            if getattr(error, "name", None) != "torchvision" or name != "torchvision":
                broken[name] = one_line(error)[:300]
    return broken


def _examine_devices(has_library: bool) -> list[dict[str, Any]]:
    import torch

    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.mps.is_available():
        devices.append(torch.device("mps"))
    return [_examine_device(device, has_library) for device in devices]


def _examine_device(device, has_library: bool) -> dict[str, Any]:
    import torch

    is_cpu, is_cuda = device.type == "cpu", device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine()
    found = {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads() if is_cpu else None,
        "cores": os.cpu_count() if is_cpu else None,
        "bf16_is_fast": None,
        "training_precision": None,
        "training_attention": None,
    }
    if has_library:
        try:
            found |= _examine_training(device)
        # A device may be there and out of memory, or its driver too old.
        except Exception as error:
            found["problem"] = one_line(error)[:300]
    return found


def _examine_training(device) -> dict[str, Any]:
    from hf_clip.model.configuration_hf_clip import HFCLIPConfig
    from hf_clip.model.device_hf_clip import is_fast_at_bf16
    from hf_clip.model.modeling_hf_clip import HFCLIPModel
    from hf_clip.training.device import arrange_for_speed, choose_precision

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = HFCLIPModel(HFCLIPConfig(text_config=tower, vision_config=tower))
    precision = choose_precision("auto", device)
    arrange_for_speed(model, device, precision)
    return {
        "bf16_is_fast": is_fast_at_bf16(device),
        "training_precision": precision,
        "training_attention": model.config.text_config._attn_implementation,
    }


def table(findings: dict[str, Any]) -> str:
    """The findings as lines for a terminal, what is missing with what it is needed for."""
    lines = [f"python {findings['python']} on {findings['system']}", ""]
    for name, installed in findings["packages"].items():
        need = NEEDED_FOR.get(name)
        install = f"'hf_clip[{EXTRAS[name]}]'" if name in EXTRAS else name
        missing = f"not installed (needed for {need}: pip install {install})" if need else "not installed (optional)"
        lines.append(f"{name:18}{installed or missing}")
    if findings["broken"]:
        lines.append("")
    for name, reason in findings["broken"].items():
        lines.append(f"{name} cannot be imported: {reason}")
        if name in FIXES:
            lines.append(f"  fix: {FIXES[name]}")
    for device in findings["devices"]:
        lines += ["", f"{device['device']}: {device['name']}"]
        if device["threads"] is not None:
            lines.append(f"  {device['threads']} threads on {device['cores']} cores")
        if device["training_precision"] is None:
            lines.append(f"  not tried: {device.get('problem', 'hf_clip cannot be imported')}")
            continue
        lines.append(
            f"  trains in {device['training_precision'].replace('no', 'fp32')}, "
            f"with {device['training_attention']} attention"
        )
        lines.append(f"  bf16 is {'fast' if device['bf16_is_fast'] else 'not fast'} here")
    return "\n".join(lines)


def table_of_architectures(architectures: Iterable[dict[str, Any]]) -> str:
    """Named architectures, as `read_architectures` has them, as lines of at most 80 columns."""
    lines = [
        "architecture                     image  text GFLOPs pixels tokens activation",
        *map(_row, architectures),
        "",
        "image, text: millions of parameters of a tower with its projection.",
        "GFLOPs: one image and one text forward, two operations to a multiply-add.",
        "activation: of both towers, or the image tower's first.",
    ]
    return "\n".join(lines)


def _row(architecture: dict[str, Any]) -> str:
    vision, text = architecture["config"]["vision_config"], architecture["config"]["text_config"]
    image_millions, text_millions = (architecture["parameters"][tower] / 1e6 for tower in ("image", "text"))
    # A ResNet names none: its layers have ReLU.
    activations = dict.fromkeys([vision.get("hidden_act", text["hidden_act"]), text["hidden_act"]])
    # The longest names leave what they need of their column to the sizes of small towers.
    image = _in_column(image_millions, 38 - len(architecture["name"]))
    return (
        f"{architecture['name']}{image}{_in_column(text_millions, 6)}"
        f"{sum(architecture['gflops'].values()):7.1f}{vision['image_size']:7}{text['max_position_embeddings']:7} "
        f"{'/'.join(activations).replace('pytorch_', '')}"
    )


def _in_column(millions: float, width: int) -> str:
    """Thousands of millions need no decimal, and the column has no place for one."""
    return f"{millions:{width}.{0 if millions >= 1000 else 1}f}"
