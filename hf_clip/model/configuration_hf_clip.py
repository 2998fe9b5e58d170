"""Shapes of the two towers and of the dual encoder that joins them."""

import difflib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_limits_hf_clip import require_plausible, require_sizes, require_whole_heads
from .configuration_reading_hf_clip import as_ours
from .remote_code_hf_clip import IS_REMOTE, SavedWithCode

# OpenAI's first conversions to transformers carry eos_token_id=2, an id that their vocabulary does not end texts
# with. It came to mean "pool at the highest id", which is what the original code did (argmax over the ids).
POOL_AT_HIGHEST_ID = 2

_ARCHITECTURES = Path(__file__).parents[1] / "assets" / "architectures"

# Those of published CLIPs; relu for convolutional towers.
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "relu")

# Poolings of a map by attention, which stand behind a trunk of timm and give embeddings of the shared space.
MAP_POOLINGS = ("absolute_attention", "rotary_attention")

# What timm's `create_model` takes that is no shape: other weights and settings, by name, path or address, and modules
# that are no tower.
_NO_SHAPES_OF_TIMM = {
    "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path",
    "pretrained_filter_fn", "cache_dir", "features_only", "feature_cfg", "out_indices", "scriptable", "exportable",
    "no_jit", "device", "dtype",
}  # fmt: skip


if TYPE_CHECKING:
    _Config = TypeVar("_Config")

    class _Resolved(Generic[_Config]):
        """What a type checker is told of a config within a config: given as a dictionary too, read as a config."""

        def __get__(self, owner: object, kind: type | None = None) -> _Config: ...

        def __set__(self, owner: object, value: _Config | dict[str, Any] | None) -> None: ...

    _Base = PreTrainedConfig
else:
    _Base = object


class _HFCLIPConfigMixin(SavedWithCode, _Base):
    """Lets a config take the `config.json` that transformers' counterpart saved, and raise ValueError when made.

    What is saved names the classes of models and pipelines too; transformers would write down the config's alone.
    """

    _auto_class = "AutoConfig"
    auto_models: ClassVar[dict[str, str]] = {}
    remote_pipelines: ClassVar[dict[str, dict]] = {}

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        return as_ours(config_dict), unused

    def save_pretrained(self, save_directory, **kwargs):
        if self._auto_class is not None:
            self.auto_map, self.custom_pipelines = dict(self.auto_models), dict(self.remote_pipelines)
        super().save_pretrained(save_directory, **kwargs)
        if not IS_REMOTE:
            # Where the package is, these would ask for trust in code that is there already.
            self.__dict__.pop("auto_map", None)
            self.__dict__.pop("custom_pipelines", None)

    def __post_init__(self, **kwargs):
        require_plausible({**vars(self), **kwargs})
        if not IS_REMOTE:
            kwargs = {key: value for key, value in kwargs.items() if key not in ("auto_map", "custom_pipelines")}
        if isinstance(backbone := getattr(self, "tower_config", None), dict):
            self.tower_config = _tower_config(backbone)
        super().__post_init__(**kwargs)
        require_sizes(self)
        # `strict` validates too, but wraps what is raised in an error of its own, which is not a ValueError.
        self.validate_architecture()


def _require_choice(config: PreTrainedConfig, field: str, choices: tuple[str, ...]) -> None:
    if (value := getattr(config, field)) not in choices:
        raise ValueError(f"`{field}={value!r}` is not known: use one of {', '.join(map(repr, choices))}.")


def _require_choices_of_both_towers(config: PreTrainedConfig) -> None:
    _require_choice(config, "hidden_act", ACTIVATIONS)
    _require_choice(config, "projection_type", ("linear", "mlp", "none"))
    if config.projection_bias and config.projection_type == "none":
        raise ValueError(
            "`projection_bias=True` has no projection to stand in, as `projection_type='none'`: change either."
        )


def _tower_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """The config of a model of transformers from its fields, `model_type` among them."""
    kind: Any = fields.get("model_type")
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), CONFIG_MAPPING, n=3, cutoff=0.3)
        raise ValueError(
            f"`tower_config` has `model_type={kind!r}`, which transformers does not know: set it to that of the "
            f"model in the tower. Nearest: {', '.join(near) or 'none'}."
        )
    return CONFIG_MAPPING[kind].from_dict(fields)


def _require_tower_config(config: PreTrainedConfig) -> None:
    if config.tower_config is None:
        raise ValueError(
            "`tower='transformers'` needs the config of the model that it holds, and `tower_config=None`: set it "
            "to that model's config, or to a dictionary of its fields with its `model_type`."
        )


@strict
class HFCLIPTextConfig(_HFCLIPConfigMixin, PreTrainedConfig):
    """Shape of the text tower, a transformer. The defaults are those of ViT-B/32, with a causal mask.

    With `is_causal=False` tokens see those behind them, padding too unless a mask is given; in a tower of transformers
    padding never counts. Raises ValueError where heads do not divide the width, and for unknown choices.
    """

    model_type = "hf_clip_text_model"
    base_config_key = "text_config"
    sub_configs: ClassVar[dict[str, Any]] = {"tower_config": AutoConfig}
    auto_models = {
        "AutoModel": "modeling_text_hf_clip.HFCLIPTextModel",
        "AutoModelForTextEncoding": "modeling_text_hf_clip.HFCLIPTextModel",
    }

    tower: str = "clip"
    """Kind of tower: "clip"; "class_token" for CoCa's, which pools a class token behind the text (with
    `pooling="class"`); "transformers" for a model of that library, whose own config is `tower_config`."""
    vocab_size: int = 49408
    """Number of token ids."""
    hidden_size: int = 512
    """Width of the tower."""
    intermediate_size: int = 2048
    """Width within each layer's MLP."""
    projection_dim: int = 512
    """Dimensions of the shared space; the dual encoder's, where the tower is part of one."""
    num_hidden_layers: int = 12
    """Number of layers."""
    num_attention_heads: int = 8
    """Attention heads of each layer; they divide the width."""
    max_position_embeddings: int = 77
    """Longest text in tokens, the start and end token included."""
    hidden_act: str = "quick_gelu"
    """Activation of the MLPs: quick_gelu (OpenAI's), gelu, gelu_pytorch_tanh or relu."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in layer norms."""
    pooling: str = "eos"
    """Where a text's embedding is taken: "eos" at the first `eos_token_id` (2 has the meaning that transformers gives
    it: at the highest id; not in a tower of transformers), "first_eos" at the first `eos_token_id` even where it is 2,
    "first" and "last" at the first and last position, "mean" over all tokens up to the first end token, "class" at
    CoCa's class token, "pooler" as a model of transformers pools itself."""
    is_causal: bool = True
    """Whether a token sees only those before it."""
    layer_scale_init_value: int | float | None = None
    """Start of the learned factor for each channel of what each half of a layer adds; None: there is none."""
    projection_size: int | None = None
    """Width of SigLIP's linear head, which is part of the tower; None: there is none."""
    projection_type: str = "linear"
    """What leads to the shared space: "linear", "mlp" (two linear maps with a GELU between them) or "none"."""
    projection_bias: bool = False
    """Whether the projection (of an MLP, its last map) has a bias."""
    if TYPE_CHECKING:
        tower_config: _Resolved[PreTrainedConfig | None] = _Resolved()
        """Config of the model of transformers that the tower holds, or its fields with `model_type`."""
    else:
        tower_config: dict[str, Any] | PreTrainedConfig | None = None
    attention_dropout: int | float = 0.0
    """Fraction of attention weights that training drops."""
    initializer_range: float = 0.02
    """Read and written for transformers' sake: a text tower's weights start as in the paper's code, by its width."""
    initializer_factor: int | float = 1.0
    """Factor of the standard deviations that weights start with."""
    pad_token_id: int | None = 49407
    """Id of padding, by which CoCa's tower and those of transformers know it where no mask is given."""
    bos_token_id: int | None = 49406
    """Id that begins a text."""
    eos_token_id: int | None = 49407
    """Id that ends a text, where "eos" and "first_eos" pool."""

    @property
    def pooled_size(self) -> int:
        """Width of the embedding that the tower gives for a text, before the projection."""
        return self.projection_size or self.hidden_size

    def validate_architecture(self):
        _require_choice(self, "tower", ("clip", "class_token", "transformers"))
        own = "pooler" if self.tower == "transformers" else "first_eos"
        poolings = ("class",) if self.tower == "class_token" else ("eos", "last", "first", "mean", own)
        _require_choice(self, "pooling", poolings)
        _require_choices_of_both_towers(self)
        if self.eos_token_id is None and self.pooling in ("eos", "first_eos"):
            raise ValueError(f"`pooling={self.pooling!r}` is at the end token, and `eos_token_id=None`: set its id.")
        if self.tower == "transformers":
            _require_tower_config(self)
        else:
            require_whole_heads(self)


@strict
class HFCLIPVisionConfig(_HFCLIPConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    """Shape of the image tower. The defaults are ViT-B/32 at 224 pixels.

    `tower` names the kind, and fields of other kinds mean nothing to it:

    - "vit", the paper's vision transformer, with tokens for patches and, if `has_class_token`, one before them. It
      pools by "class" (the class token), "average" (of the patches), "attention" (SigLIP's head, a learned query and
      an MLP) or "queries" (CoCa's: what `num_queries` learned queries see, the first of which is the embedding).
    - "naflex", SigLIP 2's vision transformer for images of any aspect (Tschannen et al. 2025), which takes them as
      patches, each image with its own number of rows and columns. It pools by "attention", without a class token.
    - "resnet", the paper's ResNet: four stages and attention pooling with `num_attention_heads`; `hidden_size` is
      `32 * stem_width`. The output projection of its attention pooling is the model's, with `projection_bias=True`.
    - "convnet" (a plain stack of 3 x 3 convolutions, for small images and small budgets). Its stem halves the sides,
      and so does each stage. `hidden_size` is the last stage's width.
    - "transformers", a vision model of that library, whose own config is `tower_config`; "timm", the trunk that
      timm calls `backbone`, made with `backbone_kwargs`. `hidden_size` is the width of the embedding that they give,
      `pooling` one of the above or "pooler", what the model itself pools. A trunk of timm that gives maps can be
      pooled by "absolute_attention" or "rotary_attention" too, attention with learned or rotary positions
      (OpenCLIP's "abs_attn" and "rot_attn"), which leads to `projection_dim` itself.

    `out_features` (or `out_indices`) are those of `stage_names` that AutoBackbone gives; by default the last.
    Raises ValueError for unknown choices and for numbers that do not fit together.
    """

    model_type = "hf_clip_vision_model"
    base_config_key = "vision_config"
    sub_configs: ClassVar[dict[str, Any]] = {"tower_config": AutoConfig}
    auto_models = {
        "AutoModel": "modeling_vision_hf_clip.HFCLIPImageTower",
        "AutoBackbone": "modeling_vision_hf_clip.HFCLIPBackbone",
    }

    tower: str = "vit"
    """Kind of tower: vit, naflex, resnet, convnet, transformers or timm."""
    hidden_size: int = 768
    """Width of the tower, before the projection."""
    intermediate_size: int = 3072
    """Width within each layer's MLP."""
    projection_dim: int = 512
    """Dimensions of the shared space; the dual encoder's, where the tower is part of one."""
    num_hidden_layers: int = 12
    """Number of layers of a transformer."""
    num_attention_heads: int = 12
    """Attention heads of each layer (of a ResNet, of its pooling); they divide the width."""
    num_channels: int = 3
    """Channels of an image."""
    image_size: int = 224
    """Pixels of a side. Of a NaFlex tower: images have at most the patches of such a square, unless the processor says
    otherwise."""
    patch_size: int = 32
    """Pixels of a patch's side."""
    has_class_token: bool = True
    """Whether a vision transformer has a token before those of the patches."""
    has_pre_norm: bool = True
    """Whether a layer norm stands before the layers."""
    patch_bias: bool = False
    """Whether the patch embedding has a bias."""
    pooling: str = "class"
    """How the tower's tokens become one embedding: see the kinds above."""
    norm_before_pooling: bool = False
    """Whether the last norm stands before the pooling; else behind it."""
    layer_scale_init_value: int | float | None = None
    """Start of the learned factor for each channel of what each half of a layer adds; None: there is none."""
    patch_dropout: int | float = 0.0
    """Fraction of the patches that training drops (Li et al. 2022)."""
    crops_remainder: bool = False
    """Whether pixels at the right and bottom are cropped where patches do not fill `image_size`."""
    num_patches: int | None = None
    """Learned positions of a NaFlex tower, a square number, resampled to each image."""
    num_queries: int = 256
    """Learned queries of `pooling="queries"`."""
    pooling_heads: int = 8
    """Attention heads of `pooling="queries"`."""
    stem_width: int | None = None
    """Channels of a convnet's stem, and of the first stage of a ResNet."""
    stage_widths: list[int] | None = None
    """Channels of a convnet's stages."""
    stage_depths: list[int] | None = None
    """Convolutions of each stage of a convnet, or layers of each of a ResNet's four."""
    norm_group_size: int = 16
    """Channels that a convnet's norms take together."""
    pool_grid: int = 1
    """A convnet's last map is averaged to so many rows and columns, which keeps roughly where things are."""
    if TYPE_CHECKING:
        tower_config: _Resolved[PreTrainedConfig | None] = _Resolved()
        """Config of the model of transformers that the tower holds, or its fields with `model_type`."""
    else:
        tower_config: dict[str, Any] | PreTrainedConfig | None = None
    backbone: str | None = None
    """timm's name of the trunk."""
    backbone_kwargs: dict[str, Any] | None = None
    """What timm makes the trunk with. Where it has `num_classes`, timm's classifier is the projection (OpenCLIP's
    `timm_proj=""`), with `projection_type="none"`."""
    projection_type: str = "linear"
    """What leads to the shared space: "linear", "mlp" (two linear maps with a GELU between them) or "none"."""
    projection_bias: bool = False
    """Whether the projection (of an MLP, its last map) has a bias."""
    projection_dropout: int | float = 0.0
    """Fraction that training drops before a linear projection, and within an MLP."""
    hidden_act: str = "quick_gelu"
    """Activation of the MLPs: quick_gelu (OpenAI's), gelu, gelu_pytorch_tanh or relu."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in layer norms."""
    attention_dropout: int | float = 0.0
    """Fraction of attention weights that training drops."""
    initializer_range: float = 0.02
    """Standard deviation that the patch embedding starts with; other weights start by the width, as in the paper's."""
    initializer_factor: int | float = 1.0
    """Factor of the standard deviations that weights start with."""
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        super().__post_init__(**kwargs)
        self.set_output_features_output_indices(features, indices)

    @property
    def stage_names(self) -> list[str]:
        """What AutoBackbone may be asked for, of a ViT: what goes into its first layer, and what each layer gives."""
        return ["stem", *(f"stage{layer + 1}" for layer in range(self.num_hidden_layers))]

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        if fields["out_features"] == self.stage_names[-1:]:
            # As it is for a tower that nobody took for a backbone.
            del fields["out_features"], fields["out_indices"]
        return fields

    @property
    def pooled_size(self) -> int:
        """Width of the embedding that the tower gives for an image, before the projection."""
        if self.tower == "timm" and self.pooling in MAP_POOLINGS:
            return self.projection_dim
        if self.tower == "timm":
            return (self.backbone_kwargs or {}).get("num_classes") or self.hidden_size
        if self.tower == "vit" and self.pooling == "queries":
            return self.projection_dim
        return self.hidden_size * (self.pool_grid**2 if self.tower == "convnet" else 1)

    @property
    def stride(self) -> int:
        """Pixels of a side to one position of the tower's last map; of a ViT, a convnet and a ResNet."""
        return {"convnet": 2 * 2 ** len(self.stage_widths or ()), "resnet": 32}.get(self.tower, self.patch_size)

    def validate_architecture(self):
        _require_choices_of_both_towers(self)
        kinds = {
            "vit": self._validate_vit,
            "convnet": self._validate_convnet,
            "naflex": self._validate_naflex,
            "resnet": self._validate_resnet,
            "transformers": self._validate_transformers,
            "timm": self._validate_timm,
        }
        _require_choice(self, "tower", tuple(kinds))
        kinds[self.tower]()

    def _validate_vit(self):
        require_whole_heads(self)
        _require_choice(self, "pooling", ("class", "average", "attention", "queries"))
        if self.pooling == "class" and not self.has_class_token:
            raise ValueError(
                "`pooling='class'` takes the class token, and `has_class_token=False`: pool by 'average' or "
                "'attention'."
            )
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(
                f"`patch_dropout={self.patch_dropout}` is a fraction of the patches: set it in 0 <= p < 1."
            )
        if self.image_size < self.patch_size or self.image_size % self.patch_size and not self.crops_remainder:
            raise ValueError(
                f"`image_size={self.image_size}` is not a multiple of `patch_size={self.patch_size}`: "
                f"set `image_size={max(self.image_size // self.patch_size, 1) * self.patch_size}`, or change "
                "`patch_size`."
            )

    def _validate_naflex(self):
        require_whole_heads(self)
        if (positions := self.num_patches or 0) < 1 or math.isqrt(positions) ** 2 != positions:
            raise ValueError(
                f"`num_patches={self.num_patches}` are the positions of a NaFlex tower, a square of them: set a "
                "square number, such as 256."
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"`image_size={self.image_size}` is below `patch_size={self.patch_size}`: set it to that or more."
            )
        if self.patch_dropout:
            raise ValueError(
                f"`patch_dropout={self.patch_dropout}`: a NaFlex tower drops no patches. Set `patch_dropout=0`, and "
                "have the processor make fewer (`max_num_patches`)."
            )

    def _validate_resnet(self):
        depths = self.stage_depths or []
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"`stage_depths={self.stage_depths}`: a ResNet has four stages of 1 or more layers each.")
        if self.stem_width is None or self.stem_width < 2 or self.stem_width % 2:
            raise ValueError(
                f"`stem_width={self.stem_width}` must be an even number: the stem begins with half of it."
            )
        if self.hidden_size != 32 * self.stem_width:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` is not what four stages make of `stem_width={self.stem_width}`: "
                f"set `hidden_size={32 * self.stem_width}`."
            )
        require_whole_heads(self)
        if self.image_size % 32 or self.image_size < 32:
            raise ValueError(
                f"`image_size={self.image_size}` is not a multiple of 32, the ResNet's stride: "
                f"set `image_size={max(self.image_size // 32, 1) * 32}`."
            )

    def _validate_transformers(self):
        _require_choice(self, "pooling", ("class", "average", "pooler"))
        _require_tower_config(self)

    def _validate_timm(self):
        _require_choice(self, "pooling", ("class", "average", "attention", "pooler", *MAP_POOLINGS))
        if not self.backbone:
            raise ValueError(f"`backbone={self.backbone!r}`: set it to timm's name of the trunk for `tower='timm'`.")
        if wrong := [name for name in self.backbone_kwargs or {} if name in _NO_SHAPES_OF_TIMM]:
            raise ValueError(
                f"`backbone_kwargs` have {', '.join(wrong)}, and may hold what makes the shape of timm's trunk alone: "
                "drop it. The weights are those of the model."
            )
        if self.pooling in MAP_POOLINGS and "num_classes" in (self.backbone_kwargs or {}):
            raise ValueError(
                f"`pooling={self.pooling!r}` stands in the place of the classifier that `num_classes` in "
                "`backbone_kwargs` asks for: drop either."
            )

    def _validate_convnet(self):
        widths, depths = self.stage_widths or [], self.stage_depths or []
        if not widths or len(widths) != len(depths):
            raise ValueError(
                f"`stage_widths={self.stage_widths}` and `stage_depths={self.stage_depths}` must be lists of one "
                "length, with a width (channels) and a depth (convolutions) for each stage of the convnet."
            )
        if self.stem_width is None or min(self.stem_width, self.pool_grid, self.norm_group_size, *widths, *depths) < 1:
            raise ValueError(
                f"`stem_width={self.stem_width}`, `stage_widths={widths}`, `stage_depths={depths}`, "
                f"`pool_grid={self.pool_grid}` and `norm_group_size={self.norm_group_size}` must all be 1 or more."
            )
        if any(width % self.norm_group_size for width in widths):
            raise ValueError(
                f"`stage_widths={widths}` must be multiples of `norm_group_size={self.norm_group_size}`: change "
                "either."
            )
        if self.hidden_size != widths[-1]:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` is not the last stage's width: set `hidden_size={widths[-1]}`."
            )
        stride = self.stride
        if self.image_size % stride or self.image_size < stride * self.pool_grid:
            raise ValueError(
                f"`image_size={self.image_size}` is less than `pool_grid={self.pool_grid}` times {stride}, or not a "
                f"multiple of {stride}, the convnet's stride with {len(widths)} stages: set "
                f"`image_size={max(self.image_size // stride, self.pool_grid) * stride}`, or change the stages."
            )


@strict
class HFCLIPConfig(_HFCLIPConfigMixin, PreTrainedConfig):
    """A dual encoder: a text tower and an image tower, each projected into one space of `projection_dim`.

    A `config.json` of transformers' `CLIPModel` or `MetaClip2Model` is read as if it were this package's own, and one
    of `SiglipModel` (SigLIP, and SigLIP 2 of fixed resolution) or `Siglip2Model` (NaFlex) gives an
    `HFCLIPSiglipConfig`. Raises ValueError where a tower without projection is of another width, for a template
    without its `{}`, and for a `config.json` of other models.
    """

    model_type = "hf_clip"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": HFCLIPTextConfig,
        "vision_config": HFCLIPVisionConfig,
    }
    auto_models = {
        "AutoModel": "modeling_hf_clip.HFCLIPModel",
        "AutoModelForZeroShotImageClassification": "modeling_hf_clip.HFCLIPModel",
        "AutoModelForImageClassification": "modeling_hf_clip.HFCLIPForImageClassification",
    }
    remote_pipelines = {
        "hf-clip-zero-shot": {
            "impl": "pipeline_hf_clip.HFCLIPZeroShotPipeline",
            "pt": ["AutoModelForZeroShotImageClassification"],
            "type": "multimodal",
        }
    }

    if TYPE_CHECKING:
        text_config: _Resolved[HFCLIPTextConfig] = _Resolved()
        """The text tower, or its fields."""
        vision_config: _Resolved[HFCLIPVisionConfig] = _Resolved()
        """The image tower, or its fields."""
    else:
        text_config: dict | HFCLIPTextConfig | None = None
        vision_config: dict | HFCLIPVisionConfig | None = None
    projection_dim: int = 512
    """Dimensions of the shared space; the towers' follow it."""
    logit_scale_init_value: int | float = math.log(1 / 0.07)
    """Logarithm of the initial logit scale; the paper starts at ln(1 / 0.07)."""
    logit_bias_init_value: int | float | None = None
    """Start of the bias of the logits, of models trained with a sigmoid; None: there is none."""
    initializer_factor: int | float = 1.0
    """Factor of the standard deviations that the projections start with."""
    zero_shot_templates: list[str] | None = None
    """Texts, with `{}` for the label, that the model is evaluated and classifies with by default; None means
    "a photo of a {}."."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.text_config.projection_dim = self.projection_dim
        self.vision_config.projection_dim = self.projection_dim

    def validate_architecture(self):
        for key in ("text_config", "vision_config"):
            tower = getattr(self, key)
            if tower.projection_type == "none" and tower.pooled_size != self.projection_dim:
                raise ValueError(
                    f"`{key}` has no projection and gives embeddings of {tower.pooled_size} dimensions, where "
                    f"`projection_dim={self.projection_dim}`: set `projection_dim={tower.pooled_size}`, or "
                    "`projection_type='linear'`."
                )
        if self.zero_shot_templates == []:
            raise ValueError("`zero_shot_templates=[]` is empty: give at least one template, or None for the default.")
        for template in self.zero_shot_templates or ():
            if "{}" not in template:
                raise ValueError(
                    f"`zero_shot_templates` holds {template!r}, which has no '{{}}': put '{{}}' where the label "
                    "belongs."
                )
        is_sigmoid = self.model_type == "hf_clip_siglip"
        if is_sigmoid != (self.logit_bias_init_value is not None):
            raise ValueError(
                f"`logit_bias_init_value={self.logit_bias_init_value}` in a config of type {self.model_type}: models "
                "trained with a sigmoid have a bias, and their config is HFCLIPSiglipConfig."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "HFCLIPConfig":
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._kind(config_dict.get("model_type")).from_dict(config_dict, **kwargs)

    @classmethod
    def _kind(cls, model_type: str | None) -> type["HFCLIPConfig"]:
        """The class of dual encoders of this type: whoever asks for any gets the one that fits."""
        if model_type is None:
            return cls
        kinds = {kind.model_type: kind for kind in (*HFCLIPConfig.__subclasses__(), HFCLIPConfig)}
        if not issubclass(kinds.get(model_type, object), cls):
            raise ValueError(f"`model_type={model_type!r}` is no {cls.__name__}: it is of another kind of model.")
        return kinds[model_type]

    @classmethod
    def from_architecture(cls, name: str, **overrides) -> "HFCLIPConfig":
        """The config of a published architecture; `find_architecture` says how its name may be spelt.

        `overrides` are fields of the dual encoder (`projection_dim=...`) or towers (`vision_config={...}`), which
        replace single values. An architecture of SigLIP gives an `HFCLIPSiglipConfig`. Raises what
        `find_architecture` raises.
        """
        shape = find_architecture(name)["config"]
        kind = cls._kind(shape.pop("model_type", None))
        for key, value in overrides.items():
            shape[key] = {**shape.get(key, {}), **value} if isinstance(value, dict) else value
        return kind(**shape)


@strict
class HFCLIPSiglipConfig(HFCLIPConfig):
    """A dual encoder trained with a sigmoid for each pair (Zhai et al. 2023), for towers of any kind.

    Its logits are the scaled cosines plus a learned bias. The type's name makes transformers' pipeline score by
    sigmoid and pad texts to 64 tokens.
    """

    model_type = "hf_clip_siglip"
    auto_models = {
        "AutoModel": "modeling_hf_clip.HFCLIPSiglipModel",
        "AutoModelForZeroShotImageClassification": "modeling_hf_clip.HFCLIPSiglipModel",
        "AutoModelForImageClassification": "modeling_hf_clip.HFCLIPSiglipForImageClassification",
    }

    logit_scale_init_value: int | float = math.log(10)
    """Logarithm of the initial logit scale; the default is that paper's."""
    logit_bias_init_value: int | float | None = -10.0
    """Start of the bias of the logits; the default is that paper's."""


def find_architecture(name: str) -> dict[str, Any]:
    """What is known of a published architecture; tools/make_architectures.py says what the keys mean.

    The names of OpenAI's nine are OpenAI's models, whose activation is QuickGELU, in any spelling: `ViT-B/32` and
    `ViT-B-32` are one, as are `ViT-L/14@336px` and `ViT-L-14-336`. OpenCLIP gives these names to shapes with GELU,
    which are `ViT-B-32-gelu` and so on here; `open_clip/NAME` always has OpenCLIP's meaning. Slashes, dashes and the
    case of letters do not matter, except where only case tells two architectures apart (`ViT-g-14`, `ViT-G-14`).

    Raises ValueError for a name that is unknown or fits several architectures, listing the nearest, and where the
    architectures are not installed (a copy of this file that came with a model from the Hub).
    """
    architectures = read_architectures()
    if not architectures:
        raise ValueError("The named architectures come with the package: pip install hf_clip.")
    spellings = {spelling: known for known, one in architectures.items() for spelling in (known, *one["aliases"])}
    for simplify in (_letters, _small_letters):
        fits = {known for spelling, known in spellings.items() if simplify(spelling) == simplify(name)}
        if len(fits) == 1:
            return architectures[fits.pop()]
    known_letters = {_small_letters(spelling): known for spelling, known in spellings.items()}
    near = difflib.get_close_matches(_small_letters(name), known_letters, n=5, cutoff=0.3)
    raise ValueError(
        f"{name!r} {'fits several architectures' if fits else 'is not a known architecture'}. "
        f"Nearest: {', '.join(sorted(fits) or dict.fromkeys(known_letters[key] for key in near)) or 'none'}. "
        f"`hf-clip doctor --architectures` shows all {len(architectures)}."
    )


def _letters(name: str) -> str:
    """The letters and digits of a name: ViT-L/14@336px and ViT-L-14-336 are one."""
    return "".join(letter for letter in re.sub("px$", "", name, flags=re.IGNORECASE) if letter.isalnum())


def _small_letters(name: str) -> str:
    return _letters(name).lower()


def read_architectures() -> dict[str, dict[str, Any]]:
    """All published architectures by name, sorted; empty where they are not installed."""
    files = [json.loads(file.read_text(encoding="utf-8")) for file in _ARCHITECTURES.glob("*.json")]
    return {one["name"]: one for one in sorted(files, key=lambda one: _by_number(_small_letters(one["name"])))}


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts rn50x4 before rn50x16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def list_architectures() -> list[str]:
    """Names that `HFCLIPConfig.from_architecture` knows, sorted; empty where they are not installed."""
    return list(read_architectures())
