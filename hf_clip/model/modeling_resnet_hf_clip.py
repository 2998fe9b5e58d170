"""The paper's ResNet (Radford et al. 2021, section 2.4), as an image tower.

It differs from He et al.'s by a stem of three convolutions, strides that average before a convolution of stride 1
(against aliasing), and attention in the place of the last average.

Shape suffixes: B images, C channels, H and V rows and columns of a map, T = H * V positions as tokens, W width of
the last map.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import HFCLIPVisionConfig
from .modeling_inputs_hf_clip import check_pixels, known_arguments
from .modeling_layers_hf_clip import HFCLIPPreTrainedModel, with_init_std


def _convolution(width_in: int, width: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    padding = kernel_size // 2
    convolution = nn.Conv2d(width_in, width, kernel_size, stride=stride, padding=padding, bias=False)
    # What torch draws by itself, which is what the paper's code left it to.
    return with_init_std((3 * width_in * kernel_size**2) ** -0.5, convolution)


def _stem_width(config: HFCLIPVisionConfig) -> int:
    assert config.stem_width is not None, "the config of a ResNet was validated to have it"
    return config.stem_width


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms normalize by their batch, without counting it in their running statistics."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class HFCLIPResNetStem(nn.Module):
    """Three convolutions and an average: a quarter of the sides."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        width, eps = _stem_width(config), config.layer_norm_eps
        self.conv1 = _convolution(config.num_channels, width // 2, 3, stride=2)
        self.norm1 = nn.BatchNorm2d(width // 2, eps=eps)
        self.conv2 = _convolution(width // 2, width // 2, 3)
        self.norm2 = nn.BatchNorm2d(width // 2, eps=eps)
        self.conv3 = _convolution(width // 2, width, 3)
        self.norm3 = nn.BatchNorm2d(width, eps=eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        map_BCHV = F.relu(self.norm1(self.conv1(pixel_values)))
        map_BCHV = F.relu(self.norm2(self.conv2(map_BCHV)))
        return F.avg_pool2d(F.relu(self.norm3(self.conv3(map_BCHV))), 2)


class HFCLIPResNetLayer(GradientCheckpointingLayer):
    """A bottleneck: 1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut, which give four times `width` channels."""

    def __init__(self, config: HFCLIPVisionConfig, width_in: int, width: int, stride: int):
        super().__init__()
        eps, width_out = config.layer_norm_eps, 4 * width
        self.stride = stride
        self.conv1 = _convolution(width_in, width, 1)
        self.norm1 = nn.BatchNorm2d(width, eps=eps)
        self.conv2 = _convolution(width, width, 3)
        self.norm2 = nn.BatchNorm2d(width, eps=eps)
        self.conv3 = _convolution(width, width_out, 1)
        # A layer begins as its shortcut.
        self.norm3 = with_init_std(0.0, nn.BatchNorm2d(width_out, eps=eps))
        self.shortcut_conv = self.shortcut_norm = None
        if stride > 1 or width_in != width_out:
            self.shortcut_conv = _convolution(width_in, width_out, 1)
            self.shortcut_norm = nn.BatchNorm2d(width_out, eps=eps)
        self.is_recomputing = False

    def __call__(self, map_BCHV: torch.Tensor) -> torch.Tensor:
        if not (self.gradient_checkpointing and self.training):
            return super().__call__(map_BCHV)
        # The backward pass runs the layer again, past this method: its batch has been counted by then.
        self.is_recomputing = False
        try:
            return super().__call__(map_BCHV)
        finally:
            self.is_recomputing = True

    def forward(self, map_BCHV: torch.Tensor) -> torch.Tensor:
        is_again = self.is_recomputing and self.training and self.gradient_checkpointing
        with _running_statistics_kept(self) if is_again else nullcontext():
            bent_BCHV = F.relu(self.norm1(self.conv1(map_BCHV)))
            bent_BCHV = F.relu(self.norm2(self.conv2(bent_BCHV)))
            if self.stride > 1:
                bent_BCHV, map_BCHV = (F.avg_pool2d(each, self.stride) for each in (bent_BCHV, map_BCHV))
            if self.shortcut_conv is not None and self.shortcut_norm is not None:
                map_BCHV = self.shortcut_norm(self.shortcut_conv(map_BCHV))
            return F.relu(map_BCHV + self.norm3(self.conv3(bent_BCHV)))


class HFCLIPResNetPooling(nn.Module):
    """Attention of the map's mean to itself and to all positions; what comes out, heads side by side, is (B, W)."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.side = config.image_size // 32
        self.position_embedding = with_init_std(width**-0.5, nn.Embedding(self.side**2 + 1, width))
        self.position_ids = nn.Buffer(torch.arange(self.side**2 + 1)[None], persistent=False)
        self.q_proj = with_init_std(width**-0.5, nn.Linear(width, width))
        self.k_proj = with_init_std(width**-0.5, nn.Linear(width, width))
        self.v_proj = with_init_std(width**-0.5, nn.Linear(width, width))

    def initialize_own(self, factor: float):
        init.copy_(self.position_ids, torch.arange(self.side**2 + 1)[None])

    def set_image_size(self, image_size: int) -> None:
        """Learned positions of another map, bicubic and antialiased, as OpenCLIP resamples them."""
        side, width = image_size // 32, self.position_embedding.embedding_dim
        with torch.no_grad():
            positions_TW = self._positions(side, side, antialias=True)[0].clone()
        resized = with_init_std(width**-0.5, nn.Embedding.from_pretrained(positions_TW, freeze=False))
        resized.weight.requires_grad_(self.position_embedding.weight.requires_grad)
        self.position_embedding, self.side = resized, side
        self.position_ids = nn.Buffer(
            torch.arange(len(positions_TW), device=positions_TW.device)[None], persistent=False
        )

    def _positions(self, rows: int, columns: int, *, antialias: bool = False) -> torch.Tensor:
        """(1, 1 + rows * columns, W), those of another grid by bicubic interpolation."""
        positions_1TW = self.position_embedding(self.position_ids)
        if (rows, columns) == (self.side, self.side):
            return positions_1TW
        mean_11W, grid_1TW = positions_1TW.tensor_split([1], dim=1)
        grid_1WHV = grid_1TW.transpose(1, 2).unflatten(2, (self.side, self.side))
        # Half precision has no bicubic kernel on every device.
        resized_1WHV = F.interpolate(
            grid_1WHV.float(), size=(rows, columns), mode="bicubic", align_corners=False, antialias=antialias
        )
        return torch.cat([mean_11W, resized_1WHV.flatten(2).transpose(1, 2).to(grid_1TW.dtype)], dim=1)

    def forward(self, map_BWHV: torch.Tensor) -> torch.Tensor:
        tokens_BTW = map_BWHV.flatten(2).transpose(1, 2)
        tokens_BTW = torch.cat([tokens_BTW.mean(dim=1, keepdim=True), tokens_BTW], dim=1)
        tokens_BTW = tokens_BTW + self._positions(*map_BWHV.shape[2:])
        query, key, value = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(tokens_BTW[:, :1]), self.k_proj(tokens_BTW), self.v_proj(tokens_BTW))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1)

    def values(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the mean would get that attends to one position alone, for each: (B, rows, columns, W) in and out."""
        rows, columns = tokens.shape[1:3]
        return self.v_proj(tokens + self._positions(rows, columns)[:, 1:].unflatten(1, (rows, columns)))


class HFCLIPResNetModel(HFCLIPPreTrainedModel):
    """The ResNet image tower: `pixel_values` (B, channels, rows, columns) to one embedding an image.

    `last_hidden_state` is (B, T, W), the last map's positions in reading order (there is no class token).
    `pooler_output` is (B, W), the attention-pooled embedding before its output projection: that is the dual encoder's
    `visual_projection`, which has a bias here. `hidden_states` are the stem's map and those after each layer,
    (B, C, H, V). Raises ValueError for images of another size, unless `interpolate_pos_encoding=True`, and then for
    images smaller than the stride of 32.

    Batch norm is the paper's. In training it takes its statistics from the batch of one rank, so several ranks give
    other gradients than one process with the whole batch, and so do batches that are encoded in parts; torch's
    `SyncBatchNorm.convert_sync_batchnorm` fixes the first on accelerators. Recomputing for gradient checkpointing
    leaves the running statistics alone.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _no_split_modules = ["HFCLIPResNetStem", "HFCLIPResNetLayer", "HFCLIPResNetPooling"]
    _can_record_outputs = {"hidden_states": HFCLIPResNetLayer}

    has_class_token = False

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.stem = HFCLIPResNetStem(config)
        self.stages = nn.ModuleList()
        width_in = stem_width = _stem_width(config)
        for index, depth in enumerate(config.stage_depths or ()):
            width, stage = stem_width * 2**index, nn.ModuleList()
            for layer in range(depth):
                stage.append(HFCLIPResNetLayer(config, width_in, width, stride=2 if index and not layer else 1))
                width_in = 4 * width
            self.stages.append(stage)
        self.head = HFCLIPResNetPooling(config)
        self.post_init()

    def set_image_size(self, image_size: int) -> None:
        """See `HFCLIPModel.set_image_size`."""
        self.head.set_image_size(image_size)
        self.config.image_size = image_size

    def get_input_embeddings(self) -> nn.Module:
        return self.stem.conv1

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        known_arguments(self, kwargs)
        pixel_values = check_pixels(pixel_values, self.config.num_channels, self.stem.conv1.weight.dtype)
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"Images of {height} x {width} pixels do not fit the model's {size} x {size}: resize them (the "
                "processor does so), or pass `interpolate_pos_encoding=True`."
            )
        if height < 32 or width < 32:
            raise ValueError(
                f"Images of {height} x {width} pixels are smaller than the ResNet's stride of 32: enlarge them."
            )
        map_BCHV = self.stem(pixel_values)
        for stage in self.stages:
            for layer in stage.children():
                map_BCHV = layer(map_BCHV)
        return BaseModelOutputWithPooling(
            last_hidden_state=map_BCHV.flatten(2).transpose(1, 2), pooler_output=self.head(map_BCHV)
        )
