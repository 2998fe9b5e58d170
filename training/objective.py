"""What a step minimizes.

Shape suffixes: B pairs of this rank, N their texts (captions, then keywords), T tokens, D dimensions of the shared
space.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_clip.model.loss_hf_clip import contrastive_loss, sigmoid_loss
from hf_clip.model.modeling_hf_clip import HFCLIPModel, unit_embeddings

from .augmentation import swap_neighbours
from .distillation import TeacherEmbeddings, distillation_loss, negatives_loss
from .texts import StepTexts, TextTokens, texts_of_step


class ContrastiveObjective(nn.Module):
    """The contrastive loss of images with their captions and, at `keyword_weight`, with words of their keywords.

    It is a module of its own so that data-parallel wrappers see one forward for all that a step computes. Images
    are encoded once for both losses.
    """

    def __init__(
        self,
        model: HFCLIPModel,
        keyword_weight: float,
        label_smoothing: float = 0.0,
        products: str = "float32",
        captions_per_image: int = 1,
        negative_weight: float = 0.0,
        distillation_weight: float = 0.0,
    ):
        super().__init__()
        self.model = model
        self.keyword_weight = keyword_weight
        self.label_smoothing = label_smoothing
        self.products = products
        self.captions_per_image = captions_per_image
        self.negative_weight = negative_weight
        self.distillation_weight = distillation_weight
        # Called where a process begins to depend on the others.
        self.on_loss: Callable[[], object] = lambda: None

    @property
    def texts_per_image(self) -> int:
        """Texts that are encoded for each image."""
        return self.captions_per_image + bool(self.keyword_weight) + bool(self.negative_weight)

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
        has_negative: torch.Tensor | None = None,
        teachers: Sequence[TeacherEmbeddings] = (),
        **own: Any,
    ) -> torch.Tensor | tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """The loss of the global batch, a scalar; without `concept_ids`, the embeddings and factors that `loss` takes,
        and losses that are just added.

        Embeddings of texts are then in the order of `texts`, which need not be those of `images`.

        Args:
            images: pixels (B, 3, rows, columns), or all that the model takes of images by its arguments' names.
            texts: chunks, each with the processor's `input_ids` (some, T), and `attention_mask` where the text tower
                needs one.
            places: (N,), of each text among those of all chunks: captions in the images' order, as often as
                there are captions of an image, and behind them, it may be, as many keywords, and hard negatives.
            concept_ids: (B,); pairs with equal ids are positives of each other.
            mixed_fraction: of its neighbour, in each image (`mix_neighbours`).
            has_negative: (B,) which pairs have a hard negative.
            teachers: what each makes of the batch.
            own: further arguments of `encode`.
        """
        inputs: dict[str, Any] = {"pixel_values": images} if isinstance(images, torch.Tensor) else images
        image_BD, text_ND, added = self.encode(inputs, texts, **own)
        factors = [self.model.logit_scale.exp()]
        if self.model.logit_bias is not None:
            # Not the parameter itself, which FSDP takes away behind the forward.
            factors.append(self.model.logit_bias + 0)
        if concept_ids is None:
            return [image_BD, text_ND], factors, added
        if places is not None:
            text_ND = text_ND.index_select(0, places)
        contrastive = self.loss(image_BD, text_ND, factors, concept_ids, mixed_fraction, has_negative, teachers)
        return contrastive + sum(added)

    def encode(
        self, images: dict[str, Any], texts: list[dict[str, torch.Tensor]], **own: Any
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Unit embeddings of images and of texts, and losses that are sums over pairs: none here."""
        image_BD = self._unit(self.model.get_image_features(**images, pooled_only=True))
        chunks: list[dict[str, Any]] = [{**chunk, "pooled_only": True} for chunk in texts]
        return image_BD, torch.cat([self._unit(self.model.get_text_features(**chunk)) for chunk in chunks]), []

    def deal_texts(
        self, tokens: TextTokens, spans: list[slice], device: torch.device, has_one_chunk: bool
    ) -> StepTexts:
        """The texts of a step in as many parts as there are micro-batches, whose images are `spans`."""
        return texts_of_step(tokens, len(spans), device, has_one_chunk)

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
        has_negative: torch.Tensor | None = None,
        teachers: Sequence[TeacherEmbeddings] = (),
    ) -> torch.Tensor:
        """Of unit embeddings of images, and of captions and, it may be, keywords, with the scale and a sigmoid's bias.

        An image mixed of two is a pair with either's text, by their fractions (Zhang et al. 2018).
        """
        self.on_loss()
        if mixed_fraction:
            own = self.loss(image_embeds, text_embeds, factors, concept_ids, 0.0, has_negative)
            text_ND, ids_B = swap_neighbours(text_embeds), swap_neighbours(concept_ids)
            has = None if has_negative is None else swap_neighbours(has_negative)
            others = self.loss(image_embeds, text_ND, factors, ids_B, 0.0, has)
            return (1 - mixed_fraction) * own + mixed_fraction * others
        sets = text_embeds.split(len(image_embeds))
        captions, further = sets[: self.captions_per_image], list(sets[self.captions_per_image :])
        loss = self._contrast(image_embeds, captions, factors, concept_ids)
        if self.keyword_weight:
            of_keywords = self._contrast(image_embeds, (further.pop(0),), factors, concept_ids)
            loss = (loss + self.keyword_weight * of_keywords) / (1 + self.keyword_weight)
        if self.negative_weight:
            assert has_negative is not None
            told = negatives_loss(image_embeds, captions[0], further.pop(0), factors[0], has_negative)
            loss = loss + self.negative_weight * told
        if self.distillation_weight:
            divergence = distillation_loss(image_embeds, captions[0], factors[0], teachers)
            loss = (1 - self.distillation_weight) * loss + self.distillation_weight * divergence
        return loss

    def _contrast(
        self,
        image_BD: torch.Tensor,
        captions: Sequence[torch.Tensor],
        factors: list[torch.Tensor],
        concept_ids: torch.Tensor,
    ) -> torch.Tensor:
        """The contrastive loss with one or several captions (B, D) of each image, which are all its positives."""
        count, has_softmax = len(captions), len(factors) == 1
        softmax = partial(contrastive_loss, label_smoothing=self.label_smoothing)
        measure = partial(softmax if has_softmax else sigmoid_loss, products=self.products)
        if count == 1:
            return measure(image_BD, captions[0], *factors, concept_ids=concept_ids)
        # Each image stands there once for each of its captions. Its copies share a text's probability evenly.
        loss = measure(
            image_BD.repeat(count, 1), torch.cat(list(captions)), *factors, concept_ids=concept_ids.repeat(count)
        )
        return loss - math.log(count) / 2 if has_softmax else loss
