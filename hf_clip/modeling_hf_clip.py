"""The dual encoder of the paper, with its vision transformer and its causal text transformer.

Shape suffixes: B pictures or texts, T tokens, W width of a tower, D dimensions of the shared space, M patches,
H and V rows and columns of patches.

The state dict has transformers' own names for CLIP (misspelt `pre_layrnorm` and all), so that their checkpoints
load here, and ours there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .loss_hf_clip import contrastive_loss
from .modeling_convnet_hf_clip import HFCLIPConvNetModel


@dataclass
class HFCLIPOutput(ModelOutput):
    """What `HFCLIPModel` returns, with the fields of transformers' `CLIPOutput`.

    Args:
        loss: scalar, where `return_loss=True` asked for it.
        logits_per_image: (pictures, texts), the scaled cosines.
        logits_per_text: (texts, pictures), its transpose.
        text_embeds, image_embeds: (B, D) unit vectors.
        text_model_output, vision_model_output: the towers' outputs; `pooler_output` is the projected vector.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class HFCLIPVisionModelOutput(ModelOutput):
    """`image_embeds` (B, D) are projected but not normalised, as in transformers' `CLIPVisionModelOutput`."""

    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HFCLIPTextModelOutput(ModelOutput):
    """`text_embeds` (B, D) are projected but not normalised, as in transformers' `CLIPTextModelOutput`."""

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def _require(condition: torch.Tensor, message: str) -> None:
    """Raises ValueError unless `condition` (a boolean scalar) holds.

    Reading the value of a tensor would break a traced graph and stall an accelerator, so there it is asserted on
    the device instead.
    """
    if condition.device.type == "meta":
        return
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)


def _starting_at(std: float, layer: nn.Module) -> nn.Module:
    """The layer, with the width of its initial weights noted on it.

    Noted on the layer, not drawn by its parent: transformers passes modules of models outside its tree to
    `_init_weights` only where they hold parameters of their own.
    """
    layer.initial_std = std
    return layer


def unit_vectors(vectors_BD: torch.Tensor) -> torch.Tensor:
    """Unit vectors, in float32 at least."""
    return F.normalize(vectors_BD.to(torch.promote_types(vectors_BD.dtype, torch.float32)), dim=-1)


def _full_precision(device: torch.device) -> AbstractContextManager:
    """No autocast within. The meta device, which only counts shapes, knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class HFCLIPVisionEmbeddings(nn.Module):
    """Patches as tokens after a class token, with learned positions."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        width, patch = config.hidden_size, config.patch_size
        patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.patch_embedding = _starting_at(config.initializer_range, patch_embedding)
        self.num_positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = _starting_at(width**-0.5, nn.Embedding(self.num_positions, width))
        self.position_ids = nn.Buffer(torch.arange(self.num_positions)[None], persistent=False)

    def _interpolated_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Positions of another grid of patches by bicubic interpolation: (1, 1 + rows * columns, W)."""
        class_1W, grid_MW = self.position_embedding.weight.split([1, self.num_positions - 1])
        side = self.config.image_size // self.config.patch_size
        grid_1WHV = grid_MW.T.reshape(1, -1, side, side)
        # Half precision has no bicubic kernel on every device.
        resized_1WHV = F.interpolate(grid_1WHV.float(), size=(rows, columns), mode="bicubic", align_corners=False)
        resized_MW = resized_1WHV.flatten(2)[0].T.to(grid_MW.dtype)
        return torch.cat([class_1W, resized_MW])[None]

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        size, patch = self.config.image_size, self.config.patch_size
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"Pictures of {height} x {width} pixels do not fit the model's {size} x {size}: resize them (the "
                "processor does), or pass interpolate_pos_encoding=True."
            )
        if height < patch or width < patch:
            raise ValueError(f"Pictures of {height} x {width} pixels are smaller than one patch of {patch} x {patch}.")
        patches_BMW = (
            self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        )
        # Here and below not len(): torch.export would take it for a constant.
        class_B1W = self.class_embedding.expand(pixel_values.shape[0], 1, -1).to(patches_BMW.dtype)
        tokens_BTW = torch.cat([class_B1W, patches_BMW], dim=1)
        if (height, width) == (size, size):
            return tokens_BTW + self.position_embedding(self.position_ids)
        return tokens_BTW + self._interpolated_positions(height // patch, width // patch)


class HFCLIPTextEmbeddings(nn.Module):
    """Token embeddings with learned positions."""

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__()
        width = config.hidden_size
        self.token_embedding = _starting_at(0.02, nn.Embedding(config.vocab_size, width))
        self.position_embedding = _starting_at(0.01, nn.Embedding(config.max_position_embeddings, width))
        self.position_ids = nn.Buffer(torch.arange(config.max_position_embeddings)[None], persistent=False)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        length, limit = input_ids.shape[-1], self.position_embedding.num_embeddings
        if length > limit:
            raise ValueError(
                f"Texts of {length} tokens are longer than the model's {limit} positions: truncate them to {limit} "
                "(the processor and the tokenizer do, and keep the end token)."
            )
        if position_ids is None:
            position_ids = self.position_ids[:, :length]
        return self.token_embedding(input_ids) + self.position_embedding(position_ids)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; the one implementation that can also return its weights, (B, heads, T, T)."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class HFCLIPAttention(nn.Module):
    """Multi-head self-attention, by whichever implementation the config chose."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        # The text tower passes is_causal=True with each call.
        self.is_causal = False
        width = config.hidden_size
        self.q_proj = _starting_at(width**-0.5, nn.Linear(width, width))
        self.k_proj = _starting_at(width**-0.5, nn.Linear(width, width))
        self.v_proj = _starting_at(width**-0.5, nn.Linear(width, width))
        # Two layers add to the residual stream in each of the blocks: together they add about what it began with.
        std = (2 * width * config.num_hidden_layers) ** -0.5
        self.out_proj = _starting_at(std, nn.Linear(width, width))

    def forward(
        self, tokens_BTW: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        by_head = (*tokens_BTW.shape[:-1], -1, self.head_dim)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            self.q_proj(tokens_BTW).view(by_head).transpose(1, 2),
            self.k_proj(tokens_BTW).view(by_head).transpose(1, 2),
            self.v_proj(tokens_BTW).view(by_head).transpose(1, 2),
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(output.reshape(tokens_BTW.shape)), weights


class HFCLIPMLP(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.activation_fn = ACT2FN[config.hidden_act]
        width, depth = config.hidden_size, config.num_hidden_layers
        self.fc1 = _starting_at((2 * width) ** -0.5, nn.Linear(width, config.intermediate_size))
        self.fc2 = _starting_at((2 * width * depth) ** -0.5, nn.Linear(config.intermediate_size, width))

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(tokens_BTW)))


class HFCLIPEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = HFCLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = HFCLIPMLP(config)

    def forward(self, tokens_BTW: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        attended_BTW, _ = self.self_attn(self.layer_norm1(tokens_BTW), attention_mask, **kwargs)
        tokens_BTW = tokens_BTW + attended_BTW
        return tokens_BTW + self.mlp(self.layer_norm2(tokens_BTW))


class HFCLIPEncoder(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(HFCLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, tokens_BTW: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        for layer in self.layers:
            tokens_BTW = layer(tokens_BTW, attention_mask, **kwargs)
        return tokens_BTW


class HFCLIPPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of all models here. Initial widths are the paper's (OpenAI's model.py)."""

    config: HFCLIPConfig
    base_model_prefix = "hf_clip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["HFCLIPTextEmbeddings", "HFCLIPVisionEmbeddings", "HFCLIPEncoderLayer"]
    _can_record_outputs = {"hidden_states": HFCLIPEncoderLayer, "attentions": HFCLIPAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        # Quantized layers have no weight to draw.
        if (std := getattr(module, "initial_std", None)) is not None and module.weight is not None:
            init.normal_(module.weight, std=std * factor)
        if isinstance(module, HFCLIPTextEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1])[None])
        elif isinstance(module, HFCLIPVisionEmbeddings):
            init.normal_(module.class_embedding, std=module.config.hidden_size**-0.5 * factor)
            init.copy_(module.position_ids, torch.arange(module.num_positions)[None])
        elif isinstance(module, HFCLIPModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


class HFCLIPTextModel(HFCLIPPreTrainedModel):
    """The text tower: `input_ids` (B, T) to one vector a text, pooled at its first end token.

    The tower is causal and texts are padded on the right, so padding comes after all that the end token can see:
    no attention mask is needed, and a batch may be padded to its longest text. A mask that is given is kept to.
    Raises ValueError for a text without an end token, for left padding and for more tokens than positions; on an
    accelerator and in compiled code the first two are asserted on the device.
    """

    config: HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.embeddings = HFCLIPTextEmbeddings(config)
        self.encoder = HFCLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.embeddings.token_embedding = value

    def _end_positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where each text ends, (B,)."""
        # int32, as argmax of int64 has no ONNX counterpart.
        if self.config.eos_token_id == POOL_AT_HIGHEST_ID:
            return input_ids.int().argmax(dim=-1)
        is_end_BT = input_ids == self.config.eos_token_id
        _require(
            is_end_BT.any(dim=-1).all(),
            f"A text has no end token (id {self.config.eos_token_id}): tokenize with add_special_tokens=True, and "
            "truncate with the tokenizer, which keeps the end token.",
        )
        return is_end_BT.int().argmax(dim=-1)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if attention_mask is not None and attention_mask.ndim == 2:
            _require(
                attention_mask[:, 0].ne(0).all(),
                "A text is padded on the left, which moves its tokens to other positions: pad on the right "
                "(tokenizer.padding_side = 'right').",
            )
        end_B = self._end_positions(input_ids)
        tokens_BTW = self.embeddings(input_ids, position_ids)
        attention_mask = create_causal_mask(
            config=self.config, inputs_embeds=tokens_BTW, attention_mask=attention_mask, past_key_values=None
        )
        kwargs.pop("is_causal", None)
        tokens_BTW = self.final_layer_norm(self.encoder(tokens_BTW, attention_mask, is_causal=True, **kwargs))
        rows_B = torch.arange(tokens_BTW.shape[0], device=tokens_BTW.device)
        return BaseModelOutputWithPooling(last_hidden_state=tokens_BTW, pooler_output=tokens_BTW[rows_B, end_B])


class HFCLIPVisionModel(HFCLIPPreTrainedModel):
    """The paper's vision transformer: `pixel_values` (B, channels, rows, columns) to one vector a picture.

    `pooler_output` (B, W) is the class token after the last norm. Raises ValueError for pictures of another size,
    unless `interpolate_pos_encoding=True`.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    has_class_token = True

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = HFCLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = HFCLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        tokens_BTW = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        tokens_BTW = self.encoder(tokens_BTW, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens_BTW, pooler_output=self.post_layernorm(tokens_BTW[:, 0])
        )


IMAGE_TOWERS = {"vit": HFCLIPVisionModel, "convnet": HFCLIPConvNetModel}


def _image_tower(config: HFCLIPVisionConfig) -> PreTrainedModel:
    return IMAGE_TOWERS[config.tower]._from_config(config)


def _projection(width: int, dimensions: int) -> nn.Linear:
    return _starting_at(width**-0.5, nn.Linear(width, dimensions, bias=False))


class HFCLIPModel(HFCLIPPreTrainedModel):
    """The dual encoder (Radford et al. 2021, section 2.3): pictures and texts as vectors of one space."""

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.text_model = HFCLIPTextModel._from_config(config.text_config)
        self.vision_model = _image_tower(config.vision_config)
        self.visual_projection = _projection(config.vision_config.pooled_size, config.projection_dim)
        self.text_projection = _projection(config.text_config.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The text tower's output, its `pooler_output` projected to (B, D) and not normalised."""
        output = self.text_model(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The image tower's output, its `pooler_output` projected to (B, D) and not normalised."""
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, normalize: bool = True
    ) -> torch.Tensor:
        """One vector a text, (B, D); unit vectors unless `normalize=False`. Raises what `HFCLIPTextModel` raises."""
        vectors_BD = self.get_text_features(input_ids, attention_mask).pooler_output
        return unit_vectors(vectors_BD).to(vectors_BD.dtype) if normalize else vectors_BD

    def encode_image(
        self, pixel_values: torch.Tensor, normalize: bool = True, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """One vector a picture, (B, D); unit vectors unless `normalize=False`. Raises what the image tower raises."""
        vectors_BD = self.get_image_features(pixel_values, interpolate_pos_encoding).pooler_output
        return unit_vectors(vectors_BD).to(vectors_BD.dtype) if normalize else vectors_BD

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        concept_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> HFCLIPOutput:
        """Scaled cosines of all pictures with all texts.

        With `return_loss=True`, pictures and texts are pairs and `loss` is `contrastive_loss` of the batch (over
        all ranks); `concept_ids` (B,) then names the pairs that are positives of each other.
        """
        vision_output = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        text_output = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        # In half precision a cosine is off by 1e-2 and its logit, at scale 100, by 1: cosines are float32's.
        image_BD, text_BD = unit_vectors(vision_output.pooler_output), unit_vectors(text_output.pooler_output)
        # The towers may lie on different devices (device_map).
        image_BD, scale = image_BD.to(text_BD.device), self.logit_scale.exp().to(text_BD)
        with _full_precision(text_BD.device):
            logits_per_text = scale * text_BD @ image_BD.T
        loss = contrastive_loss(image_BD, text_BD, scale, concept_ids) if return_loss else None
        dtype = text_output.pooler_output.dtype
        return HFCLIPOutput(
            loss=loss,
            logits_per_image=logits_per_text.T.to(dtype),
            logits_per_text=logits_per_text.to(dtype),
            text_embeds=text_BD.to(dtype),
            image_embeds=image_BD.to(dtype),
            text_model_output=text_output,
            vision_model_output=vision_output,
        )


class HFCLIPTextModelWithProjection(HFCLIPPreTrainedModel):
    """The text tower and its projection, alone: `text_embeds` (B, D). Loads from a dual encoder's folder too."""

    config: HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$"]

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.text_model = HFCLIPTextModel._from_config(config)
        self.text_projection = _projection(config.hidden_size, config.projection_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> HFCLIPTextModelOutput:
        output = self.text_model(input_ids, attention_mask, position_ids, **kwargs)
        return HFCLIPTextModelOutput(
            text_embeds=self.text_projection(output.pooler_output),
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class HFCLIPVisionModelWithProjection(HFCLIPPreTrainedModel):
    """The image tower and its projection, alone: `image_embeds` (B, D). Loads from a dual encoder's folder too."""

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$"]

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.vision_model = _image_tower(config)
        self.visual_projection = _projection(config.pooled_size, config.projection_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> HFCLIPVisionModelOutput:
        output = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        return HFCLIPVisionModelOutput(
            image_embeds=self.visual_projection(output.pooler_output),
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class HFCLIPForImageClassification(HFCLIPPreTrainedModel):
    """A linear classifier on the mean of the image tower's tokens (the class token apart), as transformers' CLIP has.

    `labels` (B,) give a `loss` by transformers' rules (`config.problem_type`, `config.num_labels`).
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^text_projection\.",
        r"^visual_projection\.",
        r"^logit_scale$",
    ]

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = _image_tower(config.vision_config)
        width = config.vision_config.hidden_size
        self.classifier = _starting_at(width**-0.5, nn.Linear(width, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassifierOutput:
        output = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        first = 1 if self.vision_model.has_class_token else 0
        logits = self.classifier(output.last_hidden_state[:, first:].mean(dim=1))
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
