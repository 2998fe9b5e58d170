"""Embeddings of an image's positions in the shared space, by the towers as they were trained: nothing is learned here.

The last layer of a vision transformer mixes its tokens so that the class token serves; changed as the training-free
literature has it, each token says what stands at its own place.

Shape suffixes: B images, C channels, T tokens, W width of the tower, R and K rows and columns of positions, M = R * K
positions, H heads, E width of a head, D dimensions of the shared space.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .modeling_inputs_hf_clip import check_patches
from .modeling_layers_hf_clip import HFCLIPEncoderLayer, as_autocast, unit_embeddings
from .modeling_naflex_hf_clip import HFCLIPNaFlexModel
from .modeling_resnet_hf_clip import HFCLIPResNetModel
from .modeling_vit_hf_clip import HFCLIPVisionModel

# By what tokens of the last layer attend to those that are alike; nothing: each to itself alone.
_ALIKE_BY = {"query-key": ("q_proj", "k_proj"), "value": (), "query": ("q_proj",), "neighbors": ("k_proj",)}
ATTENTIONS = ("plain", *_ALIKE_BY)
DENSE_TOWERS = (HFCLIPVisionModel, HFCLIPNaFlexModel, HFCLIPResNetModel)
# NACLIP's standard deviation, in patches (Hajimiri et al. 2024, section 4).
NEIGHBORHOOD = 5.0
# Of towers without positions to embed: a window's side and its step, in parts of the model's image.
WINDOW_PARTS, STEP_PARTS = 2, 8
WINDOWS_AT_ONCE = 64


def dense_features(
    model: Any,
    pixel_values: torch.Tensor,
    attention: str,
    normalize: bool,
    pixel_attention_mask: torch.Tensor | None = None,
    spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
) -> torch.Tensor:
    """(B, rows, columns, D), as `HFCLIPModel.dense_image_features` describes it."""
    if attention not in ATTENTIONS:
        raise ValueError(f"`attention={attention!r}` is not known: use one of {', '.join(map(repr, ATTENTIONS))}.")
    tower = model.vision_model
    if isinstance(tower, HFCLIPVisionModel):
        features_BRKD = model.visual_projection(_of_vit(tower, pixel_values, attention))
    elif isinstance(tower, HFCLIPNaFlexModel):
        pooled_BRKW = _of_naflex(tower, pixel_values, pixel_attention_mask, spatial_shapes)
        features_BRKD = model.visual_projection(pooled_BRKW)
    elif isinstance(tower, HFCLIPResNetModel):
        features_BRKD = model.visual_projection(_of_resnet(tower, pixel_values))
    else:
        features_BRKD = _of_windows(model, pixel_values)
    return unit_embeddings(features_BRKD).to(features_BRKD.dtype) if normalize else features_BRKD


def _of_vit(tower: HFCLIPVisionModel, pixel_values: torch.Tensor, attention: str) -> torch.Tensor:
    """(B, R, K, W) before the projection."""
    config: Any = tower.config
    if tower.training and config.patch_dropout:
        raise ValueError(
            f"`patch_dropout={config.patch_dropout}` drops patches in training, and every position is asked for: "
            "call model.eval() first."
        )
    tokens_BTW = tower.pre_layrnorm(tower.embeddings(pixel_values, interpolate_pos_encoding=True))
    grid = pixel_values.shape[-2] // config.patch_size, pixel_values.shape[-1] // config.patch_size
    *layers, last = tower.encoder.layers
    for layer in layers:
        tokens_BTW = layer(tokens_BTW)
    first = int(tower.has_class_token)
    if tower.head is None:
        tokens_BMW = tower.post_layernorm(_changed(last, tokens_BTW, attention, grid, first)[:, first:])
    else:
        # What mixes tokens here, as the class token's attention does elsewhere, is the head.
        tokens_BMW = last(tokens_BTW)[:, first:]
        if config.norm_before_pooling:
            tokens_BMW = tower.head.values(tower.post_layernorm(tokens_BMW))
        else:
            tokens_BMW = tower.post_layernorm(tower.head.values(tokens_BMW))
    return tokens_BMW.unflatten(1, grid)


def _changed(
    layer: HFCLIPEncoderLayer | Any, tokens_BTW: torch.Tensor, attention: str, grid: tuple[int, int], first: int
) -> torch.Tensor:
    """What the last layer gives, attending otherwise: (B, T, W)."""
    if attention == "plain":
        return layer(tokens_BTW)
    own = layer.self_attn
    normed_BTW = as_autocast(layer.layer_norm1(tokens_BTW))
    value_BHTE = own.by_head(own.v_proj(normed_BTW))
    bias_TT = _nearness(grid, first, value_BHTE) if attention == "neighbors" else None
    mixed = []
    for name in _ALIKE_BY[attention]:
        projection = getattr(own, name)
        alike_BHTE = own.by_head(projection(normed_BTW))
        mixed.append(
            F.scaled_dot_product_attention(alike_BHTE, alike_BHTE, value_BHTE, attn_mask=bias_TT, scale=own.scaling)
        )
    mixed_BHTE = sum(mixed[1:], mixed[0]) if mixed else value_BHTE
    attended_BTW = layer.layer_scale1(own.out_proj(mixed_BHTE.transpose(1, 2).flatten(2)))
    if attention != "query-key":
        return attended_BTW
    tokens_BTW = tokens_BTW + attended_BTW
    return tokens_BTW + layer.layer_scale2(layer.mlp(layer.layer_norm2(tokens_BTW)))


def _nearness(grid: tuple[int, int], first: int, like: torch.Tensor) -> torch.Tensor:
    """(T, T), exp(-d^2 / (2 * 5^2)) by the distance on the grid; 0 in the row and the column of a class token."""
    rows_M, columns_M = torch.meshgrid(*(torch.arange(length, device=like.device) for length in grid), indexing="ij")
    places_M2 = torch.stack([rows_M, columns_M], dim=-1).flatten(0, 1).float()
    squared_MM = (places_M2[:, None] - places_M2[None]).square().sum(dim=-1)
    return F.pad((-squared_MM / (2 * NEIGHBORHOOD**2)).exp(), (first, 0, first, 0)).to(like.dtype)


def _of_naflex(
    tower: HFCLIPNaFlexModel,
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None,
    spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None,
) -> torch.Tensor:
    """(B, R, K, W), by the head's value path."""
    weight = tower.embeddings.patch_embedding.weight
    shapes = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, weight.shape[1])
    if len(set(shapes)) > 1:
        one, other, *_ = sorted(set(shapes))
        raise ValueError(
            f"`spatial_shapes` has {one[0]} x {one[1]} and {other[0]} x {other[1]} patches, and one grid is returned: "
            "pass images of one shape at a time."
        )
    rows, columns = shapes[0]
    tokens_BMW = tower.embeddings(pixel_values[:, : rows * columns].to(weight.dtype), shapes)
    tokens_BMW = tower.post_layernorm(tower.encoder(tokens_BMW))
    return tower.head.values(tokens_BMW).unflatten(1, (rows, columns))


def _of_resnet(tower: HFCLIPResNetModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, R, K, W), by the attention pool's value path."""
    # The stem's first convolution rounds up, and each of the four averages behind it rounds down.
    rows, columns = ((length + 1) // 2 // 16 for length in pixel_values.shape[-2:])
    tokens_BMW = tower(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    assert tokens_BMW is not None
    return tower.head.values(tokens_BMW.unflatten(1, (rows, columns)))


def _of_windows(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, R, K, D): each position's is the embedding of a window around it, half as long as the model's image.

    What lies beyond the image's edges repeats them.
    """
    size = model.config.vision_config.image_size
    step = max(size // STEP_PARTS, 1)
    side = step * STEP_PARTS // WINDOW_PARTS
    if min(pixel_values.shape[-2:]) < step:
        raise ValueError(
            f"Images of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels are smaller than a window's step "
            f"of {step}: enlarge them."
        )
    before, after = (side - step) // 2, side - step - (side - step) // 2
    padded_BCRK = F.pad(pixel_values, (before, after, before, after), mode="replicate")
    windows = padded_BCRK.unfold(2, side, step).unfold(3, side, step)
    batch, channels, rows, columns = windows.shape[:4]
    windows = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, side, side)
    found = []
    for part in windows.split(WINDOWS_AT_ONCE):
        # Half precision has no kernel for it on every device.
        enlarged = F.interpolate(part.float(), size=(size, size), mode="bilinear", align_corners=False)
        found.append(model.encode_image(enlarged, normalize=False))
    return torch.cat(found).unflatten(0, (batch, rows, columns))
