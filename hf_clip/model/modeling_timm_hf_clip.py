"""Image towers from timm. timm, which imports torchvision, is imported only when one is made.

Shape suffixes: B images, C channels, H and V rows and columns of a map, T tokens, W width of the tower.
"""

import difflib
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_hf_clip import HFCLIPVisionConfig
from .modeling_inputs_hf_clip import check_pixels, known_arguments

# timm's names for the poolings of a config; "pooler" leaves the trunk its own.
GLOBAL_POOLS = {"class": "token", "average": "avg", "attention": "map"}


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


class HFCLIPTimmModel(PreTrainedModel):
    """A trunk of timm as image tower: `pixel_values` (B, channels, rows, columns) to one embedding an image.

    `config.pooling` is the "class" token, the "average", "attention" (timm's "map") or "pooler", the trunk's own;
    `pooler_output` (B, pooled_size) is what timm gives for the image. `last_hidden_state` is (B, T, W), tokens or a
    map's positions in reading order; `hidden_states` are the stages' or blocks' maps, (B, C, H, V), where timm has
    `forward_intermediates` for the trunk. Attention weights stay within timm. What sizes of images fit is for the
    trunk to say (`backbone_kwargs={"img_size": ...}` or `"dynamic_img_size"`).

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
            for name, tensor in (*self.trunk.named_parameters(), *self.trunk.named_buffers())
            if not tensor.is_meta and not getattr(tensor, "_is_hf_initialized", False)
        }
        if missing:
            drawn = make_trunk(self.config)
            values = dict((*drawn.named_parameters(), *drawn.named_buffers()))
            for name, tensor in missing.items():
                init.copy_(tensor, values[name])

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
        if features.ndim == 4:
            is_channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            features = features.flatten(1, 2) if is_channels_last else features.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=pooled_BW,
            hidden_states=None if states is None else tuple(states),
        )
