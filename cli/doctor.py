"""What is installed here, what works, and what would be fast."""

import os
import platform
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from hf_clip.training.device import arrange_for_speed, choose_precision, is_fast_at_bf16

PACKAGES = (
    "hf_clip", "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "pillow", "numpy", "ftfy",
    "datasets", "accelerate", "omegaconf", "matplotlib", "tensorboard", "torchvision",
)  # fmt: skip
NEEDED_FOR = {
    "ftfy": "cleaning of captions",
    "datasets": "training and evaluation",
    "accelerate": "training",
    "omegaconf": "training",
    "matplotlib": "plots of the model card",
}


def examine() -> dict[str, Any]:
    """Versions, devices and what training would choose there. Nothing is downloaded and no weights are loaded."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.mps.is_available():
        devices.append(torch.device("mps"))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "torchvision_works": _torchvision_works(),
        "devices": [_examine_device(device) for device in devices],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torchvision_works() -> bool | None:
    """None where it is not installed. Installed but broken, it breaks transformers' image processors."""
    if find_spec("torchvision") is None:
        return None
    try:
        import_module("torchvision")
    # A build for another torch fails in ways of its own (missing operators, missing symbols).
    except Exception:
        return False
    return True


def _examine_device(device: torch.device) -> dict[str, Any]:
    from hf_clip.model.configuration_hf_clip import HFCLIPConfig
    from hf_clip.model.modeling_hf_clip import HFCLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = HFCLIPModel(HFCLIPConfig(text_config=tower, vision_config=tower))
    arrange_for_speed(model, device)
    is_cpu = device.type == "cpu"
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads() if is_cpu else None,
        "cores": os.cpu_count() if is_cpu else None,
        "bf16_is_fast": is_fast_at_bf16(device),
        "training_precision": choose_precision("auto", device),
        "training_attention": model.config.text_config._attn_implementation,
    }


def table(findings: dict[str, Any]) -> str:
    """The findings as lines for a terminal, what is missing with what it is needed for."""
    lines = [f"python {findings['python']} on {findings['system']}", ""]
    for name, installed in findings["packages"].items():
        need = NEEDED_FOR.get(name)
        missing = f"not installed (needed for {need}: pip install {name})" if need else "not installed (optional)"
        lines.append(f"{name:18}{installed or missing}")
    if findings["torchvision_works"] is False:
        lines.append(
            "torchvision is installed but cannot be imported, which breaks transformers: pip uninstall torchvision"
        )
    for device in findings["devices"]:
        lines += ["", f"{device['device']}: {device['name']}"]
        if device["threads"] is not None:
            lines.append(f"  {device['threads']} threads on {device['cores']} cores")
        lines.append(
            f"  trains in {device['training_precision'].replace('no', 'fp32')}, "
            f"with {device['training_attention']} attention"
        )
        lines.append(f"  bf16 is {'fast' if device['bf16_is_fast'] else 'not fast'} here")
    return "\n".join(lines)


def table_of_architectures(architectures: Iterable[dict[str, Any]]) -> str:
    """Named architectures, as `read_architectures` has them, as lines of at most 80 columns."""
    lines = [
        "architecture                    image   text GFLOPs pixels tokens activation",
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
    return (
        f"{architecture['name']:30}{image_millions:7.1f}{text_millions:7.1f}"
        f"{sum(architecture['gflops'].values()):7.1f}{vision['image_size']:7}{text['max_position_embeddings']:7} "
        f"{'/'.join(activations).replace('pytorch_', '')}"
    )
