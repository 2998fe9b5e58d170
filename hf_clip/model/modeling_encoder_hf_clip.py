"""The layers of a tower in their order, and a view of them that computes faster on a CPU where no gradient is wanted.

The view holds copies of the weights as the processor likes them: queries, keys and values in one product, bias,
activation and residual sum inside the products, layer scales folded in. They double the memory of the layers, and go
once a weight, a module or the device is another. Nothing on the modules or on disk knows of them.

Shape suffixes: B images or texts, T tokens, W width of the tower.
"""

import functools
import operator
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_hf_clip import HFCLIPTextConfig, HFCLIPVisionConfig
from .device_hf_clip import is_fast_at_bf16
from .modeling_layers_hf_clip import (
    HFCLIPMLP,
    HFCLIPAttention,
    HFCLIPEncoderLayer,
    HFCLIPLayerScale,
    HFCLIPQuickGELU,
    OneToken,
    SharedTokens,
    asks_for_more,
    is_watched,
)

# How oneDNN names what it applies inside a product, by the class of the activation. QuickGELU is SiLU of 1.702 times
# its input.
_INSIDE = {
    "HFCLIPQuickGELU": ("swish", ""),
    "GELUActivation": ("gelu", "none"),
    "GELUTanh": ("gelu", "tanh"),
}
_OF_QUICK_GELU = 1.702
# Numbers of every weight that are looked at with every call: a change that torch does not count (`weight.data`) is
# one of all numbers, as a rule.
_SAMPLED = 61
# Copies that would take more than this part of the machine's memory are not made.
_PART_OF_MEMORY = 4
_views: "WeakKeyDictionary[HFCLIPEncoder, _View]" = WeakKeyDictionary()
_building = threading.Lock()


class HFCLIPEncoder(nn.Module):
    """The layers of a tower."""

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
        for index, layer in enumerate(self.fastest_layers(tokens_BTW, kwargs)):
            asked = {"one_token": one_token} if one_token is not None and index == last else {}
            tokens_BTW = layer(tokens_BTW, attention_mask, **asked, **kwargs)
        return tokens_BTW

    def fastest_layers(self, tokens_BTW: torch.Tensor, asked: Mapping[str, Any]) -> Sequence[Any]:
        """The layers, or what computes the same faster for these tokens where nobody would see it.

        Args:
            asked: the arguments of the tower's forward.
        """
        dtype = _dtype_of_view(self, tokens_BTW, asked)
        state = None if dtype is None else _state(self)
        if dtype is None or state is None:
            if not torch.compiler.is_compiling():
                _views.pop(self, None)
            return self.layers
        view = _views.get(self)
        if view is None or not view.is_of(state, dtype):
            # Before the new copies are made: not both at once.
            _views.pop(self, None)
            size = sum(each.nbytes for each in state.parameters)
            if not all(map(_is_plain, self.layers)) or size * _PART_OF_MEMORY > _memory():
                return self.layers
            with _building:
                view = _views[self] = _View(self.layers, state, dtype)
        return view.layers


class _State(NamedTuple):
    """All that a view depends on, but for the numbers of the weights."""

    modules: list[nn.Module]
    classes: list[type]
    parameters: list[nn.Parameter]
    versions: list[tuple[int, int]]


def _dtype_of_view(encoder: HFCLIPEncoder, tokens_BTW: torch.Tensor, asked: Mapping[str, Any]) -> torch.dtype | None:
    """What a view would compute in; None where the layers themselves are to be called, by what is cheap to know."""
    if torch.is_grad_enabled() or encoder.training or tokens_BTW.device.type != "cpu":
        return None
    # Traces, and modes that count or change what is computed, are to see the layers.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return None
    config = getattr(getattr(next(iter(encoder.layers), None), "self_attn", None), "config", None)
    if type(tokens_BTW) is not torch.Tensor or config is None or asks_for_more(config, asked):
        return None
    if str(config._attn_implementation or "eager") not in ("eager", "sdpa"):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens_BTW.dtype
    is_fast = dtype in (torch.float32, torch.float64)
    return dtype if is_fast or (dtype == torch.bfloat16 and is_fast_at_bf16(tokens_BTW.device)) else None


def _state(encoder: HFCLIPEncoder) -> _State | None:
    """None where weights are no plain tensors of one dtype on the CPU, or somebody looks into a layer."""
    modules = list(encoder.layers.modules())
    if any(map(is_watched, modules)):
        return None
    parameters = [each for module in modules for each in module._parameters.values() if each is not None]
    # Weights of quantized and of sharded models are of other classes.
    if set(map(type, parameters)) != {nn.Parameter} or any(each.is_inference() for each in parameters):
        return None
    if len({each.dtype for each in parameters}) > 1 or any(each.device.type != "cpu" for each in parameters):
        return None
    versions = [(each._version, each.data_ptr()) for each in parameters]
    return _State(modules, list(map(type, modules)), parameters, versions)


def _is_plain(layer: Any) -> bool:
    """Whether a layer is ours, made of torch's own linear maps."""
    classes = (HFCLIPEncoderLayer, HFCLIPAttention, HFCLIPMLP)
    if tuple(map(type, (layer, getattr(layer, "self_attn", None), getattr(layer, "mlp", None)))) != classes:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    maps = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2)
    scales = (layer.layer_scale1, layer.layer_scale2)
    return all(type(each) is nn.Linear for each in maps) and all(
        type(each) in (nn.Identity, HFCLIPLayerScale) for each in scales
    )


@functools.cache
def _memory() -> float:
    """Bytes of the machine's memory; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


class _View:
    """The layers of an encoder in a state."""

    def __init__(self, layers: nn.ModuleList, state: _State, dtype: torch.dtype):
        self.state, self.dtype = state, dtype
        with torch.no_grad():
            flat = [each.detach().view(-1) for each in state.parameters if each.ndim == 2 and each.is_contiguous()]
            self.sampled = [each[:: max(1, len(each) // _SAMPLED)] for each in flat]
            self.samples = [each.clone() for each in self.sampled]
            last = len(layers) - 1
            self.layers = [_Layer(layer, dtype, index == last) for index, layer in enumerate(layers)]

    def is_of(self, state: _State, dtype: torch.dtype) -> bool:
        """Whether the copies are those that the state asks for."""
        mine = self.state
        if dtype != self.dtype or state.versions != mine.versions or state.classes != mine.classes:
            return False
        if not all(map(operator.is_, (*state.modules, *state.parameters), (*mine.modules, *mine.parameters))):
            return False
        return all(map(torch.equal, self.sampled, self.samples))


class _Layer:
    """A layer of the view: called as the layer is."""

    def __init__(self, layer: HFCLIPEncoderLayer, dtype: torch.dtype, is_last: bool):
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.attention, self.dtype = layer, attention, dtype
        of_keys = [attention.k_proj, attention.v_proj]
        # The last layer may be asked for one token, whose query alone is wanted.
        self.query = _Product([attention.q_proj], dtype) if is_last else None
        self.rest = _Product(of_keys if is_last else [attention.q_proj, *of_keys], dtype)
        self.out = _Product([attention.out_proj], dtype, factor=getattr(layer.layer_scale1, "weight", None))
        inside = _INSIDE.get(type(mlp.activation_fn).__name__)
        self.other = mlp.activation_fn if inside is None else None
        folded = _OF_QUICK_GELU if isinstance(mlp.activation_fn, HFCLIPQuickGELU) else None
        self.fc1 = _Product([mlp.fc1], dtype, factor=folded, inside=inside)
        scale = getattr(layer.layer_scale2, "weight", None)
        self.fc2 = _Product([mlp.fc2], dtype, factor=scale, divisor=folded)

    def __call__(
        self,
        tokens_BTW: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        one_token: OneToken | None = None,
        shared: SharedTokens | None = None,
        **kwargs,
    ) -> torch.Tensor:
        normal_BTW = self.layer.layer_norm1(tokens_BTW).to(self.dtype)
        heads = self._by_head(self.rest(normal_BTW))
        if self.query is not None:
            asked_BTW = normal_BTW if one_token is None else one_token.of(normal_BTW)
            heads = [*self._by_head(self.query(asked_BTW)), *heads]
        attended_BTW, _ = self.attention.attended(*heads, attention_mask, one_token, shared, **kwargs)
        if one_token is not None:
            tokens_BTW = one_token.of(tokens_BTW)
        tokens_BTW = self.out(attended_BTW, tokens_BTW)
        map_BTW = self.fc1(self.layer.layer_norm2(tokens_BTW).to(self.dtype))
        if self.other is not None:
            map_BTW = self.other(map_BTW)
        return self.fc2(map_BTW, tokens_BTW)

    def _by_head(self, rows_BTW: torch.Tensor) -> list[torch.Tensor]:
        """Each (B, heads, T, head_dim): views into the rows, which are not copied."""
        rows = rows_BTW.unflatten(-1, (-1, self.attention.config.num_attention_heads, self.attention.head_dim))
        return [each.transpose(1, 2) for each in rows.unbind(2)]


class _Product:
    """Linear maps of the same rows in one product.

    Args:
        maps: one or more.
        dtype: of the copies.
        factor: of all that comes out, a number or (W,).
        divisor: of all that goes in.
        inside: the activation behind it, by oneDNN's name and algorithm.
    """

    def __init__(
        self,
        maps: Sequence[nn.Linear],
        dtype: torch.dtype,
        *,
        factor: float | torch.Tensor | None = None,
        divisor: float | None = None,
        inside: tuple[str, str] | None = None,
    ):
        weight_OI = torch.cat([each.weight.detach() for each in maps])
        biases = [each.bias for each in maps]
        bias_O = None if any(each is None for each in biases) else torch.cat([each.detach() for each in biases])
        if factor is not None:
            factor_O1 = factor.detach()[:, None] if isinstance(factor, torch.Tensor) else factor
            weight_OI = weight_OI * factor_O1
            bias_O = (
                None if bias_O is None else bias_O * (factor.detach() if isinstance(factor, torch.Tensor) else factor)
            )
        if divisor is not None:
            weight_OI = weight_OI / divisor
        self.weight, self.bias = weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype)
        self.name, self.algorithm = inside or ("none", "")
        self.is_packed = has_pointwise(dtype)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, rows: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """The product of (..., I) rows, behind the activation, and with what is added, (..., O), on top."""
        is_inside = added is not None and added.dtype == rows.dtype
        if self.is_packed and is_inside:
            return torch.ops.mkldnn._linear_pointwise.binary(rows, added, self.weight, self.bias, "add")
        if self.is_packed:
            made = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, self.name, [], self.algorithm)
        else:
            made = F.linear(rows, self.weight, self.bias)
            if self.name == "swish":
                made = F.silu(made, inplace=True)
            elif self.name == "gelu":
                made = F.gelu(made, approximate=self.algorithm)
        if added is None:
            return made
        return made.add_(added) if is_inside else added + made


@functools.cache
def has_pointwise(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's products with a pointwise end, and they give what products and functions do."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, 32, generator=generator).to(dtype) for size in (24, 48))
    bias, added = weight[:, 0].contiguous(), torch.randn(24, 48, generator=generator).to(dtype)
    plain = F.linear(rows, weight, bias)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    try:
        with torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            pairs = [(torch.ops.mkldnn._linear_pointwise.binary(rows, added, packed, bias, "add"), plain + added)]
            ends = {("none", ""): plain, ("swish", ""): F.silu(plain)}
            ends |= {("gelu", how): F.gelu(plain, approximate=how) for how in ("none", "tanh")}
            for (name, how), expected in ends.items():
                pairs.append((torch.ops.mkldnn._linear_pointwise(rows, packed, bias, name, [], how), expected))
        return all(torch.allclose(found, expected, **close) for found, expected in pairs)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
