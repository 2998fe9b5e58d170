"""A saved model in rows of a table: its towers, by its config, and its size, by its weights."""

import math
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedConfig

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig


def describe(folder: Path, config: HFCLIPConfig) -> list[tuple[str, str]]:
    """(what, how) of the towers, the shared space and the parameters.

    Raises:
        FileNotFoundError: if the folder has no weights.
    """
    counts, logit_scale = _weights(folder)
    rows = [
        ("image tower", f"{image_tower(config.vision_config)}; {image_sizes(config.vision_config)}"),
        ("text tower", text_tower(config.text_config)),
        *_decoder(config),
        ("shared space", f"{config.projection_dim} dimensions"),
        ("parameters", f"{sum(counts.values()):,} (image {counts['vision']:,}, text {counts['text']:,})"),
    ]
    if logit_scale is not None:
        rows.append(("logit scale (1 / temperature)", f"{math.exp(logit_scale):.2f}"))
    return rows


def _decoder(config: HFCLIPConfig) -> list[tuple[str, str]]:
    """The row of what writes captions; none where nothing does."""
    if not isinstance(config, HFCLIPCoCaConfig):
        return []
    heads = f"{config.num_decoder_heads} head{'s' * (config.num_decoder_heads != 1)}"
    width = config.text_config.hidden_size
    return [("caption decoder", f"{_layers(config.num_decoder_layers)} that see the image, width {width}, {heads}")]


def image_tower(config: HFCLIPVisionConfig) -> str:
    widths, depths = config.stage_widths or [], config.stage_depths or []
    if config.tower == "convnet":
        stages = zip(widths, depths, strict=True)
        return ", ".join(["convnet", *(f"{depth} x {width} channels" for width, depth in stages)])
    if config.tower == "resnet":
        blocks = ", ".join(map(str, depths))
        return (
            f"ResNet, stages of {blocks} blocks, width {config.stem_width}, pooled by {config.num_attention_heads} "
            "heads of attention"
        )
    if config.tower == "naflex":
        return (
            f"ViT for images of any aspect (NaFlex), {config.num_hidden_layers} layers, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads, patches of {config.patch_size} pixels"
        )
    if config.tower == "timm":
        return f"timm's {config.backbone}"
    if config.tower == "transformers":
        return _of_transformers(config)
    return (
        f"ViT, {_layers(config.num_hidden_layers)}, width {config.hidden_size}, {_heads(config)}, "
        f"patches of {config.patch_size} pixels"
    )


def image_sizes(config: HFCLIPVisionConfig) -> str:
    """How large the tower sees images."""
    if config.tower != "naflex":
        return f"{config.image_size} pixels a side"
    return f"about {(config.image_size // config.patch_size) ** 2} patches an image, at its own aspect"


def text_tower(config: HFCLIPTextConfig) -> str:
    if config.tower == "transformers":
        return _of_transformers(config)
    return (
        f"transformer, {_layers(config.num_hidden_layers)}, width {config.hidden_size}, {_heads(config)}; "
        f"{config.vocab_size} tokens in the vocabulary, {config.max_position_embeddings} in a text"
    )


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def _heads(config: HFCLIPTextConfig | HFCLIPVisionConfig) -> str:
    return f"{config.num_attention_heads} head{'s' * (config.num_attention_heads != 1)}"


def _of_transformers(config: HFCLIPTextConfig | HFCLIPVisionConfig) -> str:
    backbone = config.tower_config
    assert isinstance(backbone, PreTrainedConfig)
    width = getattr(backbone, "hidden_size", None)
    layers = getattr(backbone, "num_hidden_layers", None)
    shape = [_layers(layers) if layers else "", f"width {width}" if isinstance(width, int) else ""]
    return ", ".join([f"transformers' {backbone.model_type}", *filter(None, shape)])


def _weights(folder: Path) -> tuple[dict[str, int], float | None]:
    """Numbers of parameters by tower, from the headers of the weight files, and the learnt logit scale."""
    counts, logit_scale = {"vision": 0, "text": 0, "other": 0}, None
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} has no model.safetensors: save the model there before its card.")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():
                tower = "vision" if name.startswith("vis") else "other"
                if name.startswith(("text_model.", "text_projection.")):
                    tower = "text"
                counts[tower] += math.prod(weights.get_slice(name).get_shape())
                if name == "logit_scale":
                    logit_scale = float(weights.get_tensor(name))
    return counts, logit_scale
