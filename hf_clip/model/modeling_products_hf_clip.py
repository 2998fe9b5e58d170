"""Products of inference on a CPU, from copies of the weights that lie as its kernels want them.

Eager torch lays a weight out in every call, and writes and reads a map once more for each of bias and activation.
Here several maps of one input are one product, from weights that are laid out once, with the bias and the activation
inside. With ViT-B/32 one image takes two thirds of the time, sixteen nine tenths.

The copies are a view: the modules and their weights stay as they are, and plain layers are computed wherever somebody
could see a difference (hooks, adapters, gradients, other devices). A weight that changes is copied again.
"""

# Shapes: I and O features in and out; B images, C channels, H and W rows and columns of pixels.

import math
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

# Bytes of all copies in a process. Of a model that could fill the memory, only the first layers have copies.
LARGEST_COPIES = 2 << 30
# oneDNN's names and algorithms, by transformers' names. A QuickGELU is a SiLU with its factors in the weights.
_ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "quick_gelu": ("swish", ""),
    "relu": ("relu", ""),
    None: ("none", ""),
}
QUICK_GELU_FACTOR = 1.702
# The same by classes of modules.
_NAMES = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "HFCLIPQuickGELU": "quick_gelu",
    "ReLU": "relu",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_Map = nn.Linear | nn.Conv2d


class _Seen(NamedTuple):
    """By which a tensor is known again.

    A sample of its values sees what torch's counter of changes does not: writing through `.data` and through NumPy.
    """

    address: int
    version: int
    stride: int
    sample: torch.Tensor


class _Copy(NamedTuple):
    """The weights (O, I) of maps side by side, in oneDNN's order, and what they were made of."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    dtype: torch.dtype
    factor: float
    seen: list[_Seen]


# By the first map. A model that is copied, pickled or freed knows nothing of it.
_COPIES: weakref.WeakKeyDictionary[nn.Module, _Copy] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def can_fuse(maps: Sequence[_Map], tokens: torch.Tensor) -> bool:
    """Whether nobody would see that `product` computes maps of these tokens.

    Args:
        maps: linear, of one input; or one convolution, of pixels.
        tokens: (..., I), in the type that the maps compute in.
    """
    # First, and nothing that a compiler cannot follow, or that a trace would keep.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or tokens.device.type != "cpu":
        return False
    if tokens.dtype not in _fast_dtypes():
        return False
    # A subclass of tensors, or what looks at operations on their way, has its own idea of a product.
    if _is_looked_at() or type(tokens) is not torch.Tensor or not tokens.numel():
        return False
    if not all(_is_plain(each, tokens) for each in maps) or len({each.bias is None for each in maps}) > 1:
        return False
    return maps[0] in _COPIES or _has_room(maps, tokens.dtype)


def activation_name(module: nn.Module) -> str | None:
    """By which `product` knows an activation; None for others, and where somebody looks at its input or output."""
    return None if _is_watched(module) else _NAMES.get(type(module).__name__)


@cache
def _fast_dtypes() -> tuple[torch.dtype, ...]:
    """The types that oneDNN multiplies fast here. It refuses bf16 on other processors; on ARM nothing was measured."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return ()
    # Not `is_fast_at_bf16`, which asks whether oneDNN is switched on at the moment.
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


def product(
    maps: Sequence[_Map], tokens: torch.Tensor, activation: str | None = None, factor: float = 1.0
) -> torch.Tensor:
    """(..., O): what maps that `can_fuse` has passed make of tokens, side by side.

    Args:
        maps: of as many features in, and all with a bias or all without.
        tokens: (..., I).
        activation: of `activation_name`. A QuickGELU's output is QUICK_GELU_FACTOR times too large.
        factor: of the weights, not of the biases.
    """
    inner = QUICK_GELU_FACTOR if activation == "quick_gelu" else 1.0
    copy = _COPIES.get(maps[0])
    if copy is None or (copy.dtype, copy.factor) != (tokens.dtype, factor * inner) or not _are_same(maps, copy.seen):
        copy = _copied(maps, tokens.dtype, factor * inner, inner)
        with _LOCK:
            _COPIES[maps[0]] = copy
    name, algorithm = _ACTIVATIONS[activation]
    return torch.ops.mkldnn._linear_pointwise.default(tokens, copy.weight, copy.bias, name, [], algorithm)


def patch_product(convolution: nn.Conv2d, pixels: torch.Tensor) -> torch.Tensor:
    """(B, patches in reading order, O): a convolution of patches that lie side by side, as a product where it can be.

    Args:
        convolution: whose stride is its kernel's size, without padding.
        pixels: (B, C, H, W), in the type that it computes in. What is left of whole patches is cut off.
    """
    if not can_fuse([convolution], pixels):
        return convolution(pixels).flatten(2).transpose(1, 2)
    high, wide = convolution.kernel_size
    rows, columns = pixels.shape[-2] // high, pixels.shape[-1] // wide
    whole = pixels[..., : rows * high, : columns * wide]
    patches = whole.unflatten(-1, (columns, wide)).unflatten(-3, (rows, high)).permute(0, 2, 4, 1, 3, 5)
    return product([convolution], patches.flatten(3).flatten(1, 2))


def _is_looked_at() -> bool:
    return bool(
        not torch.backends.mkldnn.enabled
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _has_any_global_hook()
    )


def _is_plain(module: _Map, tokens: torch.Tensor) -> bool:
    # Adapters and quantized maps are of another class.
    if type(module) not in (nn.Linear, nn.Conv2d) or module.training or _is_watched(module):
        return False
    is_cast = torch.is_autocast_enabled("cpu")
    for tensor in _tensors([module]):
        if type(tensor) not in (nn.Parameter, torch.Tensor) or tensor.is_inference() or not tensor.is_contiguous():
            return False
        if tensor.device != tokens.device or (tensor.dtype != tokens.dtype and not is_cast):
            return False
    return True


def _is_watched(module: nn.Module) -> bool:
    """Whether it has hooks, or another `forward`, as what is offloaded has."""
    held = vars(module)
    return "forward" in held or any(held[name] for name in _HOOKS)


def _tensors(maps: Sequence[_Map]) -> list[torch.Tensor]:
    return [tensor for each in maps for tensor in (each.weight, each.bias) if tensor is not None]


def _has_room(maps: Sequence[_Map], dtype: torch.dtype) -> bool:
    with _LOCK:
        held = sum(copy.weight.numel() * copy.dtype.itemsize for copy in _COPIES.values())
    return held + sum(each.weight.numel() for each in maps) * dtype.itemsize <= LARGEST_COPIES


def _copied(maps: Sequence[_Map], dtype: torch.dtype, factor: float, factor_of_bias: float) -> _Copy:
    # First, so that a change meanwhile by another thread is found in the next call.
    seen = [_seen(each) for each in _tensors(maps)]
    weight = (torch.cat([each.weight.flatten(1) for each in maps]) * factor).to(dtype)
    biases = [each.bias for each in maps if each.bias is not None]
    bias = (torch.cat(biases) * factor_of_bias).to(dtype) if biases else None
    return _Copy(torch.ops.mkldnn._reorder_linear_weight.default(weight), bias, dtype, factor, seen)


def _seen(tensor: torch.Tensor) -> _Seen:
    stride = _stride(tensor)
    return _Seen(tensor.data_ptr(), tensor._version, stride, _sample(tensor, stride).clone())


def _are_same(maps: Sequence[_Map], seen: list[_Seen]) -> bool:
    tensors = _tensors(maps)
    return len(tensors) == len(seen) and all(
        (tensor.data_ptr(), tensor._version) == (before.address, before.version)
        and torch.equal(_sample(tensor, before.stride), before.sample)
        for tensor, before in zip(tensors, seen, strict=True)
    )


def _stride(tensor: torch.Tensor) -> int:
    """The largest by which a sample of a matrix meets all its rows and columns: below both, coprime to a row."""
    if tensor.dim() == 1:
        return 1
    rows, columns = tensor.flatten(1).shape
    stride = max(min(rows, columns) - 1, 1)
    while math.gcd(stride, columns) > 1:
        stride -= 1
    return stride


def _sample(tensor: torch.Tensor, stride: int) -> torch.Tensor:
    return tensor.detach().view(-1)[::stride]
