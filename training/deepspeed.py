"""DeepSpeed in steps of this package's own: gradients first, and an update only where they are finite.

Accelerate has DeepSpeed update the weights within `backward`, before anyone could look. At ZeRO's stage 0, all that is
served here, DeepSpeed's engine adds gradients up over processes, and the rest stays with the step.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper
from torch import nn

from .recipe_error import RecipeError


def runs_deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure_deepspeed(accelerator: Accelerator, pairs_per_process: int) -> None:
    """There is no data loader that would tell DeepSpeed the size of a batch, and the step clips and casts itself.

    Raises RecipeError for ZeRO's stages, which leave each process a part of the optimizer's state (a checkpoint holds
    the whole), and for weights in half precision.
    """
    plugin = accelerator.state.deepspeed_plugin
    assert plugin is not None
    if plugin.zero_stage > 0:
        raise RecipeError(
            f"DeepSpeed's zero_stage={plugin.zero_stage} leaves parts of the optimizer's state on each process, from "
            "which no checkpoint here can be put together: set zero_stage: 0 in Accelerate's config, or use FSDP2."
        )
    settings = plugin.deepspeed_config
    for dtype in ("bf16", "fp16"):
        if str(settings.get(dtype, {}).get("enabled", False)).lower() == "true":
            raise RecipeError(
                f"DeepSpeed's config enables {dtype}, which makes it keep the weights in it: take it out, and set the "
                "recipe's mixed_precision=bf16, which keeps them in float32."
            )
    settings["train_micro_batch_size_per_gpu"] = pairs_per_process
    settings["gradient_clipping"] = 0.0


def autocast_forward(objective: nn.Module, device: torch.device, precision: str) -> None:
    """Has the objective cast as Accelerate does elsewhere; DeepSpeed switches off what is on around its engine."""
    if precision == "bf16":
        objective.forward = torch.autocast(device.type, torch.bfloat16)(objective.forward)


def take_over_steps(accelerator: Accelerator, optimizer: DeepSpeedOptimizerWrapper, max_norm: float):
    """The optimizer whose `step` updates, of an accelerator whose `backward` no longer does."""
    assert accelerator.deepspeed_engine_wrapped is not None
    engine = accelerator.deepspeed_engine_wrapped.engine
    accelerator.deepspeed_engine_wrapped = _EngineInSteps(engine, max_norm)
    return _EngineOptimizer(optimizer.optimizer, engine)


class _EngineInSteps(DeepSpeedEngineWrapper):
    """What `Accelerator.backward` and `Accelerator.clip_grad_norm_` call."""

    def __init__(self, engine, max_norm: float):
        super().__init__(engine)
        self.max_norm = max_norm

    def backward(self, loss: torch.Tensor, sync_gradients: bool = True, **kwargs) -> None:
        self.engine.backward(loss, **kwargs)

    def get_global_grad_norm(self) -> torch.Tensor:
        return nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.max_norm)


class _EngineOptimizer(DeepSpeedOptimizerWrapper):
    def __init__(self, optimizer: torch.optim.Optimizer, engine):
        super().__init__(optimizer)
        self.engine = engine

    def step(self) -> None:
        self.engine.step()

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        self.engine.zero_grad()
