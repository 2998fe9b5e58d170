"""The shape of a model, read off the shapes of its tensors, for checkpoints that come without a config.

Shapes do not tell everything: not the activation, the number of heads, how texts are pooled, nor whether they are
masked. Known architectures of the same shapes do, and where they disagree somebody must say.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_clip.model.configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPConfig, HFCLIPTextConfig, list_architectures

from .errors import ConversionError
from .rules import Shapes

_LAYER = "encoder.layers"


@dataclass(frozen=True)
class SeenShape:
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
            f"{kind}, width {vision['hidden_size']}, {self.grid} x {self.grid} places; text tower of "
            f"{text['num_hidden_layers']} layers, width {text['hidden_size']}, {text['vocab_size']} tokens"
        )


def see_shape(shapes: Shapes) -> SeenShape:
    """What shapes tell, by this package's names.

    Raises:
        ConversionError: if they are those of no ResNet or vision transformer with a text transformer.
    """
    try:
        text = _see_text(shapes)
        vision, grid = _see_resnet(shapes) if "vision_model.stem.conv1.weight" in shapes else _see_vit(shapes)
    except KeyError as error:
        raise ConversionError(
            f"the tensor {error} is missing: it is no whole CLIP of a ResNet or vision transformer with a text "
            "transformer, whose shape could be seen. Pass config=HFCLIPConfig(...)."
        ) from error
    for tower, projection in ((text, "text_projection"), (vision, "visual_projection")):
        has_projection = f"{projection}.weight" in shapes
        tower["projection_type"] = "linear" if has_projection else "none"
        tower["projection_bias"] = f"{projection}.bias" in shapes
    width = text.get("projection_size") or text["hidden_size"]
    dimensions = shapes["text_projection.weight"][0] if text["projection_type"] == "linear" else width
    return SeenShape(dimensions, text, vision, grid, "logit_bias" in shapes)


def _see_transformer(shapes: Shapes, tower: str) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in shapes if name.startswith(f"{tower}.{_LAYER}.")}
    intermediate, width = shapes[f"{tower}.{_LAYER}.0.mlp.fc1.weight"]
    fields = {"hidden_size": width, "intermediate_size": intermediate, "num_hidden_layers": len(layers)}
    if f"{tower}.{_LAYER}.0.layer_scale1.weight" in shapes:
        # What it was once set to before training; the file holds what it became.
        fields["layer_scale_init_value"] = 1.0
    return fields


def _see_text(shapes: Shapes) -> dict[str, Any]:
    fields = _see_transformer(shapes, "text_model")
    fields["vocab_size"] = shapes["text_model.embeddings.token_embedding.weight"][0]
    fields["max_position_embeddings"] = shapes["text_model.embeddings.position_embedding.weight"][0]
    if "text_model.head.weight" in shapes:
        fields["projection_size"] = shapes["text_model.head.weight"][0]
    return fields


def _see_vit(shapes: Shapes) -> tuple[dict[str, Any], int]:
    fields = {"tower": "vit", **_see_transformer(shapes, "vision_model")}
    _, channels, _, patch = shapes["vision_model.embeddings.patch_embedding.weight"]
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


def _see_resnet(shapes: Shapes) -> tuple[dict[str, Any], int]:
    layers = {tuple(name.split(".")[2:4]) for name in shapes if name.startswith("vision_model.stages.")}
    depths = [sum(stage == place for stage, _ in layers) for place in "0123"]
    width, channels = shapes["vision_model.stem.conv3.weight"][0], shapes["vision_model.stem.conv1.weight"][1]
    fields = {
        "tower": "resnet",
        "stem_width": width,
        "stage_depths": depths,
        "hidden_size": 32 * width,
        "num_channels": channels,
    }
    return fields, _side(shapes["vision_model.head.position_embedding.weight"][0] - 1)


def _side(places: int) -> int:
    side = math.isqrt(max(places, 0))
    if side * side != places or not side:
        raise ConversionError(f"the image tower has {places} positions, which are no square of patches.")
    return side


def openai_config(seen: SeenShape) -> HFCLIPConfig:
    """The config of a model of OpenAI's, whose own `build_model` finds it from these shapes alone.

    There heads are 64 wide, the activation is QuickGELU, and texts are pooled at their highest id.
    """
    text, vision = seen.text, seen.vision
    stride = 32 if vision["tower"] == "resnet" else vision["patch_size"]
    fields = {} if text["vocab_size"] == HFCLIPTextConfig.vocab_size else {"eos_token_id": POOL_AT_HIGHEST_ID}
    return HFCLIPConfig(
        projection_dim=seen.projection_dim,
        text_config={**text, "num_attention_heads": text["hidden_size"] // 64, "hidden_act": "quick_gelu", **fields},
        vision_config={
            **vision,
            "num_attention_heads": vision["hidden_size"] // 64,
            "hidden_act": "quick_gelu",
            "image_size": seen.grid * stride,
        },
    )


def config_of_shape(seen: SeenShape, hidden_act: str | None) -> tuple[str, HFCLIPConfig]:
    """The known architecture of these shapes (a name, where several differ in their activation only), and its config.

    Raises:
        ConversionError: if `hidden_act` is missing; if no known architecture has these shapes, or several have that
            differ in more than the activation.
    """
    found = {
        name: config for name in list_architectures() if fits(config := HFCLIPConfig.from_architecture(name), seen)
    }
    if not found:
        raise ConversionError(
            f"it has the shapes of no known architecture ({seen}), and they tell neither heads nor activation nor "
            "pooling: pass config=HFCLIPConfig(...) with its shape, or the folder that has its config."
        )
    kinds = {str(_without_activation(config)): name for name, config in found.items()}
    names = ", ".join(f"architecture={name!r} ({_activations(config)})" for name, config in found.items())
    if len(kinds) > 1:
        raise ConversionError(
            f"its shapes are those of several architectures, and do not tell which: pass one of {names}."
        )
    if hidden_act is None:
        raise ConversionError(
            f"its shapes do not tell the activation: pass {names}, or hidden_act='quick_gelu' or 'gelu'. OpenAI's "
            "weights, and models fine-tuned from them, have quick_gelu; models trained with OpenCLIP have gelu unless "
            "their architecture's name ends in -quickgelu."
        )
    name, config = next(iter(found.items()))
    config.text_config.hidden_act = config.vision_config.hidden_act = hidden_act
    return name, config


def fits(config: HFCLIPConfig, seen: SeenShape) -> bool:
    """Whether a model of this config has the shapes that were seen."""
    text, vision = config.text_config, config.vision_config
    return (
        config.projection_dim == seen.projection_dim
        and (config.logit_bias_init_value is not None) == seen.has_logit_bias
        and vision.image_size // vision.stride == seen.grid
        and _agrees(text, seen.text)
        and _agrees(vision, seen.vision)
    )


def _agrees(config, seen: Mapping[str, Any]) -> bool:
    if (config.layer_scale_init_value is None) == ("layer_scale_init_value" in seen):
        return False
    return all(getattr(config, key) == value for key, value in seen.items() if key != "layer_scale_init_value")


def _without_activation(config: HFCLIPConfig) -> dict[str, Any]:
    towers = config.text_config.to_dict(), config.vision_config.to_dict()
    return {key: value for tower in towers for key, value in tower.items() if key != "hidden_act"} | {
        # Both towers have fields of the same names.
        "text": {key: value for key, value in towers[0].items() if key != "hidden_act"},
    }


def _activations(config: HFCLIPConfig) -> str:
    return " and ".join(dict.fromkeys((config.vision_config.hidden_act, config.text_config.hidden_act)))
