"""What a step minimises.

Shape suffixes: B pairs of this rank, T tokens, D dimensions of the shared space.
"""

import torch
from torch import nn

from hf_clip.loss_hf_clip import contrastive_loss
from hf_clip.modeling_hf_clip import HFCLIPModel, unit_vectors


class ContrastiveObjective(nn.Module):
    """The contrast of pictures with their captions and, at `keyword_weight`, with words of their keywords.

    It is a module of its own so that data-parallel wrappers see one forward for all that a step computes. Pictures
    are encoded once for both contrasts.
    """

    def __init__(self, model: HFCLIPModel, keyword_weight: float):
        super().__init__()
        self.model = model
        self.keyword_weight = keyword_weight

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        concept_ids: torch.Tensor,
        keyword_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of the global batch, a scalar.

        Args:
            pixel_values: (B, 3, rows, columns).
            input_ids: captions, (B, T), and `keyword_ids` their keywords, (B, another T).
            concept_ids: (B,); pairs with equal ids are positives of each other.
        """
        scale = self.model.logit_scale.exp()
        image_BD = unit_vectors(self.model.get_image_features(pixel_values).pooler_output)
        loss = contrastive_loss(image_BD, self._encode(input_ids), scale, concept_ids)
        if keyword_ids is None:
            return loss
        of_keywords = contrastive_loss(image_BD, self._encode(keyword_ids), scale, concept_ids)
        return (loss + self.keyword_weight * of_keywords) / (1 + self.keyword_weight)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        return unit_vectors(self.model.get_text_features(input_ids).pooler_output)
