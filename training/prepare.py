"""A model, its objective and its optimizer, made ready for steps on the device and the processes of the run."""

import warnings

import torch
from torch import nn

from hf_clip.model.modeling_coca_hf_clip import HFCLIPCoCaModel
from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .captions import CaptionObjective, require_objective
from .config import TrainConfig
from .decisions import Decisions
from .deepspeed import autocast_forward, runs_deepspeed, take_over_steps
from .device import arrange_for_speed
from .distributed import give_plain_parameters
from .layer_groups import freeze, has_batch_statistics, recompute_activations
from .lora import put_on_adapters
from .objective import ContrastiveObjective
from .optimizer import make_optimizer
from .recipe_error import RecipeError


def prepare(model: HFCLIPModel, config: TrainConfig, decisions: Decisions) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model's objective and its optimizer, ready for steps as it was decided.

    Raises:
        RecipeError: a tower has fewer groups than `trainable_groups`; a sigmoid's labels are to be smoothed; the model
            has another objective.
    """
    if config.label_smoothing and model.logit_bias is not None:
        raise RecipeError(
            f"label_smoothing={config.label_smoothing} is for the softmax's targets, and this model has the sigmoid "
            "loss: set label_smoothing=0."
        )
    require_objective(model, config)
    accelerator = decisions.accelerator
    arrange_for_speed(model, decisions.device, decisions.precision)
    freeze(model, config.optimizer)
    if config.lora is not None:
        if accelerator.is_fsdp2 or runs_deepspeed(accelerator):
            raise RecipeError(
                "lora goes with copies of the weights on each process alone: launch with torchrun (DDP)."
            )
        put_on_adapters(model, config.lora, config.seed)
    if config.gradient_checkpointing:
        recompute_activations(model)
    if config.torch_compile:
        for tower in (model.vision_model, model.text_model):
            # In place: the names of the weights stay.
            tower.compile()
    if accelerator.is_fsdp2 or runs_deepspeed(accelerator):
        give_plain_parameters(model)
    objective = make_objective(model, config)
    if runs_deepspeed(accelerator):
        autocast_forward(objective, decisions.device, decisions.precision)
    with warnings.catch_warnings():
        # torch renames what Accelerate has one name for (`broadcast_buffers`).
        warnings.simplefilter("ignore", FutureWarning)
        objective, optimizer = accelerator.prepare(objective, make_optimizer(model, config.optimizer))
    if runs_deepspeed(accelerator):
        optimizer = take_over_steps(accelerator, optimizer, config.optimizer.max_gradient_norm)
    return objective, optimizer


def make_objective(model: HFCLIPModel, config: TrainConfig) -> ContrastiveObjective:
    """What a step of the recipe minimizes."""
    kind = CaptionObjective if isinstance(model, HFCLIPCoCaModel) else ContrastiveObjective
    return kind(
        model,
        config.data.keyword_weight,
        config.label_smoothing,
        config.loss_products,
        config.data.captions_per_image,
        config.data.negative_weight,
        0.0 if config.distillation is None else config.distillation.weight,
    )


def note_on_batch_statistics(model: HFCLIPModel, config: TrainConfig, micro_batch_size: int) -> str | None:
    """A warning about a model whose batch norms learn, where a batch is not looked at at once."""
    if micro_batch_size == config.batch_size or not has_batch_statistics(model, config.optimizer):
        return None
    return (
        f"The model has batch norms: they see {micro_batch_size} of the batch's {config.batch_size} pairs at a time, "
        "so that other numbers of processes or sizes of micro-batches train another model. A frozen tower keeps its "
        "statistics (optimizer.vision_tower.trainable_groups=1 trains its projection alone)."
    )
