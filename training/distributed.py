"""Tensors and states that are spread over processes (FSDP2), put together and spread again."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_clip.model.modeling_hf_clip import HFCLIPModel


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, put together from its shards. Collective for one that is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_main(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor for the main process to write: one that is sharded, whole on its CPU, and empty on all others.

    Collective for one that is sharded. A whole copy of all weights on every GPU would be what sharding saves.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(reference: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor that all processes have, sharded as the reference is: each keeps its part."""
    if not isinstance(reference, DTensor):
        return tensor
    tensor = tensor.to(reference.device)
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def give_plain_parameters(model: HFCLIPModel) -> None:
    """Gives the scale an axis, and kernels their plain layout: FSDP2 and DeepSpeed take no parameter without either.

    `full_model` takes the axis away again.
    """
    # torch's own signature lacks the argument.
    cast(Any, model).to(memory_format=torch.contiguous_format)
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))


def full_model(model: HFCLIPModel, *, everywhere: bool = True) -> HFCLIPModel:
    """The model itself, or a copy where it is sharded, or its scale has one axis more. Collective.

    The copy is on the model's device, or with `everywhere=False` on the CPU of the main process alone: others then get
    the model itself, which is not to be used.
    """
    has_own_scale = model.logit_scale.ndim == 0 or model.logit_bias is not None
    if has_own_scale and not is_sharded(model):
        return model
    whole = full_tensor if everywhere else on_main
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    if not everywhere and dist.is_initialized() and dist.get_rank() != 0:
        return model
    attention = model.config._attn_implementation
    copy = type(model)._from_config(model.config, dtype=model.dtype, attn_implementation=attention)
    state["logit_scale"] = state["logit_scale"].reshape(copy.logit_scale.shape)
    copy.load_state_dict(state)
    nn.Module.to(copy, model.device if everywhere else "cpu")
    return copy


def optimizer_state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `load_optimizer_state` takes. Collective where weights are sharded."""
    if not is_sharded(objective):
        return optimizer.state_dict()
    return get_optimizer_state_dict(
        objective, bare_optimizer(optimizer), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_optimizer_state(objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Collective where weights are sharded."""
    if not is_sharded(objective):
        optimizer.load_state_dict(state)
    else:
        set_optimizer_state_dict(
            objective, bare_optimizer(optimizer), state, options=StateDictOptions(full_state_dict=True)
        )


def bare_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer within Accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)
