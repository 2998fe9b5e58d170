"""Stages of a run: cheaper steps first (small images, short texts, dropped patches), full ones at the end.

The model has the positions of its full size all along. Images of another size get those resampled, in each forward and
with gradients, so that weights and optimizer stay what they are from stage to stage.
"""

import copy
import math
from dataclasses import dataclass, replace

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .config import TrainConfig
from .recipe_error import RecipeError
from .stage_config import StageConfig


@dataclass(frozen=True)
class Stage:
    """Steps from `first` (counted from 0) to before `last`, and what they have otherwise than the model."""

    first: int
    last: int
    batch_size: int
    micro_batch_size: int | None
    image_size: int | None = None
    text_length: int | None = None
    patch_dropout: float | None = None

    def describe(self) -> str:
        """What a log says of it."""
        parts = [f"batches of {self.batch_size}"]
        if self.image_size is not None:
            parts.append(f"images of {self.image_size} pixels")
        if self.text_length is not None:
            parts.append(f"texts of {self.text_length} tokens")
        if self.patch_dropout is not None:
            parts.append(f"{self.patch_dropout:g} of the patches dropped")
        return f"steps {self.first + 1} to {self.last}: {', '.join(parts)}"


def stages_of(config: TrainConfig) -> list[Stage]:
    """The recipe's stages; a single one of all steps where it has none."""
    if not config.stages:
        return [Stage(0, config.total_steps, config.batch_size, config.micro_batch_size)]
    stages, first = [], 0
    for each in config.stages:
        stages.append(_stage(config, each, first))
        first += each.steps
    return stages


def _stage(config: TrainConfig, each: StageConfig, first: int) -> Stage:
    return Stage(
        first,
        first + each.steps,
        each.batch_size or config.batch_size,
        each.micro_batch_size or config.micro_batch_size,
        each.image_size,
        each.text_length,
        each.patch_dropout,
    )


def common_batch_size(config: TrainConfig) -> int:
    """What divides the batches of all stages: lanes are shared by all of them."""
    return math.gcd(*(stage.batch_size for stage in stages_of(config)))


def stage_processor(processor: HFCLIPProcessor, model: HFCLIPModel, stage: Stage) -> HFCLIPProcessor:
    """The processor of a stage's images and texts.

    Raises:
        RecipeError: the model does not take them.
    """
    if stage.image_size is None and stage.text_length is None:
        return processor
    processor = copy.deepcopy(processor)
    if stage.text_length is not None:
        longest = model.config.text_config.max_position_embeddings
        if stage.text_length > longest:
            raise RecipeError(f"stages: text_length={stage.text_length} is more than the model's {longest} tokens.")
        processor.tokenizer.model_max_length = stage.text_length
    if stage.image_size is not None:
        images, vision = processor.image_processor, model.config.vision_config
        if images.max_num_patches is not None:
            raise RecipeError("stages: image_size is for models of square images, and NaFlex takes each in its own.")
        patch = getattr(vision, "patch_size", None) if vision.tower == "vit" else None
        if patch and stage.image_size % patch:
            raise RecipeError(f"stages: image_size={stage.image_size} is no multiple of the patches' {patch} pixels.")
        square = {"height": stage.image_size, "width": stage.image_size}
        is_edge = dict(images.size).get("shortest_edge") is not None
        images.size = type(images.size)(**({"shortest_edge": stage.image_size} if is_edge else square))
        images.crop_size = type(images.crop_size)(**square)
    return processor


def stage_recipe(config: TrainConfig, stage: Stage) -> TrainConfig:
    """The recipe of a stage by itself, for what is computed of one step."""
    steps = stage.last - stage.first
    optimizer = replace(config.optimizer, warmup_steps=0)
    return replace(
        config,
        stages=[],
        steps=steps,
        batch_size=stage.batch_size,
        micro_batch_size=stage.micro_batch_size,
        optimizer=optimizer,
    )
