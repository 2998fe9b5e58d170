"""Joining two towers into a dual encoder that is still to be trained: pretrained or not, from anywhere."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from .model.configuration_hf_clip import HFCLIPConfig, HFCLIPVisionConfig, find_architecture
from .model.image_processing_hf_clip import HFCLIPImageProcessor
from .model.modeling_hf_clip import IMAGE_TOWERS, TEXT_TOWERS, HFCLIPModel
from .model.modeling_timm_hf_clip import make_trunk
from .model.modeling_transformers_towers_hf_clip import backbone_options, encoder_of
from .model.processing_hf_clip import HFCLIPProcessor
from .model.tokenization_hf_clip import HFCLIPTokenizer, set_text_options

# Fields of a backbone's config that describe the file of its weights, or a classifier on top.
NOT_THE_BACKBONES = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")
SHOWN_SIZES = ("vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")


@dataclass(frozen=True)
class _Part:
    """A tower that is to be made: the fields of its config, its half of the processor, and what loads its weights."""

    fields: dict[str, Any]
    preprocessor: Any
    fill: Callable[[Any], object] | None = None


def join_towers(
    vision_tower: str | os.PathLike,
    text_tower: str | os.PathLike,
    projection_dim: int = 512,
    use_pretrained_weights: bool = True,
    vision_config: dict[str, Any] | None = None,
    text_config: dict[str, Any] | None = None,
) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """A dual encoder of two towers, with new projections, and its processor.

        model, processor = join_towers("facebook/dinov2-small", "FacebookAI/xlm-roberta-base")

    A tower comes with its own image processor or tokenizer. The model is saved with both towers, and loads by
    `from_pretrained` alone.

    Args:
        vision_tower, text_tower: a folder or a repository's id of any vision or text model of transformers, or of a
            model of this package (one tower is taken from a model with two); the name of an architecture
            (`list_architectures()`), with random weights; or, for images, "timm/" and timm's name of a trunk.
        projection_dim: dimensions of the shared space.
        use_pretrained_weights: False leaves all weights random, and reads none.
        vision_config, text_config: fields of `HFCLIPVisionConfig` and `HFCLIPTextConfig` that replace those of the
            towers. The default `pooling` is "class" and "mean" for towers of transformers, and "pooler", their own,
            for trunks of timm.

    Returns:
        The model, whose projections are random, and its processor.

    Raises:
        ValueError: for a tower that is none of these; for a pooling that it does not have; where its files lack
            weights that it needs; for the text tower of an architecture whose tokenizer is not bundled.
        ImportError: for a trunk of timm without timm.
    """
    images, texts = _vision_part(str(vision_tower)), _text_part(str(text_tower))
    config = HFCLIPConfig(
        vision_config={**images.fields, **(vision_config or {})},
        text_config={**texts.fields, **(text_config or {})},
        projection_dim=projection_dim,
    )
    model = HFCLIPModel(config)
    if use_pretrained_weights:
        for part, tower in ((images, model.vision_model), (texts, model.text_model)):
            if part.fill is not None:
                part.fill(tower)
    texts.preprocessor.model_max_length = config.text_config.max_position_embeddings
    return model, HFCLIPProcessor(images.preprocessor, texts.preprocessor)


def _find(source: str) -> dict[str, Any] | PreTrainedConfig:
    """An architecture, or the config of a folder or repository."""
    if not Path(source).is_dir():
        try:
            return find_architecture(source)
        except ValueError as error:
            not_known = error
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"{source!r} is no folder of a model, no model that the Hub gives, and no architecture: {not_known}"
            if not Path(source).is_dir()
            else f"{source!r} is no folder of a model: {error}"
        ) from error


def _vision_part(source: str) -> _Part:
    if source.startswith("timm/"):
        return _timm_part(source.removeprefix("timm/"))
    found = _find(source)
    if isinstance(found, dict):
        fields = HFCLIPConfig.from_architecture(source).vision_config.to_dict()
        return _Part(fields, _image_processor(fields["image_size"], **found["preprocessing"]))
    if isinstance(found, HFCLIPConfig):
        kind = IMAGE_TOWERS[found.vision_config.tower]
        image_processor = HFCLIPProcessor.from_pretrained(source).image_processor
        return _Part(found.vision_config.to_dict(), image_processor, _same_tower(kind, source))
    shape = getattr(found, "vision_config", found)
    if shape.model_type == "siglip2_vision_model":
        raise ValueError(
            f"`vision_tower={source}` is a NaFlex model in transformers' files: write it with hf_clip.convert(..., "
            "to='hf_clip'), and name that folder."
        )
    image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    fields = _fields_of(shape) | {"pooling": "class", "image_size": _side(image_processor)}
    return _Part(fields, image_processor, _backbone_of(source))


def _text_part(source: str) -> _Part:
    found = _find(source)
    if isinstance(found, dict):
        if found["tokenizer"]["name"] != "clip":
            raise ValueError(
                f"`text_tower={source}` takes texts by the tokenizer {found['tokenizer']['name']!r}, which is not "
                "bundled: name a folder with its weights and tokenizer."
            )
        return _Part(HFCLIPConfig.from_architecture(source).text_config.to_dict(), HFCLIPTokenizer())
    if isinstance(found, HFCLIPConfig):
        # With the padding, cleaning and mask of its processor.
        tokenizer, kind = HFCLIPProcessor.from_pretrained(source).tokenizer, TEXT_TOWERS[found.text_config.tower]
        return _Part(found.text_config.to_dict(), tokenizer, _same_tower(kind, source))
    shape = getattr(found, "text_config", found)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    longest = getattr(shape, "max_position_embeddings", None) or 512
    fields = _fields_of(shape) | {
        "pooling": "mean",
        "max_position_embeddings": min(tokenizer.model_max_length, longest),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **({} if end is None else {"eos_token_id": end}),
    }
    set_text_options(tokenizer, returns_text_mask=True)
    return _Part(fields, tokenizer, _backbone_of(source))


def _fields_of(shape: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a tower's config that holds transformers' model of this shape."""
    backbone = {key: value for key, value in shape.to_dict().items() if key not in NOT_THE_BACKBONES}
    if "use_mask_token" in backbone:
        # It replaces patches hidden in pre-training; here it would be a parameter that never gets a gradient.
        backbone["use_mask_token"] = False
    sizes = {key: value for key in SHOWN_SIZES if isinstance(value := getattr(shape, key, None), int)}
    width = getattr(shape, "hidden_size", None) or shape.hidden_sizes[-1]
    return {"tower": "transformers", "tower_config": backbone, "hidden_size": width, **sizes}


def _backbone_of(source: str) -> Callable[[Any], object]:
    def fill(tower: Any) -> None:
        options = {"config": copy.deepcopy(tower.config.tower_config), **backbone_options(tower.config)}
        pretrained, info = AutoModel.from_pretrained(
            source, output_loading_info=True, trust_remote_code=False, **options
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{source!r} has no weights for {', '.join(sorted(info['missing_keys']))}: set another pooling "
                "(`pooling='pooler'` needs a pooling layer), or `use_pretrained_weights=False`."
            )
        tower.backbone.load_state_dict(encoder_of(pretrained).state_dict())

    return fill


def _same_tower(kind: type[PreTrainedModel], source: str) -> Callable[[Any], object]:
    def fill(tower: Any) -> None:
        pretrained, info = cast(tuple[Any, Any], kind.from_pretrained(source, output_loading_info=True))
        if info["missing_keys"]:
            raise ValueError(f"{source!r} has no weights for {', '.join(sorted(info['missing_keys'])[:5])}.")
        tower.load_state_dict(pretrained.state_dict())

    return fill


def _timm_part(name: str) -> _Part:
    config = HFCLIPVisionConfig(tower="timm", backbone=name, pooling="pooler")
    with torch.device("meta"):
        trunk = make_trunk(config)
    wanted = trunk.pretrained_cfg
    side = wanted["input_size"][-1]
    is_squashed = wanted.get("crop_mode") == "squash"
    image_processor = _image_processor(
        side,
        mean=wanted["mean"],
        std=wanted["std"],
        interpolation=wanted["interpolation"],
        resize_mode="squash" if is_squashed else "shortest",
        resized_side=int(side / wanted["crop_pct"]),
    )
    width = getattr(trunk, "head_hidden_size", trunk.num_features)
    fields = {"tower": "timm", "backbone": name, "hidden_size": width, "pooling": "pooler", "image_size": side}

    def fill(tower: Any) -> None:
        tower.trunk.load_state_dict(make_trunk(tower.config, pretrained=True).state_dict())

    return _Part(fields, image_processor, fill)


def _image_processor(
    side: int, mean, std, interpolation: str, resize_mode: str, resized_side: int | None = None
) -> HFCLIPImageProcessor:
    is_squashed = resize_mode == "squash"
    return HFCLIPImageProcessor(
        size={"height": side, "width": side} if is_squashed else {"shortest_edge": resized_side or side},
        crop_size={"height": side, "width": side},
        do_center_crop=not is_squashed,
        resample=Image.Resampling[interpolation.upper()],
        image_mean=list(mean),
        image_std=list(std),
    )


def _side(image_processor) -> int:
    """Pixels of one side of the images that the image processor gives."""
    is_cropped = getattr(image_processor, "do_center_crop", False)
    size = image_processor.crop_size if is_cropped else image_processor.size
    return size.height or size.shortest_edge
