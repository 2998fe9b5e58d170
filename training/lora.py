"""Low-rank adapters by PEFT within a model that trains: put on, taken off for a while, merged for a while, saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .config import TrainConfig
from .layer_groups import TOWERS, batch_norms, tower_groups, tower_layers
from .lora_config import LoraConfig
from .recipe_error import RecipeError

ADAPTERS = "adapters"
_ADAPTER = "default"
# What PEFT's files have before the names of a model's modules.
_WRAPPER = "base_model.model."


def put_on_adapters(model: HFCLIPModel, config: LoraConfig, seed: int) -> None:
    """Puts new adapters on the modules that the recipe names, and freezes all else. They change nothing yet.

    Raises:
        RecipeError: no module has such a name; PEFT is not installed.
    """
    peft = _import_peft()
    names = target_names(model, config)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(settings, model, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapters(name))


def target_names(model: HFCLIPModel, config: LoraConfig) -> list[str]:
    """The modules that get an adapter. Raises RecipeError for a target of which there is none."""
    trunks = {"vision_tower": "vision_model", "text_tower": "text_model"}
    inside = {
        module
        for tower in config.towers
        for layer in tower_layers(getattr(model, trunks[tower]))
        for module in layer.modules()
    }
    # Weights that torch's own attention takes are read past their module's forward, and past an adapter.
    read = {child for each in model.modules() if isinstance(each, nn.MultiheadAttention) for child in each.children()}
    parts = tuple(f"{trunks[tower]}." for tower in config.towers)
    possible = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(parts) and isinstance(module, nn.Linear | nn.Conv2d) and module not in read
    }
    if config.targets is None:
        found = [name for name, each in possible.items() if isinstance(each, nn.Linear) and each in inside]
        if not found:
            raise RecipeError("lora.targets=null takes linear layers, and the towers have none: name some modules.")
        return found
    for target in config.targets:
        if not any(f".{name}".endswith(f".{target}") for name in possible):
            ends = sorted({name.rpartition(".")[2] for name in possible})
            raise RecipeError(
                f"lora.targets: no module of {' and '.join(config.towers)} ends in {target!r}: there are "
                f"{', '.join(ends)}."
            )
    return [name for name in possible if any(f".{name}".endswith(f".{target}") for target in config.targets)]


def frozen_by_adapters(model: HFCLIPModel, config: LoraConfig) -> list[nn.Module]:
    """What must not notice that there is training: towers without adapters, and the statistics of batch norms."""
    towers = [tower for tower in TOWERS if tower not in config.towers]
    modules = [module for tower in towers for group in tower_groups(model, tower) for module in group]
    return [*modules, *batch_norms(model)]


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise RecipeError(f"lora needs PEFT, which is not installed ({error}): pip install peft") from error
    return peft


def _is_adapters(name: str) -> bool:
    return ".lora_" in name


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of all adapters by their names in the model; empty without adapters."""
    return {name: each.detach() for name, each in model.named_parameters() if _is_adapters(name)}


@torch.no_grad()
def load_adapter_tensors(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Puts tensors of `adapter_tensors` back."""
    for name, parameter in model.named_parameters():
        if _is_adapters(name):
            parameter.copy_(tensors[name])


def _adapted(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name in it, layer) of every module that has an adapter."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "base_layer") and hasattr(child, "lora_A")
    ]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model that the adapters were put on, within the block."""
    adapted = _adapted(model)
    for parent, name, layer in adapted:
        setattr(parent, name, layer.base_layer)
    try:
        yield
    finally:
        for parent, name, layer in adapted:
            setattr(parent, name, layer)


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """The model with its adapters merged into its weights, within the block; behind it every bit is as before."""
    adapted = _adapted(model)
    own = []
    with torch.no_grad():
        for _, _, layer in adapted:
            weight = layer.base_layer.weight
            own.append(weight.clone())
            weight.add_(layer.get_delta_weight(_ADAPTER))
    try:
        with without_adapters(model):
            yield
    finally:
        with torch.no_grad():
            for (_, _, layer), weight in zip(adapted, own, strict=True):
                layer.base_layer.weight.copy_(weight)


def save_adapters(tensors: dict[str, torch.Tensor], model_class: str, config: TrainConfig, folder: Path) -> None:
    """Writes a folder that PEFT, and `load`, take: `adapter_tensors`, with the name of what they belong on."""
    lora = config.lora
    assert lora is not None
    peft = _import_peft()
    names = sorted({name.partition(".lora_")[0] for name in tensors})
    folder.mkdir()
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        base_model_name_or_path=config.model.start_from,
        inference_mode=True,
    )
    settings.auto_mapping = {"base_model_class": model_class, "parent_library": "hf_clip"}
    settings.save_pretrained(str(folder))
    contents = {
        f"{_WRAPPER}{name.replace(f'.{_ADAPTER}.', '.')}": tensor.contiguous().cpu()
        for name, tensor in tensors.items()
    }
    save_file(contents, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(_CARD.format(base=config.model.start_from), encoding="utf-8")


_CARD = """---
base_model: {base}
library_name: peft
tags: [lora, clip, hf_clip]
---

# Adapters of a CLIP

Low-rank adapters that hf_clip trained on `{base}`:

```python
from hf_clip import load

model, processor = load("this folder or repository")
```
"""
