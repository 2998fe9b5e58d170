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

from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig
from hf_clip.model.modeling_hf_clip import HFCLIPModel, HFCLIPSiglipModel

from .errors import ConversionError
from .safe_torch.weights import WeightsFile

# What makes no dual encoder larger, and lists of any length where it is read.
_LABEL_KEYS = ("num_labels", "id2label", "label2id")
_LAYER_COUNT = re.compile(r"(num|n)_\w*(layers?|blocks?|stages?)|layers|\w*depths?")
# Bases of positions and the like are not sizes; a list of so many numbers takes no memory to speak of.
_ALWAYS_ALLOWED = 2**20
# A text tower of transformers is made with its decoder, which its weights lack: four times as many are allowed.
_PARAMETERS_PER_TENSOR = 8
_SPARE_PARAMETERS = 200
_MAX_PARAMETERS = 20_000


def without_labels(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its classes, at every depth: a dual encoder has none, and transformers makes lists of them."""
    return {
        key: without_labels(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in _LABEL_KEYS
    }


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
                f"numbers (at most {limit} {of}): they belong to another model, or the file is damaged."
            )


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers with their dotted names; of a list of them, the sum."""
    waiting: list[tuple[str, Any]] = [("", settings)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend((f"{name}.{key}" if name else str(key), item) for key, item in value.items())
        elif isinstance(value, list):
            yield name, sum(item for item in value if isinstance(item, int))
            waiting.extend((name, item) for item in value if isinstance(item, Mapping | list))
        # The ids of special tokens are no sizes.
        elif isinstance(value, int) and not name.endswith("_id"):
            yield name, value


def class_of(config: HFCLIPConfig) -> type[HFCLIPModel]:
    """The model's class, by its loss."""
    return HFCLIPSiglipModel if isinstance(config, HFCLIPSiglipConfig) else HFCLIPModel


def expected_tensors(config: HFCLIPConfig, weights: WeightsFile) -> dict[str, torch.Tensor]:
    """The state dict of a model of this config, on the meta device.

    Raises:
        ConversionError: where the model has many times the tensors of the weights.
    """
    limit = min(_PARAMETERS_PER_TENSOR * len(weights.tensors) + _SPARE_PARAMETERS, _MAX_PARAMETERS)
    with _at_most_parameters(limit, len(weights.tensors)), torch.device("meta"):
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
