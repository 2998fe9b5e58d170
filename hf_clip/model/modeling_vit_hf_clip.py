"""The vision transformer.

Shape suffixes: B images, T tokens, W width of the tower, M patches, H and V rows and columns of patches.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import HFCLIPVisionConfig
from .modeling_coca_layers_hf_clip import HFCLIPQueryPooling
from .modeling_inputs_hf_clip import check_pixels, known_arguments
from .modeling_layers_hf_clip import (
    HFCLIPMLP,
    HFCLIPEncoder,
    HFCLIPPreTrainedModel,
    OneToken,
    as_autocast,
    may_compute_one_token,
    with_init_std,
)
from .modeling_products_hf_clip import patch_product


class HFCLIPVisionEmbeddings(nn.Module):
    """Patches as tokens, after a class token where there is one, with learned positions."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width)) if config.has_class_token else None
        patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=config.patch_bias)
        self.patch_embedding = with_init_std(config.initializer_range, patch_embedding)
        self.num_positions = (config.image_size // patch) ** 2 + config.has_class_token
        self.position_embedding = with_init_std(width**-0.5, nn.Embedding(self.num_positions, width))
        self.position_ids = nn.Buffer(torch.arange(self.num_positions)[None], persistent=False)

    def initialize_own(self, factor: float):
        if self.class_embedding is not None:
            init.normal_(self.class_embedding, std=self.config.hidden_size**-0.5 * factor)
        init.copy_(self.position_ids, torch.arange(self.num_positions)[None])

    def set_image_size(self, image_size: int) -> None:
        """Learned positions of another grid, bicubic and antialiased, as OpenCLIP resamples them."""
        side, width = image_size // self.config.patch_size, self.config.hidden_size
        with torch.no_grad():
            positions_TW = self._interpolated_positions(side, side, antialias=True)[0]
        resized = with_init_std(width**-0.5, nn.Embedding.from_pretrained(positions_TW, freeze=False))
        resized.weight.requires_grad_(self.position_embedding.weight.requires_grad)
        self.position_embedding, self.num_positions = resized, len(positions_TW)
        self.config.image_size = image_size
        self.position_ids = nn.Buffer(
            torch.arange(len(positions_TW), device=positions_TW.device)[None], persistent=False
        )

    def _interpolated_positions(self, rows: int, columns: int, *, antialias: bool = False) -> torch.Tensor:
        """Positions of another grid of patches, by bicubic interpolation, after the class token's: (1, T, W)."""
        first = int(self.config.has_class_token)
        class_W, grid_MW = self.position_embedding(self.position_ids)[0].tensor_split([first])
        side = self.config.image_size // self.config.patch_size
        grid_1WHV = grid_MW.T.reshape(1, -1, side, side)
        # Half precision has no bicubic kernel on every device.
        resized_1WHV = F.interpolate(
            grid_1WHV.float(), size=(rows, columns), mode="bicubic", align_corners=False, antialias=antialias
        )
        resized_MW = resized_1WHV.flatten(2)[0].T.to(grid_MW.dtype)
        return torch.cat([class_W, resized_MW])[None]

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        pixel_values = check_pixels(pixel_values, self.config.num_channels, self.patch_embedding.weight.dtype)
        height, width = pixel_values.shape[-2:]
        size, patch = self.config.image_size, self.config.patch_size
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"Images of {height} x {width} pixels do not fit the model's {size} x {size}: resize them (the "
                "processor does so), or pass `interpolate_pos_encoding=True`."
            )
        if height < patch or width < patch:
            raise ValueError(
                f"Images of {height} x {width} pixels are smaller than one patch of {patch} x {patch}: enlarge them."
            )
        patches_BMW = patch_product(self.patch_embedding, as_autocast(pixel_values))
        tokens_BTW = patches_BMW
        if self.class_embedding is not None:
            # Here and below not len(): torch.export would take it for a constant.
            class_B1W = self.class_embedding.expand(pixel_values.shape[0], 1, -1).to(patches_BMW.dtype)
            tokens_BTW = torch.cat([class_B1W, patches_BMW], dim=1)
        if (height, width) == (size, size):
            tokens_BTW = tokens_BTW + self.position_embedding(self.position_ids)
        else:
            tokens_BTW = tokens_BTW + self._interpolated_positions(height // patch, width // patch)
        return self._without_dropped_patches(tokens_BTW)

    def _without_dropped_patches(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """In training, a random fraction of each image's patches, after the class token (Li et al. 2022)."""
        if not self.training or self.config.patch_dropout == 0:
            return tokens_BTW
        first = int(self.config.has_class_token)
        class_BTW, patches_BMW = tokens_BTW.tensor_split([first], dim=1)
        count, total, width = patches_BMW.shape
        kept = max(1, int(total * (1 - self.config.patch_dropout)))
        order_BM = torch.rand(count, total, device=tokens_BTW.device).topk(kept, dim=1).indices
        patches_BMW = patches_BMW.gather(1, order_BM[..., None].expand(-1, -1, width))
        return torch.cat([class_BTW, patches_BMW], dim=1)


class HFCLIPPoolingProbe(nn.Module):
    """Attention of one learned query to all tokens.

    The weights of queries, keys and values lie in one parameter, as on disk: SiglipModel has them in torch's
    `MultiheadAttention`, whose inner projection offloading can't reach.
    """

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = with_init_std(width**-0.5, nn.Linear(width, width))

    def initialize_own(self, factor: float):
        init.normal_(self.in_proj_weight, std=self.in_proj_weight.shape[1] ** -0.5 * factor)
        init.zeros_(self.in_proj_bias)

    def forward(
        self, probe_B1W: torch.Tensor, tokens_BTW: torch.Tensor, mask_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        of_query, of_key, of_value = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (
            F.linear(rows, *weights).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for rows, weights in ((probe_B1W, of_query), (tokens_BTW, of_key), (tokens_BTW, of_value))
        )
        mask_B11T = None if mask_BT is None else mask_BT[:, None, None]
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11T)
        return self.out_proj(pooled.transpose(1, 2).flatten(2))

    def values(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, W): what the query would get that attends to one token alone, for each token."""
        return self.out_proj(F.linear(tokens, self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]))


class HFCLIPPoolingHead(nn.Module):
    """SigLIP's pooling (Zhai et al. 2022, section 3.4): a learned query's attention, then a residual MLP.

    The mask is True for the tokens that are attended to; None: all are.
    """

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = HFCLIPPoolingProbe(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = HFCLIPMLP(config)

    def initialize_own(self, factor: float):
        init.normal_(self.probe, std=self.probe.shape[-1] ** -0.5 * factor)

    def forward(self, tokens_BTW: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        pooled_B1W = self.attention(self.probe.expand(tokens_BTW.shape[0], 1, -1), tokens_BTW, mask_BT)
        return (pooled_B1W + self.mlp(self.layernorm(pooled_B1W)))[:, 0]

    def values(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, W): what an image of one token would give, for each token."""
        values_BTW = self.attention.values(tokens)
        return values_BTW + self.mlp(self.layernorm(values_BTW))


class HFCLIPVisionModel(HFCLIPPreTrainedModel):
    """The vision transformer: `pixel_values` (B, channels, rows, columns) to one embedding an image.

    `pooler_output` (B, W) is, as the paper has it, the class token after the last norm, or what `config.pooling` and
    `config.norm_before_pooling` make of the tokens. `last_hidden_state` is what is pooled: behind the last norm only
    if that comes before pooling. With `pooling="queries"` it is what the queries see, (B, queries, W), and the first
    of them is the embedding. In training, each image keeps `1 - config.patch_dropout` of its patches, drawn from
    torch's generator of the device. With `pooled_only=True`, `last_hidden_state` may be None: where the class token is
    pooled, the last layer computes no other. Raises ValueError for images of another size, unless
    `interpolate_pos_encoding=True`.
    """

    has_pooled_only = True

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = HFCLIPVisionEmbeddings(config)
        self.has_class_token = config.has_class_token
        width, eps = config.hidden_size, config.layer_norm_eps
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps) if config.has_pre_norm else nn.Identity()
        self.encoder = HFCLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.pooled_size, eps=eps)
        heads = {"attention": HFCLIPPoolingHead, "queries": HFCLIPQueryPooling}
        self.head = heads[config.pooling](config) if config.pooling in heads else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def set_image_size(self, image_size: int) -> None:
        """See `HFCLIPModel.set_image_size`."""
        self.embeddings.set_image_size(image_size)
        self.config.image_size = image_size

    def _pool(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """One embedding an image, (B, W)."""
        if self.head is not None:
            return self.head(tokens_BTW)
        if self.config.pooling == "class":
            return tokens_BTW[:, 0]
        return tokens_BTW[:, int(self.has_class_token) :].mean(dim=1)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pooled_only: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        kwargs = known_arguments(self, kwargs)
        tokens_BTW = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        one_token = None
        if (
            pooled_only
            and self.config.pooling == "class"
            and may_compute_one_token(self, self.encoder.layers[-1], kwargs)
        ):
            one_token = OneToken(0)
        tokens_BTW = self.encoder(tokens_BTW, one_token=one_token, **kwargs)
        if isinstance(self.head, HFCLIPQueryPooling):
            tokens_BQW = self.post_layernorm(self.head(tokens_BTW, 1 if pooled_only else None))
            tokens = None if pooled_only else tokens_BQW
            return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens_BQW[:, 0])
        if self.config.norm_before_pooling:
            tokens_BTW = self.post_layernorm(tokens_BTW)
            pooled_BW = self._pool(tokens_BTW)
        else:
            pooled_BW = self.post_layernorm(self._pool(tokens_BTW))
        tokens = tokens_BTW if one_token is None else None
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled_BW)
