"""Towers of transformers: any vision model and any text model of transformers, built from its own config.

Shape suffixes: B images or texts, T tokens, W width of a tower.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_hf_clip import HFCLIPTextConfig, HFCLIPVisionConfig
from .modeling_inputs_hf_clip import check_pixels, check_texts, known_arguments, out_of_range, require_on_device


def shape_of(config: HFCLIPTextConfig | HFCLIPVisionConfig) -> PreTrainedConfig:
    """The config of the model in a tower of transformers, which the tower's config was validated to have."""
    assert isinstance(config.tower_config, PreTrainedConfig)
    return config.tower_config


def backbone_options(config: HFCLIPTextConfig | HFCLIPVisionConfig) -> dict[str, bool]:
    """Arguments of the backbone's class, apart from its config, that drop a pooling layer which nothing would train.

    Raises ValueError where transformers has no bare model for the config.
    """
    shape = shape_of(config)
    if type(shape) not in MODEL_MAPPING:
        raise ValueError(f"`tower_config` of type {shape.model_type!r} is of no model that AutoModel makes.")
    arguments = inspect.signature(MODEL_MAPPING[type(shape)].__init__).parameters
    return {"add_pooling_layer": config.pooling == "pooler"} if "add_pooling_layer" in arguments else {}


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model, or its encoder where it has a decoder too (T5, NLLB)."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


class _TransformersTower(PreTrainedModel):
    """`backbone`, a model of transformers with random weights, as one of the two towers.

    Raises ValueError where `hidden_size` is not the backbone's width.
    """

    config: HFCLIPTextConfig | HFCLIPVisionConfig
    supports_gradient_checkpointing = True
    # What the backbone does not support it refuses itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__(config)
        shape = shape_of(config)
        widths = getattr(shape, "hidden_sizes", None) or [config.hidden_size]
        width = getattr(shape, "hidden_size", widths[-1])
        if width != config.hidden_size:
            raise ValueError(
                f"`hidden_size={config.hidden_size}` is not the width of the {shape.model_type} in "
                f"`tower_config`: set `hidden_size={width}`."
            )
        self.backbone = encoder_of(AutoModel.from_config(shape, **backbone_options(config)))
        parameters = inspect.signature(self.backbone.forward).parameters
        self.backbone_arguments = frozenset(parameters) - {"self", "args", "kwargs"}
        self._takes_any_argument = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.backbone.set_input_embeddings(value)

    def _run_backbone(self, **inputs) -> Any:
        """The backbone's output, from those of the inputs that it takes."""
        for key in ("output_hidden_states", "output_attentions"):
            inputs.setdefault(key, getattr(self.config, key))
        if not self._takes_any_argument:
            inputs = {key: value for key, value in inputs.items() if key in self.backbone_arguments}
        return self.backbone(**inputs, return_dict=True)

    def _pooler_output(self, output: ModelOutput) -> torch.Tensor:
        if (pooled := output.get("pooler_output")) is None:
            raise ValueError(
                f"`pooling='pooler'`, and a {shape_of(self.config).model_type} pools nothing itself: set "
                "`pooling` to another of the tower's kinds."
            )
        return pooled.flatten(1)


class HFCLIPTransformersTextModel(_TransformersTower):
    """A text model of transformers as text tower: `input_ids` (B, T) to one embedding a text.

    `config.pooling` says which: "mean" of the tokens, the "first" (the class token, where there is one), the "last",
    the one at the first `eos_token_id` ("eos"), or what the backbone itself pools ("pooler"). Padding counts nowhere:
    tokens are told from it by `attention_mask` (B, T), or without one by `pad_token_id`. Of a model with an encoder
    and a decoder, the encoder is the tower.

    Raises ValueError for left padding and texts without a token, for more than `max_position_embeddings` tokens, for
    a missing end token where texts are pooled there, and where a mask is missing and padding can't be told from the
    end. On an accelerator and in compiled code what depends on values is asserted on the device.
    """

    config: HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ["text"]

    def _mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which tokens are text, (B, T) of 0 and 1."""
        length, limit = input_ids.shape[-1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"Texts of {length} tokens are longer than `max_position_embeddings={limit}`: truncate them to "
                f"{limit}."
            )
        pad = self.config.pad_token_id
        if attention_mask is None:
            if pad is None:
                return torch.ones_like(input_ids)
            if pad == self.config.eos_token_id:
                raise ValueError(
                    f"Texts are padded with their end token (id {pad}), which hides where they end: pass "
                    "`attention_mask`, which the tokenizer returns."
                )
            attention_mask = input_ids.ne(pad).long()
        require_on_device(
            attention_mask[:, 0].ne(0).all(),
            "A text has no tokens, or is padded on the left: skip it, or pad on the right "
            "(tokenizer.padding_side = 'right').",
        )
        return attention_mask

    def _end_positions(self, input_ids: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Where each text is pooled, (B,), for the poolings that take one token."""
        if self.config.pooling == "first":
            return torch.zeros_like(input_ids[:, 0])
        if self.config.pooling == "last":
            return mask_BT.long().sum(dim=-1) - 1
        assert self.config.eos_token_id is not None, "checked by the config where this pooling is asked for"
        is_end_BT = input_ids.eq(self.config.eos_token_id) & mask_BT.ne(0)
        require_on_device(
            is_end_BT.any(dim=-1).all(),
            f"A text has no end token (id {self.config.eos_token_id}), where `pooling='eos'` takes its embedding: use "
            "a tokenizer that adds one, or another pooling.",
        )
        return is_end_BT.int().argmax(dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        kwargs = known_arguments(self, kwargs, also=self.backbone_arguments)
        check_texts(input_ids, attention_mask, position_ids)
        mask_BT = self._mask(input_ids, attention_mask)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if "use_cache" in self.backbone_arguments:
            kwargs["use_cache"] = False
        try:
            output = self._run_backbone(input_ids=input_ids, attention_mask=mask_BT, **kwargs)
        except IndexError as error:
            raise out_of_range("input_ids", input_ids, self.config.vocab_size) from error
        tokens_BTW = output.last_hidden_state
        if self.config.pooling == "pooler":
            pooled_BW = self._pooler_output(output)
        elif self.config.pooling == "mean":
            weights_BT1 = mask_BT[..., None].to(tokens_BTW)
            pooled_BW = (tokens_BTW * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)
        else:
            rows_B = torch.arange(tokens_BTW.shape[0], device=tokens_BTW.device)
            pooled_BW = tokens_BTW[rows_B, self._end_positions(input_ids, mask_BT)]
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens_BTW,
            pooler_output=pooled_BW,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )


class HFCLIPTransformersVisionModel(_TransformersTower):
    """A vision model of transformers as image tower: `pixel_values` (B, channels, rows, columns) to one embedding
    each.

    `config.pooling` says which: the "class" token, the "average" of the patches (register and class tokens apart), or
    what the backbone itself pools ("pooler"). `last_hidden_state` is (B, T, W); of a model of maps (ConvNeXt, ResNet)
    their positions in reading order. `interpolate_pos_encoding` goes to the backbones that know it; the others take
    what sizes they take.

    Raises ValueError for pooling="class" where the backbone has no class token.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        names = (name.rpartition(".")[2] for name, _ in self.backbone.named_parameters())
        self.has_class_token = not {"cls_token", "class_embedding"}.isdisjoint(names)
        if config.pooling == "class" and not self.has_class_token:
            raise ValueError(
                f"`pooling='class'`, and a {shape_of(config).model_type} has no class token: set `pooling` to "
                "'pooler' or 'average'."
            )

    def _count_prefix(self, tokens: int, height: int, width: int) -> int:
        """Class and register tokens: those beyond one a patch. They come first."""
        patch = getattr(self.backbone.config, "patch_size", None)
        if patch is None:
            return 0
        rows, columns = (patch, patch) if isinstance(patch, int) else patch[-2:]
        # Where stages merge patches there are fewer tokens than patches.
        return max(tokens - (height // rows) * (width // columns), 0)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        kwargs = known_arguments(self, kwargs, also=self.backbone_arguments)
        channels = getattr(self.backbone.config, "num_channels", None)
        pixel_values = check_pixels(pixel_values, channels, self.backbone.dtype)
        if "interpolate_pos_encoding" in self.backbone_arguments:
            kwargs["interpolate_pos_encoding"] = interpolate_pos_encoding
        output = self._run_backbone(pixel_values=pixel_values, **kwargs)
        tokens_BTW = output.last_hidden_state
        if tokens_BTW.ndim == 4:
            tokens_BTW = tokens_BTW.flatten(2).transpose(1, 2)
        if self.config.pooling == "pooler":
            pooled_BW = self._pooler_output(output)
        elif self.config.pooling == "class":
            pooled_BW = tokens_BTW[:, 0]
        else:
            pooled_BW = tokens_BTW[:, self._count_prefix(tokens_BTW.shape[1], *pixel_values.shape[-2:]) :].mean(dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens_BTW,
            pooler_output=pooled_BW,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )
