"""The towers in groups of layers, from the embeddings up: which are frozen, how fast the others are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.modeling_timm_hf_clip import HFCLIPTimmModel

from .config import OptimizerConfig, TowerConfig
from .recipe_error import RecipeError

TOWERS = ("vision_tower", "text_tower")


def tower_groups(model: HFCLIPModel, tower: str) -> list[list[nn.Module]]:
    """Modules of a tower ("vision_tower" or "text_tower") in groups, from the bottom up; each module stands in one.

    The first group is what comes before the first layer; each layer (or stage, in towers of stages) is one; what comes
    behind a layer belongs to it; the last is the projection, where there is one. Layers are found by their shape,
    alike in all kinds of towers: the outermost rows of modules of one class.
    """
    trunk, projection = (
        (model.vision_model, model.visual_projection)
        if tower == "vision_tower"
        else (model.text_model, model.text_projection)
    )
    layers = tower_layers(trunk)
    number_of = {module: number for number, layer in enumerate(layers, start=1) for module in layer.modules()}
    last = list(projection.modules())
    if isinstance(trunk, HFCLIPTimmModel) and "num_classes" in (trunk.config.backbone_kwargs or {}):
        # timm's classifier is the projection.
        last += trunk.trunk.get_classifier().modules()
    is_last = set(last)
    groups: list[list[nn.Module]] = [[] for _ in range(len(layers) + 1)]
    current = 0
    for module in trunk.modules():
        current = max(current, number_of.get(module, 0))
        if module not in is_last:
            groups[current].append(module)
    groups.append(last)
    return [group for group in groups if any(True for module in group for _ in module.parameters(recurse=False))]


def tower_layers(trunk: nn.Module) -> list[nn.Module]:
    """The outermost rows of modules of one class."""
    layers: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in trunk.modules():
        children = list(module.children())
        is_row = isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and len(children) > 1)
        if module not in inside and is_row and len({type(child) for child in children}) == 1:
            layers += children
            inside.update(module.modules())
    return layers


def _frozen_groups(model: HFCLIPModel, tower: str, config: TowerConfig) -> list[list[nn.Module]]:
    if config.trainable_groups is None:
        return []
    groups = tower_groups(model, tower)
    if config.trainable_groups > len(groups):
        raise RecipeError(
            f"optimizer.{tower}.trainable_groups={config.trainable_groups}: the tower has {len(groups)} groups: null "
            "trains all."
        )
    return groups[: len(groups) - config.trainable_groups]


def frozen_modules(model: HFCLIPModel, config: OptimizerConfig) -> list[nn.Module]:
    """The modules that are frozen. Raises RecipeError where a tower has fewer groups than are to be trained."""
    groups = [group for tower in TOWERS for group in _frozen_groups(model, tower, getattr(config, tower))]
    return [module for group in groups for module in group]


def freeze(model: HFCLIPModel, config: OptimizerConfig) -> None:
    """Freezes the parameters of frozen modules. Raises what `frozen_modules` raises."""
    for module in frozen_modules(model, config):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def learning_rate_factors(model: HFCLIPModel, config: OptimizerConfig) -> dict[nn.Parameter, float]:
    """Of each parameter of a tower; the scale's and the bias's are 1."""
    factors = {}
    for tower in TOWERS:
        rates = getattr(config, tower)
        for depth, group in enumerate(reversed(tower_groups(model, tower))):
            for module in group:
                for parameter in module.parameters(recurse=False):
                    factors[parameter] = rates.learning_rate_factor * rates.layer_decay**depth
    return factors


def has_batch_statistics(model: HFCLIPModel, config: OptimizerConfig) -> bool:
    """Whether a batch norm that learns makes an image's embedding hang on the others in its (micro-)batch."""
    frozen = set(frozen_modules(model, config))
    return any(module not in frozen for module in batch_norms(model))


def batch_norms(model: HFCLIPModel) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class BatchStatistics:
    """The running statistics of a model's batch norms, which every forward in training mode moves."""

    def __init__(self, model: HFCLIPModel):
        self._buffers = [buffer for norm in batch_norms(model) for buffer in norm.buffers(recurse=False)]

    def take(self) -> list[torch.Tensor]:
        return [buffer.clone() for buffer in self._buffers]

    def put_back(self, taken: list[torch.Tensor]) -> None:
        for buffer, value in zip(self._buffers, taken, strict=True):
            buffer.copy_(value)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """They stand behind the block as they stood before it; what is normalized within it is not changed by that.

        No graph that a backward pass will walk may be left behind the block: it would miss what it has seen.
        """
        taken = self.take()
        yield
        self.put_back(taken)


def recompute_activations(model: HFCLIPModel, **options: bool) -> None:
    """Has every layer forget its activations and make them again in the backward pass (gradient checkpointing).

    `options` are those of `torch.utils.checkpoint.checkpoint`.
    """
    # The public methods that call this are renamed between the releases of transformers that the package takes.
    model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False, **options))
