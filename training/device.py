"""What is fast on the device of a run."""

import ctypes
import os
from typing import TYPE_CHECKING, Any, cast

import torch

from hf_clip.model.device_hf_clip import is_fast_at_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of malloc.h: numbers of its settings.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def fastest_device() -> torch.device:
    """The device to use where none is asked for."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> str:
    """Accelerate's name for the precision: `wanted`, or what is fast where that is "auto"."""
    if wanted != "auto":
        return wanted
    return "bf16" if is_fast_at_bf16(device) else "no"


def fastest_attention(device: str, precision: str) -> str:
    """transformers' name of the attention that trains fastest there."""
    return "eager" if device == "cpu" and precision != "no" else "sdpa"


def arrange_for_speed(model: "PreTrainedModel", device: torch.device, precision: str) -> None:
    """Chooses the attention and the memory layout that train fastest on the device; the numbers stay the same.

    On a CPU in bf16, the backward of fused attention was seen eight times slower than attention written out, at 65
    tokens; in float32 a whole step was 1.2 times faster with it. Convolutions want channels last, where oneDNN and
    cuDNN have their fastest kernels.
    """
    model.set_attn_implementation(fastest_attention(device.type, precision))
    # torch's own signature lacks the argument.
    cast(Any, model).to(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Has malloc keep what is freed for the next tensor of its size; does nothing where malloc is not glibc's.

    glibc asks the kernel for every large tensor and gives it back at once. The kernel clears each page again: the
    arithmetic of a step waits for hundreds of thousands of page faults. The process's peak hardly grows by what is
    kept, as each micro-batch wants the memory of the last. The environment's own settings of malloc are kept.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if not is_set:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
