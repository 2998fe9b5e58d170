"""The shape of a model, read off the shapes of its tensors, for checkpoints that come without a config.

Shapes do not tell everything: not the activation, the number of heads, how texts are pooled, nor whether they are
masked. Known architectures of the same shapes do, and where they disagree somebody must say.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_clip.model import configuration_hf_clip as configuration
from hf_clip.model.configuration_hf_clip import (
    POOL_AT_HIGHEST_ID,
    HFCLIPConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
    find_architecture,
)
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn, make_trunk

from .errors import ConversionError
from .rules import Shapes

_LAYER = "encoder.layers"
# What helps where the name of no architecture does.
_OTHERWISE = (
    "Pass a folder with the config.json, tokenizer and image processor of the model that training began with, and "
    "this file in place of its weights; or, in Python, `config` (an HFCLIPConfig of its shape)."
)
_TRUNK = "vision_model.trunk."


@dataclass(frozen=True)
class InferredShape:
    """What the shapes of a state dict tell. `text` and `vision` hold fields of the towers' configs.

    `grid` is the side of the image tower's map, in patches; images can be up to a patch larger.
    """

    projection_dim: int
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    grid: int
    has_logit_bias: bool

    def __str__(self) -> str:
        text, vision = self.text, self.vision
        kind = "ResNet" if vision["tower"] == "resnet" else f"ViT of {vision['num_hidden_layers']} layers"
        return (
            f"{kind}, width {vision['hidden_size']}, {self.grid} x {self.grid} positions; text tower of "
            f"{text['num_hidden_layers']} layers, width {text['hidden_size']}, {text['vocab_size']} tokens"
        )


def infer_shape(shapes: Shapes) -> InferredShape:
    """What shapes tell, by this package's names.

    Raises:
        ConversionError: if they are those of no ResNet or vision transformer with a text transformer.
    """
    try:
        text = _infer_text(shapes)
        vision, grid = _infer_resnet(shapes) if "vision_model.stem.conv1.weight" in shapes else _infer_vit(shapes)
    except KeyError as error:
        raise ConversionError(
            f"the tensor {error} is missing: it is not a complete CLIP of a ResNet or vision transformer with a text "
            f"transformer, whose shape its tensors tell. {_OTHERWISE}"
        ) from error
    for tower, projection in ((text, "text_projection"), (vision, "visual_projection")):
        has_projection = f"{projection}.weight" in shapes
        tower["projection_type"] = "linear" if has_projection else "none"
        tower["projection_bias"] = f"{projection}.bias" in shapes
    width = text.get("projection_size") or text["hidden_size"]
    dimensions = shapes["text_projection.weight"][0] if text["projection_type"] == "linear" else width
    return InferredShape(dimensions, text, vision, grid, "logit_bias" in shapes)


def _infer_transformer(shapes: Shapes, tower: str) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in shapes if name.startswith(f"{tower}.{_LAYER}.")}
    intermediate, width = shapes[f"{tower}.{_LAYER}.0.mlp.fc1.weight"]
    fields: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
    }
    if f"{tower}.{_LAYER}.0.layer_scale1.weight" in shapes:
        # What it was once set to before training; the file holds what it became.
        fields["layer_scale_init_value"] = 1.0
    return fields


def _infer_text(shapes: Shapes) -> dict[str, Any]:
    fields = _infer_transformer(shapes, "text_model")
    fields["vocab_size"] = shapes["text_model.embeddings.token_embedding.weight"][0]
    fields["max_position_embeddings"] = shapes["text_model.embeddings.position_embedding.weight"][0]
    if "text_model.head.weight" in shapes:
        fields["projection_size"] = shapes["text_model.head.weight"][0]
    return fields


def _infer_vit(shapes: Shapes) -> tuple[dict[str, Any], int]:
    fields = {"tower": "vit", **_infer_transformer(shapes, "vision_model")}
    if len(kernel := shapes["vision_model.embeddings.patch_embedding.weight"]) != 4:
        raise ConversionError(
            "its images are in patches, as those of SigLIP 2's NaFlex, whose shapes do not tell the size of a patch: "
            "pass the folder that has its config, or `config` (an HFCLIPSiglipConfig of its shape)."
        )
    _, channels, _, patch = kernel
    has_class_token = "vision_model.embeddings.class_embedding" in shapes
    grid = _side(shapes["vision_model.embeddings.position_embedding.weight"][0] - has_class_token)
    fields |= {
        "num_channels": channels,
        "patch_size": patch,
        "has_class_token": has_class_token,
        "has_pre_norm": "vision_model.pre_layrnorm.weight" in shapes,
        "patch_bias": "vision_model.embeddings.patch_embedding.bias" in shapes,
    }
    if "vision_model.head.probe" in shapes:
        fields["pooling"] = "attention"
    return fields, grid


def _infer_resnet(shapes: Shapes) -> tuple[dict[str, Any], int]:
    layers = {tuple(name.split(".")[2:4]) for name in shapes if name.startswith("vision_model.stages.")}
    depths = [sum(stage == number for stage, _ in layers) for number in "0123"]
    width, channels = shapes["vision_model.stem.conv3.weight"][0], shapes["vision_model.stem.conv1.weight"][1]
    fields = {
        "tower": "resnet",
        "stem_width": width,
        "stage_depths": depths,
        "hidden_size": 32 * width,
        "num_channels": channels,
    }
    return fields, _side(shapes["vision_model.head.position_embedding.weight"][0] - 1)


def _side(positions: int) -> int:
    side = math.isqrt(max(positions, 0))
    if side * side != positions or not side:
        raise ConversionError(f"the image tower has {positions} positions, which are no square of patches.")
    return side


def config_of_openai_shape(shape: InferredShape) -> HFCLIPConfig:
    """The config of a model of OpenAI's, whose own `build_model` finds it from these shapes alone.

    There heads are 64 wide, the activation is QuickGELU, and texts are pooled at their highest id.
    """
    text, vision = shape.text, shape.vision
    stride = 32 if vision["tower"] == "resnet" else vision["patch_size"]
    fields = {} if text["vocab_size"] == HFCLIPTextConfig.vocab_size else {"eos_token_id": POOL_AT_HIGHEST_ID}
    return HFCLIPConfig(
        projection_dim=shape.projection_dim,
        text_config={**text, "num_attention_heads": text["hidden_size"] // 64, "hidden_act": "quick_gelu", **fields},
        vision_config={
            **vision,
            "num_attention_heads": vision["hidden_size"] // 64,
            "hidden_act": "quick_gelu",
            "image_size": shape.grid * stride,
        },
    )


def recognize(shapes: Shapes, hidden_act: str | None) -> tuple[str, HFCLIPConfig]:
    """The known architecture of a state dict of this package's names (a name, where several differ in their activation
    only), and its config.

    Raises:
        ConversionError: if `hidden_act` is missing; if no known architecture has these shapes, or several have that
            differ in more than the activation; if they are those of no ResNet, vision transformer or trunk of timm.
        ImportError: for a trunk of timm without timm.
    """
    if any(name.startswith("vision_model.trunk.") for name in shapes):
        return _match_trunk(shapes, hidden_act)
    return match_architecture(infer_shape(shapes), hidden_act)


def match_architecture(shape: InferredShape, hidden_act: str | None) -> tuple[str, HFCLIPConfig]:
    """The known architecture of these shapes (a name, where several differ in their activation only), and its config.

    Raises:
        ConversionError: if `hidden_act` is missing; if no known architecture has these shapes, or several have that
            differ in more than the activation.
    """
    # To read one takes long enough that most are told apart by a number first.
    names = [
        name
        for name, known in configuration.read_architectures().items()
        if known["config"]["projection_dim"] == shape.projection_dim
    ]
    found = {name: config for name in names if fits(config := HFCLIPConfig.from_architecture(name), shape)}
    return _only_one(found, str(shape), hidden_act)


def _match_trunk(shapes: Shapes, hidden_act: str | None) -> tuple[str, HFCLIPConfig]:
    """`match_architecture` for trunks of timm: what such a trunk consists of is for timm to say."""
    try:
        text = _infer_text(shapes)
    except KeyError as error:
        raise ConversionError(f"the tensor {error} is missing: it has a trunk of timm and no text tower.") from error
    seen = {name.removeprefix(_TRUNK): tuple(shape) for name, shape in shapes.items() if name.startswith(_TRUNK)}
    fitting: dict[str, bool] = {}
    found = {}
    for name, known in configuration.read_architectures().items():
        if known["config"]["vision_config"]["tower"] != "timm":
            continue
        config = HFCLIPConfig.from_architecture(name)
        if not _agrees(config.text_config, text) or not _projections_agree(config, shapes):
            continue
        made_with = f"{config.vision_config.backbone} {config.vision_config.backbone_kwargs}"
        if made_with not in fitting:
            with torch.device("meta"), NothingDrawn():
                trunk = make_trunk(config.vision_config)
            fitting[made_with] = seen == {name: tuple(tensor.shape) for name, tensor in trunk.state_dict().items()}
        if fitting[made_with]:
            found[name] = config
    of_text = f"text tower of {text['num_hidden_layers']} layers, width {text['hidden_size']}"
    return _only_one(found, f"a trunk of timm of {len(seen)} tensors; {of_text}", hidden_act)


def _projections_agree(config: HFCLIPConfig, shapes: Shapes) -> bool:
    vision, width = config.vision_config, shapes.get("text_projection.weight", (None,))[0]
    last = {"linear": "visual_projection.weight", "mlp": "visual_projection.fc2.weight"}.get(vision.projection_type)
    has_same = last is None or tuple(shapes.get(last, ()))[:1] == (config.projection_dim,)
    return width == config.projection_dim and has_same


def _only_one(found: dict[str, HFCLIPConfig], shape: str, hidden_act: str | None) -> tuple[str, HFCLIPConfig]:
    """The first of the known architectures of a shape. Raises ConversionError where they are none, or not one."""
    if not found:
        raise ConversionError(
            f"it has the shapes of no known architecture ({shape}). Shapes do not tell the heads, the activation and "
            f"the pooling. {_OTHERWISE}"
        )
    kinds = {str(_without_activation(config)): name for name, config in found.items()}
    choices = " or ".join(
        f"`architecture={unambiguous_name(name)}` ({_activations(config)})" for name, config in found.items()
    )
    if len(kinds) > 1:
        raise ConversionError(f"its shapes are those of several architectures, and do not tell which: pass {choices}.")
    if hidden_act is None:
        raise ConversionError(
            f"its shapes do not tell the activation: pass {choices}, or `hidden_act=quick_gelu` or `hidden_act=gelu`. "
            "OpenAI's weights, and models fine-tuned from them, have quick_gelu; models trained with OpenCLIP have "
            "gelu unless their architecture's name ends in -quickgelu."
        )
    name, config = next(iter(found.items()))
    config.text_config.hidden_act = config.vision_config.hidden_act = hidden_act
    return name, config


def has_two_meanings(architecture: str) -> bool:
    """Whether OpenAI and OpenCLIP have models of this name, which differ in their activation.

    Raises ValueError where there is no architecture of the name.
    """
    known = find_architecture(architecture)
    try:
        theirs = find_architecture(f"open_clip/{architecture}")
    except ValueError:
        return False
    return theirs["name"] != known["name"]


def unambiguous_name(architecture: str) -> str:
    """A name for a known architecture that `load` takes without an activation."""
    return f"openai/{architecture}" if has_two_meanings(architecture) else architecture


def fits(config: HFCLIPConfig, shape: InferredShape) -> bool:
    """Whether a model of this config has the shapes that were shape."""
    text, vision = config.text_config, config.vision_config
    return (
        config.projection_dim == shape.projection_dim
        and (config.logit_bias_init_value is not None) == shape.has_logit_bias
        and vision.image_size // vision.stride == shape.grid
        and _agrees(text, shape.text)
        and _agrees(vision, shape.vision)
    )


def _agrees(config: HFCLIPTextConfig | HFCLIPVisionConfig, fields: Mapping[str, Any]) -> bool:
    if (config.layer_scale_init_value is None) == ("layer_scale_init_value" in fields):
        return False
    return all(getattr(config, key) == value for key, value in fields.items() if key != "layer_scale_init_value")


def _without_activation(config: HFCLIPConfig) -> dict[str, Any]:
    towers = config.text_config.to_dict(), config.vision_config.to_dict()
    return {key: value for tower in towers for key, value in tower.items() if key != "hidden_act"} | {
        # Both towers have fields of the same names.
        "text": {key: value for key, value in towers[0].items() if key != "hidden_act"},
    }


def _activations(config: HFCLIPConfig) -> str:
    return " and ".join(dict.fromkeys((config.vision_config.hidden_act, config.text_config.hidden_act)))
