"""Shapes of the two towers and of the dual encoder that joins them."""

import difflib
import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# OpenAI's first conversions to transformers carry eos_token_id=2, an id that their vocabulary does not end texts
# with. It came to mean "pool at the highest id", which is what the original code did (argmax over the ids).
POOL_AT_HIGHEST_ID = 2

# Names of one architecture in the wild: OpenAI's has a slash and an at-sign, OpenCLIP's has dashes.
_ARCHITECTURES = Path(__file__).parent / "architectures"

_TRANSFORMERS_CLIP_TYPES = {
    "clip": "hf_clip",
    "clip_text_model": "hf_clip_text_model",
    "clip_vision_model": "hf_clip_vision_model",
}


def _as_ours(config_dict: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` of transformers' CLIP, as if it had been written by this package; others as they are."""
    ours = dict(config_dict)
    ours["model_type"] = _TRANSFORMERS_CLIP_TYPES.get(ours.get("model_type"), ours.get("model_type"))
    for key in ("text_config", "vision_config"):
        # Files of 2022 hold a tower's full shape in `..._config_dict` and at times null in `..._config`.
        first_format = ours.pop(f"{key}_dict", None) or {}
        if first_format or isinstance(ours.get(key), dict):
            ours[key] = _as_ours({**(ours.get(key) or {}), **first_format})
            # transformers leaves a tower's own projection_dim at its default, whatever the dual encoder's is.
            if "projection_dim" in ours:
                ours[key]["projection_dim"] = ours["projection_dim"]
    if ours["model_type"] is None:
        del ours["model_type"]
    return ours


class _HFCLIPConfigMixin:
    """Lets a config take the `config.json` that transformers' counterpart saved, and raise ValueError when made."""

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        return _as_ours(config_dict), unused

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # `strict` validates too, but wraps what is raised in an error of its own, which is not a ValueError.
        self.validate_architecture()


def _require_whole_heads(config: PreTrainedConfig) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} cannot be divided into num_attention_heads="
            f"{config.num_attention_heads} heads: make it a multiple of the number of heads."
        )


@strict
class HFCLIPTextConfig(_HFCLIPConfigMixin, PreTrainedConfig):
    """Shape of the text tower, a causal transformer. The defaults are those of ViT-B/32.

    `eos_token_id` is the id at whose first occurrence a text is pooled; 2 has the meaning that transformers
    gives it (pool at the highest id). `max_position_embeddings` counts tokens, the start and end token included.
    Raises ValueError where heads do not divide the width.
    """

    model_type = "hf_clip_text_model"
    base_config_key = "text_config"

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    initializer_factor: int | float = 1.0
    pad_token_id: int | None = 49407
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407

    def validate_architecture(self):
        _require_whole_heads(self)


@strict
class HFCLIPVisionConfig(_HFCLIPConfigMixin, PreTrainedConfig):
    """Shape of the image tower. The defaults are ViT-B/32 at 224 pixels.

    `tower` names the kind: "vit" (the paper's vision transformer) or "convnet" (a plain stack of 3 x 3 convolutions,
    for small pictures and small budgets). A convnet's stem has `stem_width` channels and halves the sides, and so does
    each stage; `stage_widths` are the stages' channels and `stage_depths` their convolutions. Norms take
    `norm_group_size` channels together. The last map is averaged to `pool_grid` x `pool_grid` places, which keeps
    roughly where things are. `hidden_size` is the last stage's width; patch, head and transformer fields mean nothing
    to a convnet.
    Raises ValueError for an unknown tower and for numbers that do not fit together.
    """

    model_type = "hf_clip_vision_model"
    base_config_key = "vision_config"

    tower: str = "vit"
    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    stem_width: int | None = None
    stage_widths: list[int] | None = None
    stage_depths: list[int] | None = None
    norm_group_size: int = 16
    pool_grid: int = 1
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    initializer_factor: int | float = 1.0

    @property
    def pooled_size(self) -> int:
        """Width of the vector that the tower gives for a picture, before the projection."""
        return self.hidden_size * (self.pool_grid**2 if self.tower == "convnet" else 1)

    @property
    def stride(self) -> int:
        """Pixels of a side to one position of the tower's last map."""
        return 2 * 2 ** len(self.stage_widths) if self.tower == "convnet" else self.patch_size

    def validate_architecture(self):
        if self.tower == "vit":
            self._validate_vit()
        elif self.tower == "convnet":
            self._validate_convnet()
        else:
            raise ValueError(f"tower={self.tower!r} is not a kind of image tower: use 'vit' or 'convnet'.")

    def _validate_vit(self):
        _require_whole_heads(self)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}: "
                f"set image_size={max(self.image_size // self.patch_size, 1) * self.patch_size}, or change patch_size."
            )

    def _validate_convnet(self):
        widths, depths = self.stage_widths or [], self.stage_depths or []
        if not widths or len(widths) != len(depths):
            raise ValueError(
                f"stage_widths={self.stage_widths} and stage_depths={self.stage_depths} must be lists of one length, "
                "with a width (channels) and a depth (convolutions) for each stage of the convnet."
            )
        if self.stem_width is None or min(self.stem_width, self.pool_grid, self.norm_group_size, *widths, *depths) < 1:
            raise ValueError(
                f"stem_width={self.stem_width}, stage_widths={widths}, stage_depths={depths}, "
                f"pool_grid={self.pool_grid} and norm_group_size={self.norm_group_size} must all be 1 or more."
            )
        if any(width % self.norm_group_size for width in widths):
            raise ValueError(
                f"stage_widths={widths} must be multiples of norm_group_size={self.norm_group_size}: change either."
            )
        if self.hidden_size != widths[-1]:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not the last stage's width: set hidden_size={widths[-1]}."
            )
        stride = self.stride
        if self.image_size % stride or self.image_size < stride * self.pool_grid:
            raise ValueError(
                f"image_size={self.image_size} is less than pool_grid={self.pool_grid} times {stride}, or not a "
                f"multiple of {stride}, the convnet's stride with {len(widths)} stages: set image_size="
                f"{max(self.image_size // stride, self.pool_grid) * stride}, or change the stages."
            )


@strict
class HFCLIPConfig(_HFCLIPConfigMixin, PreTrainedConfig):
    """A dual encoder: a text tower and an image tower, each projected into one space of `projection_dim`.

    `logit_scale_init_value` is the logarithm of the factor on the cosines; the paper starts at ln(1 / 0.07).
    A `config.json` of transformers' `CLIPModel` is read as if it were this package's own. The towers'
    `projection_dim` follow the dual encoder's.
    """

    model_type = "hf_clip"
    sub_configs_defaults = {"text_config": HFCLIPTextConfig, "vision_config": HFCLIPVisionConfig}

    text_config: dict | HFCLIPTextConfig | None = None
    vision_config: dict | HFCLIPVisionConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: int | float = math.log(1 / 0.07)
    initializer_factor: int | float = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.text_config.projection_dim = self.projection_dim
        self.vision_config.projection_dim = self.projection_dim

    @classmethod
    def from_architecture(cls, name: str, **overrides) -> "HFCLIPConfig":
        """The config of a published architecture, by OpenAI's or OpenCLIP's spelling of its name.

        `overrides` are fields of the dual encoder (`projection_dim=...`) or towers (`vision_config={...}`), which
        replace single values. Raises ValueError for an unknown name, listing the nearest known ones, and where the
        architectures are not at hand (a copy of this file that came with a model from the Hub).
        """
        known = {_simple(known): known for known in list_architectures()}
        if not known:
            raise ValueError("The named architectures come with the package: pip install hf_clip.")
        if _simple(name) not in known:
            near = difflib.get_close_matches(_simple(name), known, n=3, cutoff=0.3)
            raise ValueError(
                f"{name!r} is not a known architecture. Nearest: {', '.join(known[key] for key in near) or 'none'}. "
                f"Known: {', '.join(known.values())}."
            )
        shape = _read_architectures()[known[_simple(name)]]
        for key, value in overrides.items():
            shape[key] = {**shape.get(key, {}), **value} if isinstance(value, dict) else value
        return cls(**shape)


def _simple(name: str) -> str:
    """The letters and digits of a name: ViT-L/14@336px, ViT-L-14-336 and vit_l_14_336px are one."""
    return "".join(letter for letter in name.lower().removesuffix("px") if letter.isalnum())


def _read_architectures() -> dict[str, dict[str, Any]]:
    shapes = {}
    for file in sorted(_ARCHITECTURES.glob("*.json")):
        shape = json.loads(file.read_text())
        shapes[shape.pop("name")] = shape
    return shapes


def list_architectures() -> list[str]:
    """Names that `HFCLIPConfig.from_architecture` knows, in OpenAI's spelling; empty without the package's data."""
    return list(_read_architectures())
