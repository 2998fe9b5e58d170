"""SigLIP 2's NaFlex: the vision transformer for images of any aspect (Tschannen et al. 2025, section 2.4.2).

Shape suffixes: B images, T patches of the batch's longest image, N patches that an image is padded to, P numbers of a
patch, W width of the tower, H and V rows and columns of patches.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import HFCLIPVisionConfig
from .modeling_inputs_hf_clip import check_patches, known_arguments
from .modeling_layers_hf_clip import HFCLIPEncoder, HFCLIPPreTrainedModel, with_init_std
from .modeling_vit_hf_clip import HFCLIPPoolingHead


class HFCLIPNaFlexEmbeddings(nn.Module):
    """Patches as tokens, with learned positions resampled to each image's rows and columns."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, width)
        self.patch_embedding = with_init_std(config.initializer_range, patch_embedding)
        self.position_embedding = with_init_std(width**-0.5, nn.Embedding(config.num_patches or 0, width))

    def _positions(self, rows: int, columns: int, length: int) -> torch.Tensor:
        """Positions of one shape (bilinear, antialiased), with zeros behind them: (length, W)."""
        learned_MW = self.position_embedding.weight
        side = math.isqrt(len(learned_MW))
        # Half precision has no antialiased kernel on every device.
        grid_1WHV = learned_MW.float().T.reshape(1, -1, side, side)
        resized_1WHV = F.interpolate(
            grid_1WHV, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True
        )
        resized_MW = resized_1WHV.flatten(2)[0].T.to(learned_MW.dtype)
        return F.pad(resized_MW, (0, 0, 0, length - rows * columns))

    def forward(self, pixel_values: torch.Tensor, shapes: list[tuple[int, int]]) -> torch.Tensor:
        length = pixel_values.shape[1]
        by_shape = {shape: self._positions(*shape, length) for shape in dict.fromkeys(shapes)}
        return self.patch_embedding(pixel_values) + torch.stack([by_shape[shape] for shape in shapes])


class HFCLIPNaFlexModel(HFCLIPPreTrainedModel):
    """NaFlex's vision transformer: patches of images of unlike shapes to one embedding an image.

    `pooler_output` (B, W) is SigLIP's attention pooling of an image's own patches; `last_hidden_state` (B, T, W) is
    behind the last norm. T are the patches of the batch's longest image: patches that are padding in every image are
    dropped before anything is computed, and those that remain are never attended to, so that an image's embedding
    does not depend on its batch.

    The forward takes what the image processor gives: `pixel_values` (B, N, P); `spatial_shapes` (B, 2), rows and
    columns of each image's patches, of which numbers do as well as a tensor; `pixel_attention_mask` (B, N), 1 for
    patches and 0 for padding, which is known from the shapes where it is None. Raises ValueError where these do not
    fit together, or the model.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    has_class_token = False

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = HFCLIPNaFlexEmbeddings(config)
        self.encoder = HFCLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = HFCLIPPoolingHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def set_image_size(self, image_size: int) -> None:
        """See `HFCLIPModel.set_image_size`. No weight changes: positions are resampled for every image."""
        self.config.image_size = image_size

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        # Positions are always interpolated, whether or not a caller asks for it.
        kwargs = known_arguments(self, kwargs)
        weight = self.embeddings.patch_embedding.weight
        shapes = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, weight.shape[1])
        longest = max(rows * columns for rows, columns in shapes)
        pixel_values = pixel_values[:, :longest].to(weight.dtype)
        mask_BT = patch_mask(shapes, pixel_attention_mask, pixel_values.device)
        tokens_BTW = self.embeddings(pixel_values, shapes)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=tokens_BTW, attention_mask=mask_BT
        )
        tokens_BTW = self.post_layernorm(self.encoder(tokens_BTW, attention_mask, **kwargs))
        return BaseModelOutputWithPooling(last_hidden_state=tokens_BTW, pooler_output=self.head(tokens_BTW, mask_BT))


def patch_mask(
    shapes: list[tuple[int, int]], pixel_attention_mask: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Which patches are none of padding, (B, T) bool; None where all are: the fastest kernels take no mask.

    Args:
        shapes: rows and columns of patches of each image.
        pixel_attention_mask: (B, N) of the caller, or None.
    """
    counts = [rows * columns for rows, columns in shapes]
    if pixel_attention_mask is not None:
        mask_BT = pixel_attention_mask[:, : max(counts)].to(device).bool()
        return None if mask_BT.all() else mask_BT
    if min(counts) == max(counts):
        return None
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]
