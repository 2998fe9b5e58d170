"""The processor and the model that a recipe describes, from random weights or from others'."""

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_clip.conversion.confirm import class_of
from hf_clip.joining_towers import join_towers
from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.modeling_hf_clip import HFCLIPModel, with_other_loss
from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.tokenization_hf_clip import HFCLIPTokenizer

from .checkpoint import SHARDS
from .config import ModelConfig
from .recipe_error import RecipeError

# More captions than these teach a byte-pair vocabulary nothing, and take hours.
MAX_CAPTIONS_FOR_VOCABULARY = 2_000_000


def model_config(config: ModelConfig) -> HFCLIPConfig:
    """The shape in the recipe, before the vocabulary is known. Raises RecipeError for one that cannot be built."""
    try:
        if config.architecture is not None:
            return HFCLIPConfig.from_architecture(config.architecture, **config.config)
        kind = HFCLIPConfig if config.config.get("logit_bias_init_value") is None else HFCLIPSiglipConfig
        if config.config.get("text_config", {}).get("tower") == "class_token":
            kind = HFCLIPCoCaConfig
        if alone := [name for name in config.config if name not in kind.__dataclass_fields__]:
            raise RecipeError(
                f"model.config.{alone[0]} is of models that write captions: set model.config.text_config.tower to "
                "class_token, or remove it."
            )
        return kind(**config.config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        # The strict config wraps the reason, in an error that is no ValueError.
        raise RecipeError(f"model.config: {error.__cause__ or error}") from error


def build_start(config: ModelConfig, captions: Iterable[str], seed: int) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """The model as training finds it, in float32, and its processor. New weights are drawn from the seed.

    Raises:
        RecipeError: a shape that cannot be built. ValueError: weights that cannot be read (`hf_clip.load`,
        `join_towers`); ImportError: a tower of timm without timm.
    """
    torch.manual_seed(seed)
    if config.start_from is not None:
        from hf_clip.conversion import load

        image_size = config.config.get("vision_config", {}).get("image_size")
        model, processor = load(config.start_from, dtype=torch.float32, image_size=image_size, **config.reading())
        _require_normalization(processor.image_processor, f"The processor of model.start_from={config.start_from}")
        for tower in ("vision_config", "text_config"):
            for name, value in config.config.get(tower, {}).items():
                setattr(getattr(model.config, tower), name, value)
        _require_possible(model.config)
        if "logit_bias_init_value" in config.config:
            model = with_other_loss(model, config.config["logit_bias_init_value"])
        return model, processor
    if config.vision_tower is not None:
        known = ("projection_dim", "vision_config", "text_config")
        if unknown := [name for name in config.config if name not in known]:
            raise RecipeError(f"model.config.{unknown[0]} cannot be set with two towers: only {', '.join(known)} can.")
        model, processor = join_towers(config.vision_tower, config.text_tower or "", **config.config)
        processor.image_processor = _same_image_processor(processor.image_processor)
        return model, processor
    processor = build_processor(config, captions)
    return build_model(config, processor, seed), processor


def _require_possible(config: HFCLIPConfig) -> None:
    """Raises RecipeError for fields of a checkpoint's config that its towers do not have."""
    try:
        config.vision_config.validate_architecture()
    except ValueError as error:
        raise RecipeError(f"model.config.vision_config: {error}") from error


def _require_normalization(image_processor: HFCLIPImageProcessor, name: str) -> None:
    mean, std = list(image_processor.image_mean), list(image_processor.image_std)
    if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise RecipeError(
            f"{name} normalizes by image_mean={mean} and image_std={std}, which gives images that are not finite: "
            "correct them in its preprocessor's file."
        )


def build_again(checkpoint: Path) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """The model and the processor of one of the run's own checkpoints.

    Weights that are sharded there are random ones here: those come once the model is spread over its processes.
    """
    from hf_clip.conversion import load

    if (checkpoint / SHARDS).is_dir():
        shape = cast(HFCLIPConfig, AutoConfig.from_pretrained(checkpoint, trust_remote_code=False))
        return class_of(shape)(shape), HFCLIPProcessor.from_pretrained(checkpoint)
    return load(checkpoint, dtype=torch.float32)


def _same_image_processor(theirs) -> HFCLIPImageProcessor:
    """This package's, which can stop at the bytes, with the sizes and numbers of another of transformers'."""
    if isinstance(theirs, HFCLIPImageProcessor):
        return theirs
    size = {name: value for name, value in dict(theirs.size).items() if value is not None}
    crops = bool(getattr(theirs, "do_center_crop", False))
    return HFCLIPImageProcessor(
        size=size,
        crop_size=dict(theirs.crop_size) if crops else size,
        do_center_crop=crops,
        resample=theirs.resample,
        image_mean=list(theirs.image_mean),
        image_std=list(theirs.image_std),
    )


def build_processor(config: ModelConfig, captions: Iterable[str]) -> HFCLIPProcessor:
    """The processor that fits the model, its vocabulary trained on the captions where the recipe says so."""
    shape = model_config(config)
    context = shape.text_config.max_position_embeddings
    # CoCa's text tower tells padding by its id.
    is_coca = isinstance(shape, HFCLIPCoCaConfig)
    options: dict[str, Any] = {"pad_token": "!"} if is_coca else {}
    if config.vocabulary_size is None:
        tokenizer = HFCLIPTokenizer(model_max_length=context, **options)
    else:
        captions = islice(captions, MAX_CAPTIONS_FOR_VOCABULARY)
        tokenizer = HFCLIPTokenizer.train(captions, config.vocabulary_size, model_max_length=context, **options)
    size = shape.vision_config.image_size
    colors = {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
    if shape.vision_config.tower == "naflex":
        patch_size = shape.vision_config.patch_size
        most = (size // patch_size) ** 2
        image_processor = HFCLIPImageProcessor(patch_size=patch_size, max_num_patches=most, **colors)
    else:
        square = {"height": size, "width": size}
        image_processor = HFCLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **colors)
    # Nothing that the end token sees lies behind it: only there may padding come and go.
    sees_padding = not is_coca and (shape.text_config.pooling != "eos" or not shape.text_config.is_causal)
    return HFCLIPProcessor(image_processor, tokenizer, text_padding="max_length" if sees_padding else "longest")


def build_model(config: ModelConfig, processor: HFCLIPProcessor, seed: int) -> HFCLIPModel:
    """The model with weights drawn from the seed, its text tower fitted to the processor's vocabulary."""
    shape = model_config(config)
    tokenizer = processor.tokenizer
    shape.text_config.vocab_size = len(tokenizer)
    shape.text_config.bos_token_id = tokenizer.bos_token_id
    shape.text_config.eos_token_id = tokenizer.eos_token_id
    shape.text_config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return class_of(shape)(shape)
