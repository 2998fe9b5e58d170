"""Image towers from timm. timm, which imports torchvision, is imported only when one is made.

Shape suffixes: B images, C channels, H and V rows and columns of a map, T tokens, W width of the tower.
"""

import copy
import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_hf_clip import MAP_POOLINGS, HFCLIPVisionConfig
from .modeling_inputs_hf_clip import check_pixels, known_arguments

# timm's names for the poolings of a config; "pooler" leaves the trunk its own, and those of maps replace it.
GLOBAL_POOLS = {"class": "token", "average": "avg", "attention": "map", **dict.fromkeys(MAP_POOLINGS, "")}


# Of a trunk that does not say by how much its stages reduce a side.
_ANY = {"reduction": 1}
# What initial weights are drawn by, and the steps of timm's own draw.
_FILLS = {
    "uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_",
    "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "constant_", "zeros_", "ones_",
}  # fmt: skip


class NothingDrawn(TorchFunctionMode):
    """Within, no tensor on the meta device is filled: that takes most of the time in which a model is made there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in _FILLS and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


def import_timm() -> Any:
    """timm. Raises ImportError, with what to install, where it or the torchvision that it imports is missing."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"`tower='timm'` needs timm, and timm needs torchvision ({error}): pip install timm torchvision, the "
            "latter from the index that your torch is from."
        ) from error
    return timm


def make_trunk(config: HFCLIPVisionConfig, pretrained: bool = False) -> Any:
    """timm's `config.backbone`, without a classifier unless `backbone_kwargs` have `num_classes`.

    With a classifier of `num_classes` outputs, that layer is the projection, and the trunk pools as it was made to.
    Raises ImportError without timm, ValueError for a name that timm does not know and a pooling that the trunk lacks.
    """
    timm, options = import_timm(), config.backbone_kwargs or {}
    assert config.backbone is not None, "the config of a tower of timm names its trunk"
    name = config.backbone.partition(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise ValueError(f"`backbone={config.backbone!r}` is no model of timm {timm.__version__}. Nearest: {near}.")
    trunk = timm.create_model(config.backbone, pretrained=pretrained, **options)
    if "num_classes" in options:
        return trunk
    try:
        trunk.reset_classifier(
            0, **({"global_pool": GLOBAL_POOLS[config.pooling]} if config.pooling != "pooler" else {})
        )
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"{config.backbone} cannot pool as `pooling={config.pooling!r}` says ({error!r}): set `pooling='pooler'`, "
            "which leaves it its own."
        ) from error
    return trunk


def make_map_pool(config: HFCLIPVisionConfig, trunk: Any) -> nn.Module | None:
    """timm's attention over the trunk's last map, which leads to `config.projection_dim`; None for other poolings.

    Raises ValueError for a trunk whose last layer gives no map, or one that heads of 64 channels do not divide.
    """
    if config.pooling not in MAP_POOLINGS:
        return None
    # The sides of the map at the size that timm made the trunk for; where there is none, neither is a map.
    sides, width = trunk.default_cfg.get("pool_size"), trunk.num_features
    if not sides or width % 64:
        lacks = f"has {width} channels, which heads of 64 do not divide" if sides else "gives no map"
        raise ValueError(f"`pooling={config.pooling!r}` pools a map, and {config.backbone} {lacks}: use another.")
    if config.pooling == "absolute_attention":
        return import_timm().layers.AttentionPool2d(width, feat_size=sides, out_features=config.projection_dim)
    return import_timm().layers.RotAttentionPool2d(width, out_features=config.projection_dim)


class HFCLIPTimmModel(PreTrainedModel):
    """A trunk of timm as image tower: `pixel_values` (B, channels, rows, columns) to one embedding an image.

    `config.pooling` is the "class" token, the "average", "attention" (timm's "map"), "pooler", the trunk's own, or, of
    a map, "absolute_attention" or "rotary_attention"; `pooler_output` (B, pooled_size) is what timm gives for the
    image. `last_hidden_state` is (B, T, W), tokens or a map's positions in reading order; `hidden_states` are the
    stages' or blocks' maps, (B, C, H, V), where timm has `forward_intermediates` for the trunk. Attention weights stay
    within timm. What sizes of images fit is for the trunk to say (`backbone_kwargs={"img_size": ...}` or
    `"dynamic_img_size"`).

    Raises ImportError without timm, ValueError for an unknown trunk and where `hidden_size` is not its width.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    # timm chooses its attention. These flags let a dual encoder choose for its text tower.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.trunk = make_trunk(config)
        width = getattr(self.trunk, "head_hidden_size", self.trunk.num_features)
        if width != config.hidden_size:
            raise ValueError(
                f"`hidden_size={config.hidden_size}` is not the width of timm's {config.backbone}: "
                f"set `hidden_size={width}`."
            )
        self.pool = make_map_pool(config, self.trunk)
        self.is_made_on_meta = next(self.trunk.parameters()).is_meta
        self.has_class_token = getattr(self.trunk, "num_prefix_tokens", 0) > 0
        self._is_checkpointing = False
        self.post_init()

    @property
    def gradient_checkpointing(self) -> bool:
        return self._is_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, is_on: bool):
        self.trunk.set_grad_checkpointing(is_on)
        self._is_checkpointing = is_on

    def get_input_embeddings(self) -> nn.Module:
        return next(module for module in self.trunk.modules() if isinstance(module, nn.Conv2d | nn.Linear))

    @torch.no_grad()
    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        """timm draws a trunk's weights as it makes it. Made on the meta device it lost them, and its buffers too."""
        if module is not self or not self.is_made_on_meta:
            return
        missing = {
            name: tensor
            for name, tensor in _tensors(self.trunk, self.pool)
            if not tensor.is_meta and not getattr(tensor, "_is_hf_initialized", False)
        }
        if missing.keys() == self._computed_buffers():
            # All that is in no file, where all that is was loaded: a trunk of billions is not drawn for that.
            for module in self.modules():
                compute: Any = getattr(module, "init_non_persistent_buffers", None)
                if compute is not None:
                    compute()
        elif missing:
            drawn = make_trunk(self.config)
            values = dict(_tensors(drawn, make_map_pool(self.config, drawn)))
            for name, tensor in missing.items():
                init.copy_(tensor, values[name])

    def _computed_buffers(self) -> set[str]:
        """Names, as `_tensors` has them, of the buffers that timm computes from a module's shape alone."""
        return {
            f"{name}.{buffer}".removeprefix("trunk.")
            for name, module in self.named_modules()
            if hasattr(module, "init_non_persistent_buffers")
            for buffer in module._non_persistent_buffers_set
            if getattr(module, buffer) is not None
        }

    def set_image_size(self, image_size: int) -> None:
        """See `HFCLIPModel.set_image_size`: timm resamples (`set_input_size`), as for OpenCLIP's `force_image_size`.

        Raises:
            ValueError: for a trunk that timm makes for images of one size, or with other weights for other sizes.
        """
        if hasattr(self.trunk, "set_input_size"):
            options = {**(self.config.backbone_kwargs or {}), "img_size": image_size}
            self._require_size(image_size, options)
            self.trunk.set_input_size(img_size=(image_size, image_size))
            self.config.backbone_kwargs = options
        elif self.trunk.default_cfg.get("fixed_input_size"):
            raise ValueError(self._keeps_its_size(image_size))
        elif image_size < (least := max(stage["reduction"] for stage in getattr(self.trunk, "feature_info", [_ANY]))):
            raise ValueError(f"`image_size={image_size}` is below {least}, the least that this trunk takes.")
        self.config.image_size = image_size

    def _keeps_its_size(self, image_size: int) -> str:
        return f"`image_size={image_size}`: timm's {self.config.backbone} keeps its {self.config.image_size}."

    def _require_size(self, image_size: int, options: dict[str, Any]) -> None:
        """Raises ValueError unless a trunk made for the size has the shapes of one that is set to it."""
        config = copy.deepcopy(self.config)
        try:
            with torch.device("meta"), NothingDrawn():
                resized = make_trunk(config)
                resized.set_input_size(img_size=(image_size, image_size))
                config.backbone_kwargs = options
                made = make_trunk(config)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(self._keeps_its_size(image_size)) from error
        shapes = [{name: tensor.shape for name, tensor in _tensors(trunk)} for trunk in (resized, made)]
        if shapes[0] != shapes[1]:
            raise ValueError(self._keeps_its_size(image_size))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        known_arguments(self, kwargs, also=("interpolate_pos_encoding",))
        channels = (self.config.backbone_kwargs or {}).get("in_chans", self.config.num_channels)
        pixel_values = check_pixels(pixel_values, channels, next(self.trunk.parameters()).dtype)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = None
        if wants_states and hasattr(self.trunk, "forward_intermediates"):
            features, states = self.trunk.forward_intermediates(pixel_values)
        else:
            features = self.trunk.forward_features(pixel_values)
        pooled_BW = self.trunk.forward_head(features)
        if self.pool is not None:
            pooled_BW = self.pool(pooled_BW)
        if features.ndim == 4:
            is_channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            features = features.flatten(1, 2) if is_channels_last else features.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=pooled_BW,
            hidden_states=None if states is None else tuple(states),
        )


def _tensors(trunk: nn.Module, pool: nn.Module | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by their names in the trunk, those of the pooling behind it after `pool.`."""
    yield from (*trunk.named_parameters(), *trunk.named_buffers())
    if pool is not None:
        yield from (*pool.named_parameters(prefix="pool"), *pool.named_buffers(prefix="pool"))
