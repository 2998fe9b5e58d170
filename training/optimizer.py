"""AdamW, or Muon together with AdamW; the schedule of their rates, and the bounds of the logit scale."""

import math
from typing import cast

import torch
from torch import nn

from hf_clip.model.device_hf_clip import is_fast_at_bf16
from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .config import OptimizerConfig
from .distributed import full_tensor, sharded_like
from .layer_groups import learning_rate_factors

# Quintic Newton-Schulz steps (Jordan et al. 2024) whose slope at 0 is as steep as it can be made: they bring singular
# values into about 0.7 to 1.2, not to 1, which does as well and takes five steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for groups with `is_muon`, AdamW for the others.

    Muon replaces the momentum of a matrix by the nearest matrix whose singular values are all 1, so that an update
    moves every direction that the layer can tell apart equally far, and not just the few that dominate gradients. A
    convolution's kernel is taken as a matrix of its output channels by all else. Its weight decay is decoupled, as
    AdamW's is. A matrix that is sharded (FSDP2) is put together for its update, one at a time, on every process:
    steps are collective then.
    """

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        # AdamW goes over all groups that there are.
        self.param_groups = [group for group in groups if not group["is_muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["is_muon"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._step_matrix(weight, group)
        return loss

    def _step_matrix(self, weight: nn.Parameter, group: dict) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            # AdamW, when it loads a state, asks every parameter's for a count of steps.
            state.update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(weight))
        state["step"] += 1
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        # Nesterov's: the gradient counts once more.
        direction = gradient.lerp(momentum, group["momentum"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        # A shard's rows are not orthogonal to those of the others by themselves.
        update = sharded_like(weight, orthogonalized(full_tensor(direction)))
        weight.add_(update, alpha=-group["lr"])


def orthogonalized(gradient: torch.Tensor) -> torch.Tensor:
    """About U V^T of the gradient's U S V^T, of its shape and dtype; (rows, ...) is taken as (rows, columns).

    Longer than wide, it is scaled by the square root of that ratio, so that outputs change alike whatever the shape.
    """
    matrix = gradient.flatten(1)
    # bf16's 8 bits are enough: the spread that five steps leave in the singular values is far coarser. Emulated, its
    # products take ten times as long as float32's, or longer.
    dtype = torch.bfloat16 if is_fast_at_bf16(gradient.device) else torch.float32
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if is_tall else matrix).to(dtype)
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
    return (x.mT if is_tall else x).to(gradient.dtype).mul(scale).view(gradient.shape)


def make_optimizer(model: HFCLIPModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are to be trained.

    Each group's `peak_learning_rate` is what `set_learning_rate` scales.
    """
    groups = parameter_groups(model, config)
    kind = Muon if config.algorithm == "muon" else torch.optim.AdamW
    return kind(groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)


def parameter_groups(model: HFCLIPModel, config: OptimizerConfig) -> list[dict]:
    """Matrices and kernels are decayed; gains, biases, class embedding and logit scale (under two axes) are not.

    What has another factor on its rate (`config.vision_tower`, `config.text_tower`) is a group of its own.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = hidden_matrices(model) if config.algorithm == "muon" else set()
    factors = learning_rate_factors(model, config)
    adamw = {"is_muon": False, "lr": config.learning_rate}
    muon = {"is_muon": True, "lr": config.matrix_learning_rate, "momentum": config.matrix_momentum}
    kinds = [
        (
            [each for each in trained if each.ndim >= 2 and each not in hidden],
            {"weight_decay": config.weight_decay, **adamw},
        ),
        ([each for each in trained if each.ndim < 2], {"weight_decay": 0.0, **adamw}),
        ([each for each in trained if each in hidden], {"weight_decay": config.matrix_weight_decay, **muon}),
    ]
    groups = []
    for parameters, options in kinds:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        for factor, members in by_factor.items():
            rate = options["lr"] * factor
            groups.append({"params": members, **options, "lr": rate, "peak_learning_rate": rate})
    return groups


def hidden_matrices(model: HFCLIPModel) -> set[nn.Parameter]:
    """Weights of linear and convolutional layers between a tower's first and the projections, or a decoder's words.

    What meets pixels, tokens or the shared space has no even spectrum to strive for: AdamW does better there.
    """
    first = {model.vision_model.get_input_embeddings(), model.text_model.get_input_embeddings()}
    # Where a model writes captions, what scores its words.
    words = model.get_output_embeddings()
    last = {*model.visual_projection.modules(), *model.text_projection.modules(), words}
    return {
        cast(nn.Parameter, module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in first | last
    }


def learning_rate_fraction(step: int, steps: int, config: OptimizerConfig) -> float:
    """The fraction of their peaks that the rates have at update `step` (from 0) of `steps`: warmup, then schedule."""
    warmup = config.warmup_steps or 0
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "constant":
        return 1.0
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    fraction = config.final_learning_rate_fraction
    return fraction + (1 - fraction) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_learning_rate"] * fraction


@torch.no_grad()
def clamp_logit_scale(logit_scale: nn.Parameter, max_logit_scale: float) -> None:
    """Keeps the learned logarithm in [ln 1, ln max]: the paper's bound against unstable training (section 2.5)."""
    logit_scale.clamp_(0.0, math.log(max_logit_scale))
