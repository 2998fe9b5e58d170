"""Layers of CoCa that see an image's tokens (Yu et al. 2022): the queries that pool them, and the caption decoder.

Shape suffixes: B images or texts, T tokens of a text, C tokens of an image, Q queries, W width of the text tower.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hf_clip import HFCLIPTextConfig, HFCLIPVisionConfig
from .modeling_layers_hf_clip import (
    HFCLIPMLP,
    HFCLIPEncoderLayer,
    HFCLIPPreTrainedModel,
    SharedTokens,
    as_autocast,
    eager_attention_forward,
    layer_scale,
    with_init_std,
)


class CachedTokens(SharedTokens):
    """Keys and values, in one layer, of the tokens of a text that were computed before."""

    def __init__(self, cache: Cache, layer: int):
        super().__init__()
        self.cache, self.layer = cache, layer

    def with_own(self, *own: torch.Tensor) -> list[torch.Tensor]:
        key, value = own
        return list(self.cache.update(key, value, self.layer))


def tokens_before(cache: Cache | None, layer: int) -> dict[str, Any]:
    """What a layer is told of the tokens in a cache; nothing where there is none."""
    if cache is None:
        return {}
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    return {"shared": CachedTokens(own, layer)}


def added_for(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, (B, 1, Q, K), where `visible` (B, Q, K) says which keys a query sees."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]


class HFCLIPCrossAttention(nn.Module):
    """Attention of tokens of one kind to those of another, whose keys and values are computed once for an image."""

    def __init__(self, config: Any, width: int, context_width: int, heads: int, depth: int):
        super().__init__()
        self.config = config
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = with_init_std(width**-0.5, nn.Linear(width, width))
        self.k_proj = with_init_std(context_width**-0.5, nn.Linear(context_width, width))
        self.v_proj = with_init_std(context_width**-0.5, nn.Linear(context_width, width))
        self.out_proj = with_init_std((2 * width * depth) ** -0.5, nn.Linear(width, width))

    def forward(
        self,
        tokens_BQW: torch.Tensor,
        context: Callable[[], torch.Tensor],
        cache: EncoderDecoderCache | None = None,
        layer: int = 0,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, Q, W) and the weights. `context` makes the tokens that are seen, and is not called where a cache has
        their keys."""
        tokens_BQW = as_autocast(tokens_BQW)
        query = self._by_head(self.q_proj(tokens_BQW))
        if cache is not None and cache.is_updated.get(layer):
            held: Any = cache.cross_attention_cache.layers[layer]
            key, value = held.keys, held.values
        else:
            context_BCK = as_autocast(context())
            key, value = self._by_head(self.k_proj(context_BCK)), self._by_head(self.v_proj(context_BCK))
            if cache is not None:
                key, value = cache.cross_attention_cache.update(key, value, layer)
                cache.is_updated[layer] = True
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        kwargs.pop("is_causal", None)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, None, scaling=self.scaling, dropout=dropout, is_causal=False, **kwargs
        )
        return self.out_proj(output.reshape(tokens_BQW.shape)), weights

    def _by_head(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, heads, tokens, width of a head)."""
        return tokens.view(*tokens.shape[:-1], -1, self.head_dim).transpose(1, 2)


class HFCLIPQueryPooling(nn.Module):
    """What learned queries see of an image's patches (CoCa's attentional pooler, as OpenCLIP has it).

    Queries do not see each other, so that some of them can be asked for alone.
    """

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        width, eps = config.pooled_size, config.layer_norm_eps
        self.query = nn.Parameter(torch.empty(config.num_queries, width))
        self.layer_norm_query = nn.LayerNorm(width, eps=eps)
        self.layer_norm_context = nn.LayerNorm(config.hidden_size, eps=eps)
        self.attention = HFCLIPCrossAttention(config, width, config.hidden_size, config.pooling_heads, 1)

    def initialize_own(self, factor: float):
        init.normal_(self.query, std=factor)

    def forward(self, patches_BCK: torch.Tensor, count: int | None = None) -> torch.Tensor:
        """(B, Q, pooled width), of the first `count` queries; None: of all."""
        query_QW = self.layer_norm_query(self.query[:count])
        query_BQW = query_QW[None].expand(patches_BCK.shape[0], -1, -1)
        return self.attention(query_BQW, lambda: self.layer_norm_context(patches_BCK))[0]

    def values(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, C, pooled width), what a query sees that attends to one patch alone."""
        own = self.attention
        return own.out_proj(own.v_proj(self.layer_norm_context(patches)))


class HFCLIPCrossLayer(GradientCheckpointingLayer):
    """A pre-norm layer whose tokens see an image's."""

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.layer_norm_context = nn.LayerNorm(width, eps=eps)
        self.cross_attn = HFCLIPCrossAttention(
            config, width, width, config.num_attention_heads, config.num_hidden_layers
        )
        self.layer_scale1 = layer_scale(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = HFCLIPMLP(config)
        self.layer_scale2 = layer_scale(config)

    def forward(
        self, tokens_BTW: torch.Tensor, context_BCW: torch.Tensor | None, cache: Any = None, layer: int = 0, **kwargs
    ) -> torch.Tensor:
        def context() -> torch.Tensor:
            assert context_BCW is not None
            return self.layer_norm_context(context_BCW)

        attended_BTW, _ = self.cross_attn(self.layer_norm1(tokens_BTW), context, cache, layer, **kwargs)
        tokens_BTW = tokens_BTW + self.layer_scale1(attended_BTW)
        return tokens_BTW + self.layer_scale2(self.mlp(self.layer_norm2(tokens_BTW)))


class HFCLIPCaptionDecoder(HFCLIPPreTrainedModel):
    """The decoder: tokens of texts, from the text tower, and those of their images to states of the next tokens.

    Layers of the two kinds take turns: tokens see those before them, then the image.
    """

    config: HFCLIPTextConfig
    base_model_prefix = "text_decoder"
    main_input_name = "tokens_BTW"

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(HFCLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.cross_layers = nn.ModuleList(HFCLIPCrossLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        context_BCW: torch.Tensor | None,
        cache: EncoderDecoderCache | None = None,
        first_layer: int = 0,
        **kwargs,
    ) -> torch.Tensor:
        """States (B, T, W) behind the last norm.

        Args:
            tokens_BTW: of the text, those alone that the cache has not.
            context_BCW: of the image; None where the cache has its keys.
            cache: to read and to fill; its layers below `first_layer` are the text tower's.
        """
        length, before = tokens_BTW.shape[1], 0
        if cache is not None:
            before = cache.self_attention_cache.get_seq_length(first_layer)
        place_K = torch.arange(before + length, device=tokens_BTW.device)
        mask = None
        if length > 1:
            mask = added_for((place_K <= place_K[before:, None])[None], tokens_BTW.dtype)
        for index, (layer, cross_layer) in enumerate(zip(self.layers, self.cross_layers, strict=True)):
            tokens_BTW = layer(tokens_BTW, mask, **tokens_before(cache, first_layer + index), **kwargs)
            seen = {} if cache is None else {"cache": cache, "layer": index}
            tokens_BTW = cross_layer(tokens_BTW, context_BCW, **seen, **kwargs)
        return self.final_layer_norm(tokens_BTW)
