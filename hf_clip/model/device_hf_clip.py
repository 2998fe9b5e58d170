"""In which precision a device computes fast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def is_fast_at_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones there: by its instructions, not by a race.

    On a CPU that takes AMX or AVX-512's bf16 instructions, and oneDNN, which uses them. Elsewhere bf16 is emulated,
    and slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has_onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        return has_onednn and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def fast_dtype(dtype: torch.dtype | str | None, device: torch.device | str) -> torch.dtype | str | None:
    """The dtype in which to load a model: "auto" is bf16 where the device is fast at it, else float32 on a CPU.

    On other devices "auto" is None, the file's own dtype. Anything but "auto" comes back as it is.
    """
    if dtype != "auto":
        return dtype
    device = torch.device(device)
    if is_fast_at_bf16(device):
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else None


def computing_in(model: Any, dtype: torch.dtype | str | None) -> AbstractContextManager:
    """Within, the model computes in that dtype and keeps its weights as they are: by torch's autocast.

    Args:
        model: with `dtype` and `device`.
        dtype: one of DTYPES, or torch's; None: the model's own. "auto" makes bf16 of a float32 model where the
            device is fast at it.

    Raises:
        ValueError: for another dtype, and for float32 of a model whose weights are in half precision.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in DTYPES:
        raise ValueError(f"`dtype={name}` is unknown: use one of {', '.join(DTYPES)}.")
    own = str(model.dtype).removeprefix("torch.")
    if name == "float32" and own in ("bfloat16", "float16"):
        raise ValueError(f"`dtype=float32`: the weights of the model are {own}. Load it with `dtype='float32'`.")
    if name == "auto" and own == "float32" and is_fast_at_bf16(model.device):
        name = "bfloat16"
    if name in ("None", "auto", "float32") or name == own:
        return nullcontext()
    return torch.autocast(model.device.type, getattr(torch, name))
