"""An image tower of plain 3 x 3 convolutions, for small images and small budgets.

Shape suffixes: B images, C channels, H and W rows and columns of positions, T = H * W positions as tokens, G rows
and columns of the pooling grid.

There is no batch norm: statistics of a batch would make several ranks differ from one, and cached gradients from
plain ones. Each layer normalizes small groups of channels over the whole image instead (Wu and He 2018):
mean and variance of a channel over an image are much of its drawing style, and style is what should not count.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import HFCLIPVisionConfig
from .modeling_inputs_hf_clip import check_pixels, known_arguments


class HFCLIPConvNetLayer(GradientCheckpointingLayer):
    """A 3 x 3 convolution, its map halved by maxima where it opens a stage, a norm and the activation.

    A maximum over 2 x 2 positions, unlike a stride, lets a line that moved a little go unnoticed.
    """

    def __init__(self, config: HFCLIPVisionConfig, width_in: int, width: int, opens_stage: bool):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(width // config.norm_group_size, width, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.opens_stage = opens_stage

    def forward(self, map_BCHW: torch.Tensor) -> torch.Tensor:
        map_BCHW = self.conv(map_BCHW)
        if self.opens_stage:
            map_BCHW = F.max_pool2d(map_BCHW, 2)
        return self.activation(self.norm(map_BCHW))


class HFCLIPConvNetModel(PreTrainedModel):
    """The convolutional image tower: `pixel_values` (B, channels, rows, columns) to one embedding an image.

    `last_hidden_state` is (B, T, hidden_size), the last map's positions in reading order (there is no class token);
    `pooler_output` is (B, pooled_size), their means over a grid, normalized. `hidden_states` are the stem's map and
    those after each layer, (B, C, H, W). Raises ValueError for images of another size, unless
    `interpolate_pos_encoding=True` (the other towers' word: here are no positions to interpolate), and then for sizes
    that are no multiples of the stride.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    # There is no attention to choose. These flags let a dual encoder choose for its text tower.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["HFCLIPConvNetLayer"]
    _can_record_outputs = {"hidden_states": HFCLIPConvNetLayer}

    has_class_token = False

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        assert config.stem_width is not None, "the config of a convnet was validated to have it"
        self.stem = nn.Conv2d(config.num_channels, config.stem_width, kernel_size=3, stride=2, padding=1)
        self.activation = ACT2FN[config.hidden_act]
        layers, width_in = [], config.stem_width
        for width, depth in zip(config.stage_widths or (), config.stage_depths or (), strict=True):
            for index in range(depth):
                layers.append(HFCLIPConvNetLayer(config, width_in, width, opens_stage=index == 0))
                width_in = width
        self.layers = nn.ModuleList(layers)
        self.post_layernorm = nn.LayerNorm(config.pooled_size, eps=config.layer_norm_eps)
        self.post_init()

    def set_image_size(self, image_size: int) -> None:
        """See `HFCLIPModel.set_image_size`. There are no positions to resample."""
        self.config.image_size = image_size

    def get_input_embeddings(self) -> nn.Module:
        return self.stem

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and module.weight is not None:
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            init.trunc_normal_(module.weight, std=self.config.initializer_factor * (2 / fan_in) ** 0.5)
            if module.bias is not None:
                init.zeros_(module.bias)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        known_arguments(self, kwargs)
        pixel_values = check_pixels(pixel_values, self.config.num_channels, self.stem.weight.dtype)
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"Images of {height} x {width} pixels do not fit the model's {size} x {size}: resize them (the "
                "processor does so), or pass `interpolate_pos_encoding=True`."
            )
        if height % self.config.stride or width % self.config.stride:
            raise ValueError(
                f"Images of {height} x {width} do not fit the convnet's stride of {self.config.stride}: "
                f"make both sides multiples of {self.config.stride}."
            )
        map_BCHW = self.activation(self.stem(pixel_values))
        for layer in self.layers:
            map_BCHW = layer(map_BCHW)
        pooled_BCGG = F.adaptive_avg_pool2d(map_BCHW, self.config.pool_grid)
        return BaseModelOutputWithPooling(
            last_hidden_state=map_BCHW.flatten(2).transpose(1, 2),
            pooler_output=self.post_layernorm(pooled_BCGG.flatten(1)),
        )
