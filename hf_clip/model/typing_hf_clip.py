"""What functions of this package ask of a model and of a processor: protocols, for type checkers and readers.

`HFCLIPModel` and `HFCLIPProcessor` have all of it. So has any other pair with these methods: embeddings, the zero-shot
classifier and every evaluation take it too.
"""

# Shapes: B images or texts, T tokens, D width of the shared space, H and W pixels.

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch


class DualEncoder(Protocol):
    """A `torch.nn.Module` that encodes images and texts into one space."""

    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def logit_scale(self) -> torch.Tensor:
        """The logarithm of the scale of logits. Models trained with a sigmoid have a `logit_bias` as well."""
        ...

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """(B, D) embeddings of (B, 3, H, W) pixel values, of unit length where `normalize`.

        What its processor makes of images beside them (a NaFlex model's `pixel_attention_mask` and `spatial_shapes`)
        it takes by these names.
        """
        ...

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, normalize: bool = True
    ) -> torch.Tensor:
        """(B, D) embeddings of (B, T) token ids, of unit length where `normalize`."""
        ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def eval(self) -> Any: ...

    def to(self, *args: Any, **kwargs: Any) -> Any: ...


class Processor(Protocol):
    """Makes a model's inputs: `input_ids` of texts, and at times their `attention_mask`; `pixel_values` of images."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Mapping[str, Any]: ...
