"""One run on several processes: what is possible, how a model is made ready, and how it is put together again."""

import os
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, is_deepspeed_available
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .config import RecipeError, TrainConfig
from .deepspeed import autocast_forward, runs_deepspeed, take_over_steps, tell_deepspeed
from .device import arrange_for_speed, choose_precision, fastest_device, keep_freed_memory
from .full_tensors import is_sharded, whole
from .layer_groups import has_batch_statistics, lock, recompute_activations
from .objective import ContrastiveObjective
from .optimizer import make_optimizer


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate for the fastest device and the processes of the launcher, sharded as its config has it.

    Raises:
        RecipeError: the recipe wants what this device or this way of launching cannot do.
    """
    device = fastest_device()
    _require_possible(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    is_deepspeed = _is_set("ACCELERATE_USE_DEEPSPEED")
    accelerator = Accelerator(
        # With DeepSpeed, whose way is to cast the weights too, the objective casts.
        mixed_precision="no" if is_deepspeed else choose_precision(config.mixed_precision, device),
        # Unless it is told that there is only a CPU, it takes the processes of a launcher for so many runs of one.
        cpu=device.type == "cpu",
        # Position ids never change, and of batch norms' statistics the first process's are kept.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    for asked_for, is_done in (("FSDP", accelerator.is_fsdp2), ("DEEPSPEED", runs_deepspeed(accelerator))):
        if _is_set(f"ACCELERATE_USE_{asked_for}") and not is_done:
            raise RecipeError(
                f"Accelerate's config asks for {asked_for}, for which it needs several processes and a GPU for each "
                f"({accelerator.num_processes} on {device.type} here): launch with torchrun, which copies the weights "
                "(DDP)."
            )
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.mixed_precision_policy = _sharded_precision(accelerator.mixed_precision)
    if runs_deepspeed(accelerator):
        tell_deepspeed(accelerator, config)
    return accelerator


def _require_possible(config: TrainConfig, device: torch.device) -> None:
    if config.mixed_precision == "fp16" and device.type != "cuda":
        raise RecipeError(f"mixed_precision=fp16 needs a CUDA GPU, and the device is {device.type}: use bf16 or no.")
    if _is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("Accelerate is set to FSDP's first version: set fsdp_version: 2 in its config.")
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return
    if config.micro_batch_size is not None:
        raise RecipeError(
            f"micro_batch_size={config.micro_batch_size} does not go with DeepSpeed, which cannot run the two passes "
            "of cached gradients: leave micro_batch_size out, or launch with DDP or FSDP2."
        )
    if config.mixed_precision == "fp16":
        raise RecipeError("mixed_precision=fp16 does not go with DeepSpeed here: use bf16 or no, or launch with DDP.")
    if not is_deepspeed_available():
        raise RecipeError("Accelerate's config asks for DeepSpeed, which is not installed: pip install deepspeed.")


def _sharded_precision(precision: str) -> MixedPrecisionPolicy:
    """Layers in half precision, sums of their gradients over micro-batches and processes in float32.

    Accelerate's own policy adds up in half precision too.
    """
    if precision == "no":
        return MixedPrecisionPolicy()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def prepare(
    model: HFCLIPModel, config: TrainConfig, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model's objective and its optimizer, ready for steps on the accelerator's device and processes.

    Raises RecipeError for a tower with fewer parts than `unlocked_groups`, for odd batches that are to be mixed, and
    for a sigmoid's labels that are to be smoothed.
    """
    if config.label_smoothing and model.logit_bias is not None:
        raise RecipeError(
            f"label_smoothing={config.label_smoothing} is for the softmax's targets, and this model has the sigmoid "
            "loss: set label_smoothing=0."
        )
    _require_neighbours(config, accelerator.num_processes)
    arrange_for_speed(model, accelerator.device)
    lock(model, config.optimizer)
    if config.gradient_checkpointing:
        recompute_activations(model)
    if config.torch_compile:
        for tower in (model.vision_model, model.text_model):
            # In place: the names of the weights stay.
            tower.compile()
    if accelerator.is_fsdp2 or runs_deepspeed(accelerator):
        give_plain_parameters(model)
    objective = ContrastiveObjective(model, config.data.keyword_weight, config.label_smoothing)
    if runs_deepspeed(accelerator):
        precision = choose_precision(config.mixed_precision, accelerator.device)
        autocast_forward(objective, accelerator.device, precision)
    with warnings.catch_warnings():
        # torch renames what Accelerate has one name for (`broadcast_buffers`).
        warnings.simplefilter("ignore", FutureWarning)
        objective, optimizer = accelerator.prepare(objective, make_optimizer(model, config.optimizer))
    if runs_deepspeed(accelerator):
        optimizer = take_over_steps(accelerator, optimizer, config.optimizer.max_gradient_norm)
    return objective, optimizer


def _require_neighbours(config: TrainConfig, num_processes: int) -> None:
    """Raises RecipeError where images are to be mixed two by two, and one would be left over."""
    share = config.batch_size // num_processes
    micro = min(config.micro_batch_size or share, share)
    if config.augmentation.mixup and (share % 2 or micro % 2):
        raise RecipeError(
            f"augmentation.mixup mixes images two by two, and a process has {share} of a batch, in pieces of "
            f"{micro}: make batch_size, a process's share of it and micro_batch_size even, or "
            "set augmentation.mixup=0."
        )


def note_on_batch_statistics(model: HFCLIPModel, config: TrainConfig, num_processes: int) -> str | None:
    """What is to be said of a model whose batch norms learn, where a batch is not looked at as a whole."""
    share = config.batch_size // num_processes
    size = min(config.micro_batch_size or share, share)
    if size == config.batch_size or not has_batch_statistics(model, config.optimizer):
        return None
    return (
        f"The model has batch norms: they see {size} of the batch's {config.batch_size} pairs at a time, so that "
        "other numbers of processes or sizes of micro-batches train another model. Lock the tower to freeze them "
        "(optimizer.vision_tower.unlocked_groups=1 trains its projection alone)."
    )


def give_plain_parameters(model: HFCLIPModel) -> None:
    """Gives the scale an axis, and kernels their plain layout: FSDP2 and DeepSpeed take no parameter without either.

    `whole_model` takes the axis away again.
    """
    model.to(memory_format=torch.contiguous_format)
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))


def whole_model(model: HFCLIPModel) -> HFCLIPModel:
    """The model itself, or a copy on its device where it is sharded, or its scale has one axis more. Collective."""
    has_own_scale = model.logit_scale.ndim == 0 or model.logit_bias is not None
    if has_own_scale and not is_sharded(model):
        return model
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    attention = model.config._attn_implementation
    copy = type(model)._from_config(model.config, dtype=model.dtype, attn_implementation=attention)
    state["logit_scale"] = state["logit_scale"].reshape(copy.logit_scale.shape)
    copy.load_state_dict(state)
    return copy.to(model.device)


def optimizer_state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `load_optimizer_state` takes. Collective where weights are sharded."""
    if not is_sharded(objective):
        return optimizer.state_dict()
    return get_optimizer_state_dict(
        objective, _bare(optimizer), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_optimizer_state(objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Collective where weights are sharded."""
    if not is_sharded(objective):
        optimizer.load_state_dict(state)
    else:
        set_optimizer_state_dict(objective, _bare(optimizer), state, options=StateDictOptions(full_state_dict=True))


def _bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer within Accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)
