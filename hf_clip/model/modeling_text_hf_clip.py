"""The text transformer.

Shape suffixes: B texts, T tokens, W width of the tower.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPTextConfig
from .modeling_inputs_hf_clip import check_texts, embedded, known_arguments, require_on_device
from .modeling_layers_hf_clip import (
    HFCLIPEncoder,
    HFCLIPPreTrainedModel,
    OneToken,
    SharedTokens,
    may_compute_one_token,
    with_init_std,
)

# `past_key_values` is called `cache` from transformers 5.24 on, which warns of the old name; 5.40 will not know it.
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
_NO_CACHE: dict[str, Any] = {CACHE: None}

# No token's id: what stands before a text that is padded on the left, where its end is looked for.
_LEFT_PADDING = -1


class HFCLIPTextEmbeddings(nn.Module):
    """Token embeddings with learned positions."""

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__()
        width = config.hidden_size
        self.token_embedding = with_init_std(0.02, nn.Embedding(config.vocab_size, width))
        self.position_embedding = with_init_std(0.01, nn.Embedding(config.max_position_embeddings, width))
        self.position_ids = nn.Buffer(torch.arange(config.max_position_embeddings)[None], persistent=False)

    def initialize_own(self, factor: float):
        init.copy_(self.position_ids, torch.arange(self.position_ids.shape[-1])[None])

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        length, limit = input_ids.shape[-1], self.position_embedding.num_embeddings
        if length > limit:
            raise ValueError(
                f"Texts of {length} tokens are longer than the model's {limit} positions: truncate them to {limit} "
                "(the processor and the tokenizer do so, and keep the end token)."
            )
        if position_ids is None:
            position_ids = self.position_ids[:, :length]
        tokens_BTW = embedded(self.token_embedding, input_ids, "input_ids")
        return tokens_BTW + embedded(self.position_embedding, position_ids, "position_ids")


class HFCLIPTextModel(HFCLIPPreTrainedModel):
    """The text tower: `input_ids` (B, T) to one embedding a text, pooled where `config.pooling` says.

    As the paper has it, the tower is causal and pools at the first end token, and texts are padded on the right:
    padding comes after all that the end token can see, so no attention mask is needed, and a batch may be padded to
    its longest text. The same holds for pooling "first" and "mean". A mask that is given is applied. A tower that
    pools at its last position (SigLIP) was trained on texts padded to the full length, and takes no others.
    A text whose mask begins with zeros is padded on the left: its tokens stand at the positions, and are pooled, as
    without that padding, unless `position_ids` are given.
    `pooler_output` is (B, pooled_size), from `head` where the config has one. With `pooled_only=True`,
    `last_hidden_state` may be None: the last layer computes the token that is pooled, where it is one. With
    `shared_prefix` too, so many first tokens, which all texts have in common, may be computed once.
    Raises ValueError for a text without an end token (unless pooled at its first or last position) or without tokens,
    for left padding where the first or last position is pooled, for more tokens than positions and for fewer where the
    last is pooled; on an accelerator and in compiled code all but the last two are asserted on the device.
    """

    config: HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ["text"]
    has_pooled_only = True
    has_shared_prefix = True

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.embeddings = HFCLIPTextEmbeddings(config)
        self.encoder = HFCLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        width, size = config.hidden_size, config.projection_size
        self.head = nn.Identity() if size is None else with_init_std(width**-0.5, nn.Linear(width, size))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        setattr(self.embeddings, "token_embedding", value)  # noqa: B010  of any class: quantized, with an adapter

    def _end_positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where each text ends, (B,)."""
        # int32, as argmax of int64 has no ONNX counterpart.
        if self.config.eos_token_id == POOL_AT_HIGHEST_ID and self.config.pooling != "first_eos":
            return input_ids.int().argmax(dim=-1)
        is_end_BT = input_ids == self.config.eos_token_id
        require_on_device(
            is_end_BT.any(dim=-1).all(),
            f"A text has no end token (id {self.config.eos_token_id}): tokenize with add_special_tokens=True, and "
            "truncate with the tokenizer, which keeps the end token.",
        )
        return is_end_BT.int().argmax(dim=-1)

    def _without_left_padding(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ids to look for ends in, with `_LEFT_PADDING` before each text, and positions that count from its start."""
        is_token_BT = attention_mask != 0
        if self.config.pooling in ("first", "last"):
            require_on_device(
                is_token_BT[:, 0].all(),
                f"A text is padded on the left, and this model pools the {self.config.pooling} position: pad on the "
                "right (tokenizer.padding_side = 'right').",
            )
            return input_ids, position_ids
        require_on_device(is_token_BT.any(dim=-1).all(), "A text has no tokens, as its mask says: skip it.")
        start_B1 = is_token_BT.int().argmax(dim=-1, keepdim=True)
        place_1T = torch.arange(input_ids.shape[-1], device=input_ids.device)[None]
        if position_ids is None:
            position_ids = (place_1T - start_B1).clamp(min=0)
        return input_ids.masked_fill(place_1T < start_B1, _LEFT_PADDING), position_ids

    def _pool(self, tokens_BTW: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """One embedding a text, (B, W)."""
        if self.config.pooling == "first":
            return tokens_BTW[:, 0]
        if self.config.pooling == "last":
            return tokens_BTW[:, -1]
        end_B = self._end_positions(input_ids)
        if self.config.pooling == "mean":
            position_T = torch.arange(tokens_BTW.shape[1], device=tokens_BTW.device)
            is_text_BT1 = ((position_T <= end_B[:, None]) & (input_ids != _LEFT_PADDING))[..., None]
            return (tokens_BTW * is_text_BT1).sum(dim=1) / is_text_BT1.sum(dim=1)
        rows_B = torch.arange(tokens_BTW.shape[0], device=tokens_BTW.device)
        return tokens_BTW[rows_B, end_B]

    def _pooled_token(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype, kwargs: dict[str, Any]
    ) -> OneToken | None:
        """The token of each text that is pooled; None where it is not one, or others have to be computed with it."""
        has_own_mask = attention_mask is not None and attention_mask.ndim != 2
        if self.config.pooling == "mean" or has_own_mask:
            return None
        if not may_compute_one_token(self, self.encoder.layers[-1], kwargs):
            return None
        length = input_ids.shape[-1]
        position = {"first": 0, "last": length - 1}.get(self.config.pooling)
        if position is None:
            position = self._end_positions(input_ids)
        sees_BT = None if attention_mask is None else attention_mask.bool()
        if self.config.is_causal and self.config.pooling != "last":
            last = position if isinstance(position, int) else position[:, None]
            before_BT = (torch.arange(length, device=input_ids.device) <= last).expand(input_ids.shape)
            sees_BT = before_BT if sees_BT is None else before_BT & sees_BT
        if sees_BT is None:
            return OneToken(position)
        added_BT = torch.zeros_like(sees_BT, dtype=dtype).masked_fill(~sees_BT, torch.finfo(dtype).min)
        return OneToken(position, added_BT[:, None, None])

    def _may_share(self, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]) -> bool:
        """Whether the first tokens of texts can be computed once, and nobody would see it."""
        if self.training or attention_mask is not None or not self.config.is_causal:
            return False
        is_at_end = self.config.pooling not in ("first", "last", "mean")
        return is_at_end and all(may_compute_one_token(self, layer, kwargs) for layer in self.encoder.layers)

    def _pooled_behind(self, input_ids: torch.Tensor, count: int) -> torch.Tensor:
        """(B, W) pooled embeddings of texts whose first `count` tokens are the same."""
        ends_B = self._end_positions(input_ids)
        is_shared = (input_ids[:, :count] == input_ids[:1, :count]).all()
        require_on_device(
            is_shared & (ends_B >= count).all(),
            f"`shared_prefix={count}`: the texts do not all begin with the same {count} tokens, or one ends there.",
        )
        tokens_BTW = self.embeddings(input_ids)
        shared_1PW, own_BTW = tokens_BTW[:1, :count], tokens_BTW[:, count:]
        # As with a mask of all tokens: each sees those before it, and itself.
        length, least = input_ids.shape[-1], torch.finfo(tokens_BTW.dtype).min
        place_T = torch.arange(length, device=input_ids.device)
        added_TT = torch.zeros(length, length, device=input_ids.device, dtype=tokens_BTW.dtype)
        added_TT = added_TT.masked_fill(place_T > place_T[:, None], least)
        one_token = OneToken(ends_B - count, added_TT[ends_B][:, None, None])
        last = len(self.encoder.layers) - 1
        for index, layer in enumerate(self.encoder.layers):
            shared = SharedTokens()
            asked = {"one_token": one_token} if index == last else {}
            shared_1PW = layer(shared_1PW, added_TT[:count, :count], shared=shared)
            own_BTW = layer(own_BTW, added_TT[count:], shared=shared, **asked)
        return self.head(self.final_layer_norm(own_BTW)[:, 0])

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pooled_only: bool = False,
        shared_prefix: int = 0,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        kwargs = known_arguments(self, kwargs)
        check_texts(input_ids, attention_mask, position_ids)
        pooled_ids = input_ids
        if attention_mask is not None and attention_mask.ndim == 2:
            pooled_ids, position_ids = self._without_left_padding(input_ids, attention_mask, position_ids)
        length, full = input_ids.shape[-1], self.config.max_position_embeddings
        if self.config.pooling == "last" and length < full:
            raise ValueError(
                f"Texts of {length} tokens would be pooled at another position than the model's last: pad them to "
                f"{full} tokens (padding='max_length', max_length={full})."
            )
        if shared_prefix and pooled_only and position_ids is None and self._may_share(attention_mask, kwargs):
            return BaseModelOutputWithPooling(pooler_output=self._pooled_behind(input_ids, shared_prefix))
        tokens_BTW = self.embeddings(input_ids, position_ids)
        one_token = self._pooled_token(pooled_ids, attention_mask, tokens_BTW.dtype, kwargs) if pooled_only else None
        # Where the config says is_causal=False, this is a mask of the padding alone.
        attention_mask = create_causal_mask(
            config=self.config, inputs_embeds=tokens_BTW, attention_mask=attention_mask, **_NO_CACHE
        )
        kwargs.pop("is_causal", None)
        tokens_BTW = self.final_layer_norm(
            self.encoder(tokens_BTW, attention_mask, one_token, is_causal=self.config.is_causal, **kwargs)
        )
        if one_token is not None:
            return BaseModelOutputWithPooling(pooler_output=self.head(tokens_BTW[:, 0]))
        pooled_BW = self._pool(tokens_BTW, pooled_ids)
        return BaseModelOutputWithPooling(last_hidden_state=tokens_BTW, pooler_output=self.head(pooled_BW))
