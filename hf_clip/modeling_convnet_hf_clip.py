"""An image tower of plain 3 x 3 convolutions, for small pictures and small budgets.

Shape suffixes: B pictures, C channels, H and W rows and columns of positions, T = H * W positions as tokens, G rows
and columns of the pooling grid.

There is no batch norm: statistics of a batch would make several ranks differ from one, and cached gradients from
plain ones. Each residual block normalises small groups of channels over the whole picture instead (Wu and He 2018):
mean and variance of a channel over a picture are much of its drawing style, and style is what should not count.
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


def _norm(config: HFCLIPVisionConfig, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // config.norm_group_size, width, eps=config.layer_norm_eps)


class HFCLIPConvNetStem(nn.Module):
    """Pixels to the first stage's channels at a quarter of the sides, in two strided convolutions."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(config.num_channels, config.stem_width, kernel_size=4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(config.stem_width, config.stage_widths[0], kernel_size=3, stride=2, padding=1)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.activation(self.conv1(pixel_values)))


class HFCLIPConvNetBlock(GradientCheckpointingLayer):
    """Two 3 x 3 convolutions on a normalised copy, added to what came in."""

    def __init__(self, config: HFCLIPVisionConfig, width: int):
        super().__init__()
        self.norm = _norm(config, width)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        # Every block adds to one stream: scaled so, all blocks together add about what it began with.
        self.conv2.initial_gain = (2 * sum(config.stage_depths)) ** -0.5
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, map_BCHW: torch.Tensor) -> torch.Tensor:
        return map_BCHW + self.conv2(self.activation(self.conv1(self.norm(map_BCHW))))


class HFCLIPConvNetDownsample(nn.Module):
    """Halves the sides between two stages."""

    def __init__(self, config: HFCLIPVisionConfig, width: int, next_width: int):
        super().__init__()
        self.norm = _norm(config, width)
        self.conv = nn.Conv2d(width, next_width, kernel_size=3, stride=2, padding=1)

    def forward(self, map_BCHW: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(map_BCHW))


class HFCLIPConvNetModel(PreTrainedModel):
    """The convolutional image tower: `pixel_values` (B, channels, rows, columns) to one vector a picture.

    `last_hidden_state` is (B, T, hidden_size), the last map's positions in reading order (there is no class token);
    `pooler_output` is (B, pooled_size), their means over a grid, normalised. `hidden_states` are the maps after each
    block, (B, C, H, W). Any size of picture fits that is a multiple of the stride; `interpolate_pos_encoding` is taken
    for the other towers' sake, as there are no positions to interpolate. Raises ValueError for sizes that do not fit.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # There is no attention to choose; saying so lets a dual encoder choose for its text tower.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["HFCLIPConvNetBlock", "HFCLIPConvNetStem", "HFCLIPConvNetDownsample"]
    _can_record_outputs = {"hidden_states": HFCLIPConvNetBlock}

    has_class_token = False

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.stem = HFCLIPConvNetStem(config)
        layers = []
        for stage, (width, depth) in enumerate(zip(config.stage_widths, config.stage_depths, strict=True)):
            if stage > 0:
                layers.append(HFCLIPConvNetDownsample(config, config.stage_widths[stage - 1], width))
            layers.extend(HFCLIPConvNetBlock(config, width) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_layernorm = nn.LayerNorm(config.pooled_size, eps=config.layer_norm_eps)
        self.stride = 4 * 2 ** (len(config.stage_widths) - 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stem.conv1

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and module.weight is not None:
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            gain = getattr(module, "initial_gain", 1.0) * self.config.initializer_factor
            init.trunc_normal_(module.weight, std=gain * (2 / fan_in) ** 0.5)
            init.zeros_(module.bias)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        height, width = pixel_values.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"Pictures of {height} x {width} do not fit the convnet's stride of {self.stride}: "
                f"make both sides multiples of {self.stride}."
            )
        map_BCHW = self.stem(pixel_values.to(self.stem.conv1.weight.dtype))
        for layer in self.layers:
            map_BCHW = layer(map_BCHW)
        tokens_BTC = self.norm(map_BCHW.flatten(2).transpose(1, 2))
        map_BCHW = tokens_BTC.transpose(1, 2).unflatten(2, map_BCHW.shape[2:])
        pooled_BCGG = F.adaptive_avg_pool2d(map_BCHW, self.config.pool_grid)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens_BTC,
            pooler_output=self.post_layernorm(pooled_BCGG.flatten(1)),
        )
