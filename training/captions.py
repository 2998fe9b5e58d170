"""The contrastive loss and the caption loss together (Yu et al. 2022, section 3.2), whole or in micro-batches.

The caption loss is a sum over pairs, so that micro-batches just add it up: it rides along with the pass of cached
gradients that has a graph (`hf_clip.training.step`). It needs the tokens of an image and of its own caption, so that a
micro-batch holds the texts of its own images here, those of like length in one chunk.

Shape suffixes: B images of a micro-batch, N their texts (captions, then further ones), T tokens, C tokens of an image,
W width of the text tower, D dimensions of the shared space.
"""

from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from hf_clip.model.caption_loss_hf_clip import IGNORED, caption_labels, caption_loss
from hf_clip.model.modeling_coca_hf_clip import HFCLIPCoCaModel
from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .config import WRITES_CAPTIONS, TrainConfig
from .objective import ContrastiveObjective
from .recipe_error import RecipeError
from .texts import StepTexts, TextTokens, chunk_cost, in_chunks, places_of


def require_objective(model: HFCLIPModel, config: TrainConfig) -> None:
    """Raises RecipeError for an objective that the model does not have."""
    if isinstance(model, HFCLIPCoCaModel) and config.objective != WRITES_CAPTIONS:
        raise RecipeError(
            f"objective={config.objective}: the model writes captions (it is a CoCa), and its decoder would learn "
            f"nothing: set objective={WRITES_CAPTIONS}."
        )
    if config.objective == WRITES_CAPTIONS and not isinstance(model, HFCLIPCoCaModel):
        raise RecipeError(
            f"objective={config.objective} is for a model that writes captions, and this one has no decoder: start "
            "from a CoCa, set model.architecture to one (coca_ViT-B-32), or model.config.text_config.tower to "
            "class_token."
        )


class CaptionObjective(ContrastiveObjective):
    """`ContrastiveObjective`, and the caption loss of every caption of an image."""

    model: HFCLIPCoCaModel

    def encode(
        self, images: dict[str, Any], texts: list[dict[str, torch.Tensor]], **own: Any
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """With `image_rows`, one entry for each of the first chunks of texts, these are captions: beside embeddings
        comes `caption_factor` times the sum over their tokens of the caption loss."""
        if not own:
            return super().encode(images, texts)
        image_rows: list[torch.Tensor] = own["image_rows"]
        image_output = self.model.get_image_features(**images)
        seen_BCW = self.model.tokens_for_decoder(cast(torch.Tensor, image_output.last_hidden_state))
        text_embeds, losses = [], []
        for index, chunk in enumerate(cast("list[dict[str, Any]]", texts)):
            is_written = index < len(image_rows)
            output = self.model.get_text_features(**chunk, pooled_only=not is_written)
            text_embeds.append(self._unit(output))
            if is_written:
                tokens_NTW = cast(torch.Tensor, output.last_hidden_state)
                losses.append(self._caption_loss(chunk, tokens_NTW, seen_BCW.index_select(0, image_rows[index])))
        return self._unit(image_output), torch.cat(text_embeds), [own["caption_factor"] * torch.stack(losses).sum()]

    def _caption_loss(self, chunk: dict[str, Any], tokens_NTW: torch.Tensor, seen_NCW: torch.Tensor) -> torch.Tensor:
        states_NTW = self.model.caption_states(tokens_NTW, seen_NCW)
        labels_NT = caption_labels(chunk["input_ids"], self.model.config.text_config.pad_token_id)
        return caption_loss(states_NTW[:, :-1], cast(torch.nn.Linear, self.model.lm_head).weight, labels_NT)

    def deal_texts(
        self, tokens: TextTokens, spans: list[slice], device: torch.device, has_one_chunk: bool
    ) -> StepTexts:
        """The texts of each micro-batch's own images: their captions in chunks of like length, then further texts."""
        count, cost = spans[-1].stop, chunk_cost(tokens, device, has_one_chunk)
        kinds = len(tokens.lengths) // count
        parts, rows, images = [], [], []
        for span in spans:
            own = np.concatenate([np.arange(span.start, span.stop) + kind * count for kind in range(kinds)])
            own = own[np.argsort(tokens.lengths[own], kind="stable")]
            is_caption = own < self.captions_per_image * count
            captions = in_chunks(tokens, own[is_caption], cost, device)
            further = in_chunks(tokens, own[~is_caption], cost, device) if not is_caption.all() else []
            images.append([torch.from_numpy(some % count - span.start).to(device) for some, _ in captions])
            parts.append([chunk for _, chunk in [*captions, *further]])
            rows.append(np.concatenate([some for some, _ in [*captions, *further]]))
        on_device = [torch.from_numpy(each).to(device) for each in rows]
        return StepTexts(parts, on_device, places_of(rows).to(device), images)


def caption_factor(texts: StepTexts, model: HFCLIPModel, weight: float, accelerator: Accelerator) -> torch.Tensor:
    """By what a rank's sum over tokens is multiplied, that the mean over ranks is `weight` times the mean over the
    global batch's tokens. Collective."""
    assert texts.images is not None
    pad_token_id, dtype = model.config.text_config.pad_token_id, torch.promote_types(model.dtype, torch.float32)
    total = torch.zeros((), device=accelerator.device, dtype=dtype)
    for part, captions in zip(texts.parts, texts.images, strict=True):
        for chunk in part[: len(captions)]:
            total += (caption_labels(chunk["input_ids"], pad_token_id) != IGNORED).sum()
    total = cast(torch.Tensor, accelerator.reduce(total, "sum"))
    return weight * accelerator.num_processes / total
