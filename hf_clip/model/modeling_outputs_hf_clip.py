"""What the models return.

Shape suffixes: B images or texts, D dimensions of the shared space.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput


@dataclass
class HFCLIPOutput(ModelOutput):
    """What `HFCLIPModel` returns, with the fields of transformers' `CLIPOutput`.

    Args:
        loss: scalar, where `return_loss=True` asked for it.
        logits_per_image: (images, texts), the scaled cosines.
        logits_per_text: (texts, images), its transpose.
        text_embeds, image_embeds: (B, D) unit embeddings.
        text_model_output, vision_model_output: the towers' outputs; `pooler_output` is the projected embedding.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class HFCLIPFeatures(BaseModelOutputWithPooling):
    """What `get_image_features` and `get_text_features` return: in transformers 5 an output, before that a tensor.

    `pooler_output` (B, D) is the tensor. Where a program of that time calls a tensor's method or computes with it
    (`features / features.norm(dim=-1, keepdim=True)`, `features @ others.T`), it is taken.
    """

    def __getattr__(self, name: str) -> Any:
        # Only names that an output does not have come here. Pickling and copying ask for names with underscores.
        if name.startswith("_") or (pooled := self.pooler_output) is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return getattr(pooled, name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function(*_tensors_of(args), **_tensors_of(kwargs or {}))

    def __truediv__(self, other: Any) -> torch.Tensor:
        return self.pooler_output / other

    def __mul__(self, other: Any) -> torch.Tensor:
        return self.pooler_output * other

    __rmul__ = __mul__

    def __matmul__(self, other: Any) -> torch.Tensor:
        return self.pooler_output @ other


def _tensors_of(given: Any) -> Any:
    """Arguments of a function of torch, with the tensors in the place of features."""
    if isinstance(given, HFCLIPFeatures):
        return given.pooler_output
    if isinstance(given, list | tuple):
        return type(given)(map(_tensors_of, given))
    return {name: _tensors_of(value) for name, value in given.items()} if isinstance(given, dict) else given


@dataclass
class HFCLIPVisionModelOutput(ModelOutput):
    """`image_embeds` (B, D) are projected but not normalized, as in transformers' `CLIPVisionModelOutput`."""

    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HFCLIPTextModelOutput(ModelOutput):
    """`text_embeds` (B, D) are projected but not normalized, as in transformers' `CLIPTextModelOutput`."""

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
