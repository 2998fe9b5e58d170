"""Layers of the transformers of both towers, and their initial weights.

Shape suffixes: B images or texts, T tokens, W width of a tower, D dimensions of the shared space.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .modeling_loading_hf_clip import resolution_of_weights, set_image_size
from .modeling_products_hf_clip import QUICK_GELU_FACTOR, activation_name, can_fuse, product

_Layer = TypeVar("_Layer", bound=nn.Module)
_Hook = TypeVar("_Hook", bound=Callable)


def with_init_std(std: float, layer: _Layer) -> _Layer:
    """The layer, with the standard deviation of its initial weights noted on it.

    Noted on the layer, not drawn by its parent: transformers passes modules of models outside its tree to
    `_init_weights` only where they hold parameters of their own.
    """
    vars(layer)["initial_std"] = std
    return layer


def as_autocast(tokens: torch.Tensor) -> torch.Tensor:
    """The tokens in the type that autocast gives to products, where it is on: cast once for all layers that read them.

    Autocast itself caches its casts of weights alone.
    """
    kind = tokens.device.type
    # Autocast does not know of tensors without memory.
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return tokens.to(torch.get_autocast_dtype(kind))
    return tokens


def unit_embeddings(embeddings: torch.Tensor) -> torch.Tensor:
    """Unit embeddings, in float32 at least."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; the one implementation that can also return its weights, (B, heads, T, T)."""
    # Queries are smaller than scores.
    weights = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        weights = weights + attention_mask
    # Sums in float32 inside, whatever the type; asked for in float32, it would write and read twice as much.
    weights = weights.softmax(dim=-1).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class OneToken(NamedTuple):
    """The token of each sequence that a last layer is asked for, where no other is pooled.

    Attributes:
        position: of the token, in every sequence or (B,).
        attention_mask: (B or 1, 1, 1, T), added to the scores of the keys; None where the token sees all of them.
    """

    position: int | torch.Tensor
    attention_mask: torch.Tensor | None = None

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1, W)."""
        if isinstance(self.position, int):
            return tokens[:, self.position : self.position + 1]
        rows_B = torch.arange(tokens.shape[0], device=tokens.device)
        return tokens[rows_B, self.position][:, None]


class SharedTokens:
    """Keys and values, in one layer, of the tokens that all texts begin with.

    The layer is called with those tokens first, (1, P, W), and then with those of each text behind them.
    """

    def __init__(self):
        self._held: list[torch.Tensor] = []

    def with_own(self, *own: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values (B, heads, T, width of a head) behind those that are shared; those of the first call."""
        if not self._held:
            self._held = list(own)
            return self._held
        return [
            torch.cat([shared.expand(each.shape[0], -1, -1, -1), each], dim=2)
            for shared, each in zip(self._held, own, strict=True)
        ]


# Of a batch's attention, held at once where that is faster: 128 MB in bf16.
LARGEST_SCORES = 1 << 26

# Classes of a last layer that can be asked for one token: with any other in their place, all tokens are computed. FSDP
# makes subclasses that it names so.
_OWN_LAYERS = {
    f"{prefix}{name}" for prefix in ("", "FSDP") for name in ("HFCLIPEncoderLayer", "HFCLIPAttention", "HFCLIPMLP")
}
_OWN_ATTENTIONS = ("eager", "flash_attention", "flex_attention", "sdpa")
# Hooks that do not look at tokens: those that gather sharded weights, and recorders, which are off unless asked for.
_BLIND_HOOKS = ("torch.distributed.", "transformers.utils.output_capturing")


def blind(hook: _Hook) -> _Hook:
    """The hook, noted as one that does not look at tokens: a last layer that it hooks into may compute one alone."""
    vars(hook)["is_blind"] = True
    return hook


def may_compute_one_token(tower: nn.Module, last: nn.Module, asked: Mapping[str, Any]) -> bool:
    """Whether nobody would see that a tower's last layer computes one token alone.

    False where hidden states or attentions are asked for, where somebody hooked into the layer or around it, or put
    another layer or another attention in the place of ours. Adapters of single linear maps (LoRA) see no difference.

    Args:
        tower: with a `config`.
        last: its last layer.
        asked: the arguments of its forward.
    """
    config: Any = tower.config
    for name in ("output_hidden_states", "output_attentions"):
        if asked.get(name, getattr(config, name, False)):
            return False
    own = [last, getattr(last, "self_attn", None), getattr(last, "mlp", None)]
    if any(type(module).__name__ not in _OWN_LAYERS for module in own):
        return False
    if not str(config._attn_implementation or "eager").startswith(_OWN_ATTENTIONS):
        return False
    return not any(_is_watched(module) for module in (tower, *tower.children(), *last.modules()))


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks may look at what goes into a module or comes out of it, or its `forward` was replaced."""
    held = vars(module)
    if held["_backward_hooks"] or held["_backward_pre_hooks"] or "forward" in held:
        return True
    for hook in (*held["_forward_hooks"].values(), *held["_forward_pre_hooks"].values()):
        is_blind = getattr(hook, "is_blind", False)
        if not (is_blind or str(getattr(hook, "__module__", "")).startswith(_BLIND_HOOKS)):
            return True
    return False


class HFCLIPAttention(nn.Module):
    """Multi-head self-attention, by whichever implementation the config chose."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        # The text tower passes its own with each call.
        self.is_causal = False
        width = config.hidden_size
        self.q_proj = with_init_std(width**-0.5, nn.Linear(width, width))
        self.k_proj = with_init_std(width**-0.5, nn.Linear(width, width))
        self.v_proj = with_init_std(width**-0.5, nn.Linear(width, width))
        # Two layers of each block add to the residual stream: together they add about as much as it begins with.
        std = (2 * width * config.num_hidden_layers) ** -0.5
        self.out_proj = with_init_std(std, nn.Linear(width, width))

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        one_token: OneToken | None = None,
        shared: SharedTokens | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens_BTW = as_autocast(tokens_BTW)
        asked_BTW = tokens_BTW
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        if one_token is not None:
            # One row of scores is no work for a fused kernel.
            asked_BTW, attention_mask = one_token.of(tokens_BTW), one_token.attention_mask
            attend = eager_attention_forward
        is_fused = asked_BTW is tokens_BTW and can_fuse([self.q_proj, self.k_proj, self.v_proj], tokens_BTW)
        projected = self._fused(tokens_BTW) if is_fused else self._projected(asked_BTW, tokens_BTW)
        query, key, value = (self.by_head(each) for each in projected)
        if is_fused and attention_mask is None and not kwargs.get("is_causal", self.is_causal):
            attend = self._faster(attend, tokens_BTW)
        if shared is not None:
            key, value = shared.with_own(key, value)
            # Fewer queries than keys, and their mask, are not for every kernel.
            attend = eager_attention_forward
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        output = output.reshape(asked_BTW.shape)
        if can_fuse([self.out_proj], output):
            return product([self.out_proj], output), weights
        return self.out_proj(output), weights

    def _projected(self, asked_BTW: torch.Tensor, tokens_BTW: torch.Tensor) -> Sequence[torch.Tensor]:
        """Queries of the tokens that are asked for; keys and values of all."""
        return self.q_proj(asked_BTW), self.k_proj(tokens_BTW), self.v_proj(tokens_BTW)

    def _fused(self, tokens_BTW: torch.Tensor) -> Sequence[torch.Tensor]:
        maps = self.q_proj, self.k_proj, self.v_proj
        return product(maps, tokens_BTW).split([each.out_features for each in maps], dim=-1)

    def _faster(self, attend: Callable, tokens_BTW: torch.Tensor) -> Callable:
        """The attention that a CPU computes faster, of one formula."""
        # torch's own for the CPU turns short rows of bf16 into float32: written out, with its scores in memory, it
        # takes half to two thirds.
        count, length = tokens_BTW.shape[:2]
        is_short = (
            count > 1 and length <= 300 and count * self.config.num_attention_heads * length**2 <= LARGEST_SCORES
        )
        is_torchs = self.config._attn_implementation == "sdpa" and tokens_BTW.dtype == torch.bfloat16
        return eager_attention_forward if is_short and is_torchs else attend

    def by_head(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, heads, T, width of a head), of (B, T, W)."""
        return tokens.view(*tokens.shape[:-1], -1, self.head_dim).transpose(1, 2)


class HFCLIPQuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU (Hendrycks and Gimpel 2016).

    Written with SiLU, which keeps one map for the backward pass, where the product of two keeps three.
    """

    def forward(self, map_BTW: torch.Tensor) -> torch.Tensor:
        return F.silu(QUICK_GELU_FACTOR * map_BTW) * (1 / QUICK_GELU_FACTOR)


class HFCLIPMLP(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.activation_fn = HFCLIPQuickGELU() if config.hidden_act == "quick_gelu" else ACT2FN[config.hidden_act]
        width, depth = config.hidden_size, config.num_hidden_layers
        self.fc1 = with_init_std((2 * width) ** -0.5, nn.Linear(width, config.intermediate_size))
        self.fc2 = with_init_std((2 * width * depth) ** -0.5, nn.Linear(config.intermediate_size, width))

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        tokens_BTW = as_autocast(tokens_BTW)
        is_fused = can_fuse([self.fc1], tokens_BTW) and can_fuse([self.fc2], tokens_BTW)
        if is_fused and (name := activation_name(self.activation_fn)) is not None:
            inner = product([self.fc1], tokens_BTW, name)
            return product([self.fc2], inner, factor=1 / QUICK_GELU_FACTOR if name == "quick_gelu" else 1.0)
        return self.fc2(self.activation_fn(self.fc1(tokens_BTW)))


class HFCLIPLayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021)."""

    def __init__(self, width: int, initial_value: float):
        super().__init__()
        self.initial_value = initial_value
        self.weight = nn.Parameter(torch.empty(width))

    def initialize_own(self, factor: float):
        init.constant_(self.weight, self.initial_value)

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        return tokens_BTW * self.weight


def layer_scale(config: HFCLIPTextConfig | HFCLIPVisionConfig) -> nn.Module:
    """The factors of half a layer of this config; nothing where it has none."""
    if config.layer_scale_init_value is None:
        return nn.Identity()
    return HFCLIPLayerScale(config.hidden_size, config.layer_scale_init_value)


class HFCLIPEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = HFCLIPAttention(config)
        self.layer_scale1 = layer_scale(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = HFCLIPMLP(config)
        self.layer_scale2 = layer_scale(config)

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        one_token: OneToken | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, T, W), or (B, 1, W) of the one token that is asked for."""
        if one_token is not None:
            kwargs["one_token"] = one_token
        attended_BTW, _ = self.self_attn(self.layer_norm1(tokens_BTW), attention_mask, **kwargs)
        if one_token is not None:
            tokens_BTW = one_token.of(tokens_BTW)
        tokens_BTW = tokens_BTW + self.layer_scale1(attended_BTW)
        return tokens_BTW + self.layer_scale2(self.mlp(self.layer_norm2(tokens_BTW)))


class HFCLIPEncoder(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(HFCLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        tokens_BTW: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        one_token: OneToken | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, T, W), or (B, 1, W) of the one token that is asked for: all other layers compute all."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            asked = {"one_token": one_token} if one_token is not None and index == last else {}
            tokens_BTW = layer(tokens_BTW, attention_mask, **asked, **kwargs)
        return tokens_BTW


class HFCLIPPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization of all models here. Initial widths are the paper's (OpenAI's model.py)."""

    config: HFCLIPConfig
    base_model_prefix = "hf_clip"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # The losses are means over a batch. Without this, Trainer would take them for divided by `num_items_in_batch`, as
    # those of any forward with `**kwargs`, and add up the gradients of the batches that it accumulates.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = [
        "HFCLIPTextEmbeddings",
        "HFCLIPVisionEmbeddings",
        "HFCLIPNaFlexEmbeddings",
        "HFCLIPEncoderLayer",
        "HFCLIPPoolingHead",
        "HFCLIPQueryPooling",
        "HFCLIPClassTokenEmbeddings",
        "HFCLIPCrossLayer",
    ]
    _can_record_outputs = {"hidden_states": HFCLIPEncoderLayer, "attentions": HFCLIPAttention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs) -> Any:
        """As transformers has it. A `config` of another `image_size` has the positions resampled.

        That needs `ignore_mismatched_sizes=True`; nothing is drawn at random then. The same as
        `hf_clip.load(..., image_size=...)`, but for the processor, whose size is its own.

        Raises:
            ValueError: for another `image_size` without `ignore_mismatched_sizes=True`, and one that the tower does
                not take.
        """
        assert cls.config_class is not None
        found = resolution_of_weights(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        if found is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        config, image_size = found
        kwargs = {name: value for name, value in kwargs.items() if name not in ("image_size", "vision_config")}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        # With `output_loading_info`, a pair.
        set_image_size(loaded[0] if isinstance(loaded, tuple) else loaded, image_size)
        return loaded

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """As transformers has it. A text tower that pools at the highest id pools at the end token from then on."""
        text = self.config.get_text_config()
        is_marked = text.tower == "clip" and text.eos_token_id == POOL_AT_HIGHEST_ID
        if new_num_tokens and is_marked and text.pooling != "first_eos":
            # So far the end token had the highest id; an added token would take its place.
            text.eos_token_id = text.vocab_size - 1
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if getattr(text, "tower_config", None) is not None:
            # By which a tower of transformers is made again.
            text.tower_config.vocab_size = text.vocab_size
        return embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        # Quantized layers have no weight to draw.
        std, weight = getattr(module, "initial_std", None), getattr(module, "weight", None)
        if std is not None and isinstance(weight, torch.Tensor):
            init.normal_(weight, std=std * factor)
        if (initialize_own := getattr(module, "initialize_own", None)) is not None:
            initialize_own(factor)
