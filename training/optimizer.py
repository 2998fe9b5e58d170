"""AdamW over two kinds of parameters, the cosine schedule, and the bounds of the logit scale."""

import math

import torch
from torch import nn

from .config import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels are decayed; gains, biases, class embedding and logit scale (under two axes) are not."""
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of update `step` (from 0) of `steps`: a linear rise, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    fraction = config.final_learning_rate_fraction
    return config.learning_rate * (fraction + (1 - fraction) * (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def clamp_logit_scale(logit_scale: nn.Parameter, max_logit_scale: float) -> None:
    """Keeps the learned logarithm in [ln 1, ln max]: the paper's bound against unstable training (section 2.5)."""
    logit_scale.clamp_(0.0, math.log(max_logit_scale))
