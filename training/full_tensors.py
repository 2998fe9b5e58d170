"""Tensors that are spread over processes (FSDP2), whole again and back."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, put together from its shards. Collective for one that is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(reference: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor that all processes have, sharded as the reference is: each keeps its part."""
    if not isinstance(reference, DTensor):
        return tensor
    tensor = tensor.to(reference.device)
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
