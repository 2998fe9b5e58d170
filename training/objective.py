"""What a step minimizes.

Shape suffixes: B pairs of this rank, T tokens, D dimensions of the shared space.
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

    def __init__(self, model: HFCLIPModel, keyword_weight: float, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.keyword_weight = keyword_weight
        self.label_smoothing = label_smoothing

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that Accelerate's FSDP shards one by one: it refuses those that there are none of."""
        present = {type(module).__name__ for module in self.model.modules()}
        return sorted(present.intersection(self.model._no_split_modules or ()))

    def forward(
        self,
        images: torch.Tensor | dict[str, Any],
        captions: dict[str, torch.Tensor],
        keywords: dict[str, torch.Tensor] | None = None,
        concept_ids: torch.Tensor | None = None,
        mixed_fraction: float = 0.0,
    ) -> torch.Tensor | tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The loss of the global batch, a scalar; without `concept_ids`, the embeddings and factors that `loss` takes.

        Args:
            images: pixels (B, 3, rows, columns), or all that the model takes of images by its arguments' names.
            captions: the processor's `input_ids` (B, T), and `attention_mask` where the text tower needs one;
                `keywords` likewise, (B, another T).
            concept_ids: (B,); pairs with equal ids are positives of each other.
            mixed_fraction: of its neighbour, in each image (`mix_neighbours`).
        """
        inputs: dict[str, Any] = {"pixel_values": images} if isinstance(images, torch.Tensor) else images
        embeddings_BD = [self._unit(self.model.get_image_features(**inputs, pooled_only=True))]
        for texts in (captions, keywords):
            if texts is not None:
                given: dict[str, Any] = {**texts, "pooled_only": True}
                embeddings_BD.append(self._unit(self.model.get_text_features(**given)))
        factors = [self.model.logit_scale.exp()]
        if self.model.logit_bias is not None:
            # Not the parameter itself, which FSDP takes away behind the forward.
            factors.append(self.model.logit_bias + 0)
        if concept_ids is None:
            return embeddings_BD, factors
        return self.loss(embeddings_BD, factors, concept_ids, mixed_fraction)

    @staticmethod
    def _unit(output: BaseModelOutputWithPooling) -> torch.Tensor:
        assert output.pooler_output is not None
        return unit_embeddings(output.pooler_output)

    def loss(
        self,
        embeddings: list[torch.Tensor],
        factors: list[torch.Tensor],
        concept_ids: torch.Tensor,
        mixed_fraction: float = 0.0,
    ) -> torch.Tensor:
        """Of unit embeddings of images, captions and, it may be, keywords, with the scale and a sigmoid's bias.

        An image mixed of two is a pair with either's text, by their fractions (Zhang et al. 2018).
        """
        image_BD, *texts_BD = embeddings
        if mixed_fraction:
            swapped_BD = [image_BD, *(swap_neighbours(text_BD) for text_BD in texts_BD)]
            own = self.loss(embeddings, factors, concept_ids)
            others = self.loss(swapped_BD, factors, swap_neighbours(concept_ids))
            return (1 - mixed_fraction) * own + mixed_fraction * others
        softmax = partial(contrastive_loss, label_smoothing=self.label_smoothing)
        measure = softmax if len(factors) == 1 else sigmoid_loss
        losses = [measure(image_BD, text_BD, *factors, concept_ids=concept_ids) for text_BD in texts_BD]
        if len(losses) == 1:
            return losses[0]
        return (losses[0] + self.keyword_weight * losses[1]) / (1 + self.keyword_weight)
