"""Whether weights are those of a config, before anything of a size that the config names is made.

A config comes from a stranger, and a number in it costs nothing to write: three hundred million classes, a million
layers. The names and shapes of the weights, which are read first and cost what they are long, bound what it may ask.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig
from hf_clip.model.modeling_coca_hf_clip import HFCLIPCoCaModel
from hf_clip.model.modeling_hf_clip import HFCLIPModel, HFCLIPSiglipModel
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn

from .errors import ConversionError
from .safe_torch.weights import WeightsFile

# Of classes, whose names transformers makes where a config has none.
_MAX_LABELS = 50_000
_MAX_LAYERS = 100_000
_LAYER_COUNT = re.compile(r"(num|n)_\w*(layers?|blocks?|stages?)|layers|\w*depths?")
# Bases of positions and the like are not sizes; a list of so many numbers takes no memory to speak of.
_ALWAYS_ALLOWED = 2**20
# A text tower of transformers is made with its decoder, which its weights lack: four times as many are allowed.
_PARAMETERS_PER_TENSOR = 8
_SPARE_PARAMETERS = 200
_MAX_PARAMETERS = 20_000


def refuse_absurd_counts(settings: Mapping[str, Any], file: Path) -> None:
    """Raises ConversionError for numbers of which transformers makes lists when it reads a config, weights or not."""
    for name, value in _numbers(settings):
        key = name.rpartition(".")[2]
        limit = _MAX_LABELS if key == "num_labels" else _MAX_LAYERS if _LAYER_COUNT.fullmatch(key) else None
        if limit is not None and value > limit:
            raise ConversionError(f"{file}: {name}={value} is more than any model has (at most {limit}).")


def refuse_unconfirmed_counts(settings: Mapping[str, Any], weights: WeightsFile, file: Path) -> None:
    """Raises ConversionError for numbers in the settings of `file` that these weights cannot bear out.

    A layer has a tensor at least, and an axis of a tensor no more elements than all weights together.
    """
    tensors = len(weights.tensors)
    elements = sum(tensor.numel() for tensor in weights.tensors.values())
    for name, value in _numbers(settings):
        key = name.rpartition(".")[2]
        limit, of = max(elements, _ALWAYS_ALLOWED), "numbers"
        if _LAYER_COUNT.fullmatch(key):
            limit, of = tensors, "tensors"
        if value > limit:
            raise ConversionError(
                f"{file}: {name}={value} is more than the weights hold, which are {tensors} tensors of {elements} "
                f"numbers (at most {limit} {of}): they belong to another model, or the file was changed."
            )


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers with their dotted names, but for ids of special tokens; of a list of them, the sum."""
    waiting: list[tuple[str, Any]] = [("", settings)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, list):
            yield name, sum(item for item in value if type(item) is int)
            waiting.extend((name, item) for item in value if type(item) in (dict, list))
            continue
        for key, item in value.items():
            if type(item) is int and not key.endswith("_id"):
                yield f"{name}.{key}" if name else key, item
            elif key in ("id2label", "label2id") and isinstance(item, dict):
                yield f"{name}.num_labels" if name else "num_labels", len(item)
            elif type(item) in (dict, list):
                waiting.append((f"{name}.{key}" if name else key, item))


def class_of(config: HFCLIPConfig) -> type[HFCLIPModel]:
    """The model's class, by its loss and what it writes."""
    if isinstance(config, HFCLIPCoCaConfig):
        return HFCLIPCoCaModel
    return HFCLIPSiglipModel if isinstance(config, HFCLIPSiglipConfig) else HFCLIPModel


def expected_tensors(config: HFCLIPConfig, weights: WeightsFile) -> dict[str, torch.Tensor]:
    """The state dict of a model of this config, on the meta device.

    Raises:
        ConversionError: where the model has many times the tensors of the weights.
    """
    limit = min(_PARAMETERS_PER_TENSOR * len(weights.tensors) + _SPARE_PARAMETERS, _MAX_PARAMETERS)
    with _at_most_parameters(limit, len(weights.tensors)), torch.device("meta"), NothingDrawn():
        return class_of(config)(config).state_dict()


@contextmanager
def _at_most_parameters(limit: int, tensors: int) -> Iterator[None]:
    """Ends the making of a module within the block that has more parameters."""
    thread, made = get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        # The hook sees the modules of all threads.
        if get_ident() == thread:
            made += 1
            if made > limit:
                raise ConversionError(
                    f"its config is of a model with more than {limit} parameters, the weights are {tensors} tensors: "
                    "they do not belong together."
                )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
