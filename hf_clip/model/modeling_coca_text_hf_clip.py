"""CoCa's text tower: a class token behind the text is its embedding, and captions go on from the text's tokens.

Shape suffixes: B texts, T tokens, K tokens that are seen, W width of the tower.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import HFCLIPTextConfig
from .modeling_coca_layers_hf_clip import added_for, tokens_before
from .modeling_inputs_hf_clip import check_texts, embedded, known_arguments
from .modeling_layers_hf_clip import (
    HFCLIPEncoder,
    HFCLIPPreTrainedModel,
    OneToken,
    may_compute_one_token,
    with_init_std,
)


class HFCLIPClassTokenEmbeddings(nn.Module):
    """Token embeddings with learned positions, the last of which is the class token's."""

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__()
        width = config.hidden_size
        self.limit = config.max_position_embeddings
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.token_embedding = with_init_std(0.02, nn.Embedding(config.vocab_size, width))
        self.position_embedding = with_init_std(0.01, nn.Embedding(self.limit + 1, width))

    def initialize_own(self, factor: float):
        init.normal_(self.class_embedding, std=0.01 * factor)

    def forward(self, input_ids: torch.Tensor, before: int = 0) -> torch.Tensor:
        """(B, T, W), of tokens behind `before` others."""
        length = before + input_ids.shape[-1]
        if length > self.limit:
            raise ValueError(
                f"Texts of {length} tokens are longer than the model's {self.limit} positions: truncate them to "
                f"{self.limit} (the processor and the tokenizer do so, and keep the end token)."
            )
        tokens_BTW = embedded(self.token_embedding, input_ids, "input_ids")
        return tokens_BTW + self.position_embedding.weight[before:length]

    def with_class_token(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens, and the class token behind them: always at the last position."""
        class_W = self.class_embedding + self.position_embedding.weight[self.limit]
        return torch.cat([tokens, class_W.to(tokens.dtype).expand(tokens.shape[0], 1, -1)], dim=1)


def _visible(real_BK: torch.Tensor, queries: int) -> torch.Tensor:
    """Which keys the last `queries` of K tokens see, (B, queries, K): those before them, and themselves.

    As in OpenCLIP's weights a token is seen where the token BEFORE it is none of padding: its mask lies one token off
    (its `correct_cls_mask=False`, which all CoCas were trained with). So the class token sees the text and the first
    padding behind it, not itself.
    """
    seen_BK = torch.cat([torch.ones_like(real_BK[:, :1]), real_BK[:, :-1]], dim=1)
    place_K = torch.arange(real_BK.shape[1], device=real_BK.device)
    return seen_BK[:, None] & (place_K <= place_K[len(place_K) - queries :, None])


class HFCLIPClassTokenTextModel(HFCLIPPreTrainedModel):
    """CoCa's text tower: `input_ids` (B, T) to an embedding, and to the tokens that its decoder reads.

    `pooler_output` (B, W) is the class token behind the last norm, and `last_hidden_state` (B, T, W) the text's
    tokens before it. Padding is what has the id `config.pad_token_id`, within a text too, and what a mask says. With
    `pooled_only=True`, `last_hidden_state` may be None, and with `tokens_only=True` the `pooler_output` is: the class
    token is skipped, and `cache` may hold the tokens before these. Raises ValueError for more tokens than
    positions.
    """

    config: HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ["text"]
    has_pooled_only = True
    has_shared_prefix = False

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.embeddings = HFCLIPClassTokenEmbeddings(config)
        self.encoder = HFCLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        setattr(self.embeddings, "token_embedding", value)  # noqa: B010  of any class: quantized, with an adapter

    def _real(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, T), True for tokens that are no padding."""
        real_BT = torch.ones_like(input_ids, dtype=torch.bool)
        if self.config.pad_token_id is not None:
            real_BT = input_ids != self.config.pad_token_id
        return real_BT if attention_mask is None else real_BT & attention_mask.bool()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pooled_only: bool = False,
        tokens_only: bool = False,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        kwargs = known_arguments(self, kwargs)
        if position_ids is not None:
            raise ValueError("`position_ids`: the tokens of this text tower stand where they are. Drop the argument.")
        if tokens_only:
            tokens_BTW = self._tokens(input_ids, attention_mask, cache, kwargs)
            return BaseModelOutputWithPooling(last_hidden_state=tokens_BTW)
        check_texts(input_ids, attention_mask, None)
        length = input_ids.shape[1]
        real_BT = self._real(input_ids, attention_mask)
        if length < self.embeddings.limit and self.config.pad_token_id is not None:
            # The padding that the class token sees.
            input_ids = nn.functional.pad(input_ids, (0, 1), value=self.config.pad_token_id)
            real_BT = nn.functional.pad(real_BT, (0, 1), value=False)
        tokens_BTW = self.embeddings.with_class_token(self.embeddings(input_ids))
        count = tokens_BTW.shape[1]
        visible_BTT = _visible(nn.functional.pad(real_BT, (0, 1), value=True), count)
        mask, dtype = added_for(visible_BTT, tokens_BTW.dtype), tokens_BTW.dtype
        one_token = None
        if pooled_only and may_compute_one_token(self, self.encoder.layers[-1], kwargs):
            one_token = OneToken(count - 1, added_for(visible_BTT[:, -1:], dtype))
        tokens_BTW = self.encoder(tokens_BTW, mask, one_token, **kwargs)
        pooled_BW = self.final_layer_norm(tokens_BTW[:, -1])
        tokens = None if one_token is not None else tokens_BTW[:, :length]
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled_BW)

    def _tokens(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """(B, T, W) of the tokens behind those in the cache; a mask is of all of them."""
        before = 0 if cache is None else cache.get_seq_length()
        real_BK = self._real(input_ids, None)
        if before:
            real_BK = nn.functional.pad(real_BK, (before, 0), value=True)
        if attention_mask is not None:
            real_BK = real_BK & attention_mask.bool()
        tokens_BTW = self.embeddings(input_ids, before)
        mask = added_for(_visible(real_BK, input_ids.shape[1]), tokens_BTW.dtype)
        for index, layer in enumerate(self.encoder.layers):
            tokens_BTW = layer(tokens_BTW, mask, **tokens_before(cache, index), **kwargs)
        return tokens_BTW
