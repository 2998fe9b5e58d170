"""What a step minimizes.

Shape suffixes: B pairs of this rank, N their texts (captions, then keywords), T tokens, D dimensions of the shared
space.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_clip.model.loss_hf_clip import contrastive_loss, sigmoid_loss
from hf_clip.model.modeling_hf_clip import HFCLIPModel, unit_embeddings

from .augmentation import swap_neighbours


class ContrastiveObjective(nn.Module):
    """The contrastive loss of images with their captions and, at `keyword_weight`, with words of their keywords.

    It is a module of its own so that data-parallel wrappers see one forward for all that a step computes. Images
    are encoded once for both losses.
    """

    def __init__(
        self, model: HFCLIPModel, keyword_weight: float, label_smoothing: float = 0.0, products: str = "float32"
    ):
        super().__init__()
        self.model = model
        self.keyword_weight = keyword_weight
        self.label_smoothing = label_smoothing
        self.products = products

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that Accelerate's FSDP shards one by one: it refuses those that there are none of."""
        present = {type(module).__name__ for module in self.model.modules()}
        return sorted(present.intersection(self.model._no_split_modules or ()))

    def forward(
        self,
        images: torch.Tensor | dict[str, Any],
        texts: list[dict[str, torch.Tensor]],
        places: torch.Tensor | None = None,
        concept_ids: torch.Tensor | None = None,
        mixed_fraction: float = 0.0,
    ) -> torch.Tensor | tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The loss of the global batch, a scalar; without `concept_ids`, the embeddings and factors that `loss` takes.

        Those of texts are then in the order of `texts`, which need not be those of `images`.

        Args:
            images: pixels (B, 3, rows, columns), or all that the model takes of images by its arguments' names.
            texts: chunks, each with the processor's `input_ids` (some, T), and `attention_mask` where the text tower
                needs one.
            places: (N,), of each text among those of all chunks: captions in the images' order, and behind them, it
                may be, as many keywords.
            concept_ids: (B,); pairs with equal ids are positives of each other.
            mixed_fraction: of its neighbour, in each image (`mix_neighbours`).
        """
        inputs: dict[str, Any] = {"pixel_values": images} if isinstance(images, torch.Tensor) else images
        image_BD = self._unit(self.model.get_image_features(**inputs, pooled_only=True))
        chunks: list[dict[str, Any]] = [{**chunk, "pooled_only": True} for chunk in texts]
        text_ND = torch.cat([self._unit(self.model.get_text_features(**chunk)) for chunk in chunks])
        factors = [self.model.logit_scale.exp()]
        if self.model.logit_bias is not None:
            # Not the parameter itself, which FSDP takes away behind the forward.
            factors.append(self.model.logit_bias + 0)
        if concept_ids is None:
            return [image_BD, text_ND], factors
        if places is not None:
            text_ND = text_ND.index_select(0, places)
        return self.loss(image_BD, text_ND, factors, concept_ids, mixed_fraction)

    @staticmethod
    def _unit(output: BaseModelOutputWithPooling) -> torch.Tensor:
        assert output.pooler_output is not None
        return unit_embeddings(output.pooler_output)

    def loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        factors: list[torch.Tensor],
        concept_ids: torch.Tensor,
        mixed_fraction: float = 0.0,
    ) -> torch.Tensor:
        """Of unit embeddings of images, and of captions and, it may be, keywords, with the scale and a sigmoid's bias.

        An image mixed of two is a pair with either's text, by their fractions (Zhang et al. 2018).
        """
        if mixed_fraction:
            own = self.loss(image_embeds, text_embeds, factors, concept_ids)
            others = self.loss(image_embeds, swap_neighbours(text_embeds), factors, swap_neighbours(concept_ids))
            return (1 - mixed_fraction) * own + mixed_fraction * others
        softmax = partial(contrastive_loss, label_smoothing=self.label_smoothing)
        measure = partial(softmax if len(factors) == 1 else sigmoid_loss, products=self.products)
        texts_BD = text_embeds.split(len(image_embeds))
        losses = [measure(image_embeds, text_BD, *factors, concept_ids=concept_ids) for text_BD in texts_BD]
        if len(losses) == 1:
            return losses[0]
        return (losses[0] + self.keyword_weight * losses[1]) / (1 + self.keyword_weight)
