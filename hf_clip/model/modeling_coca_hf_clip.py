"""CoCa: a CLIP that writes captions (Yu et al. 2022), with transformers' `generate`.

Shape suffixes: B images or texts, T tokens of a text, C tokens of an image, W width of the text tower.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.utils.generic import can_return_tuple

from .caption_loss_hf_clip import caption_labels, mean_caption_loss
from .configuration_coca_hf_clip import HFCLIPCoCaConfig
from .modeling_coca_layers_hf_clip import HFCLIPCaptionDecoder
from .modeling_coca_text_hf_clip import HFCLIPClassTokenTextModel
from .modeling_hf_clip import HFCLIPModel, HFCLIPOutput
from .modeling_inputs_hf_clip import check_texts, known_arguments, require_on_device
from .modeling_layers_hf_clip import with_init_std
from .modeling_text_hf_clip import CACHE


@dataclass
class HFCLIPCoCaOutput(HFCLIPOutput):
    """What `HFCLIPCoCaModel` returns.

    Args:
        caption_loss: scalar, the mean of -log p of the captions' tokens, where `return_loss=True` asked for it.
        logits: (B, T, vocabulary), the scores of the token behind each, where `return_logits=True` or `generate`
            asked for them.
        cache: what `generate` keeps between tokens; `past_key_values` with transformers before 5.24.
    """

    caption_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    # Of the name that `generate` looks for. From 5.24 on, outputs turn the old one into the new.
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None


class HFCLIPCoCaModel(HFCLIPModel, GenerationMixin):
    """The dual encoder, and a decoder that goes on from its text tower's tokens and the image's.

        ids = model.generate(**processor(images=image, return_tensors="pt"))
        processor.batch_decode(ids, skip_special_tokens=True)

    All that takes an `HFCLIPModel` takes it; `generate` is transformers', with all of its options.
    """

    config: HFCLIPCoCaConfig
    main_input_name = "input_ids"
    needs_tokens = True
    # The text tower's mask is no causal one, and generation has keys from a cache.
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: HFCLIPCoCaConfig):
        text = config.text_config
        if text.pad_token_id == text.eos_token_id:
            raise ValueError(
                f"`text_config.pad_token_id={text.pad_token_id}` is the end token's id too, at which captions end: "
                "set another, such as 0 (OpenCLIP's)."
            )
        super().__init__(config)
        width, image_width = config.text_config.hidden_size, config.image_token_size
        self.text_decoder = HFCLIPCaptionDecoder._from_config(config.decoder_config)
        self.token_projection = nn.Identity()
        if image_width != width:
            self.token_projection = with_init_std(image_width**-0.5, nn.Linear(image_width, width))
        self.lm_head = with_init_std(width**-0.5, nn.Linear(width, config.text_config.vocab_size, bias=False))
        ids = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.generation_config = GenerationConfig(**ids)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.lm_head = new_embeddings

    def encode_image_tokens(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(B, C, W) what the decoder sees of images: encode once, and pass as `image_tokens` as often as needed."""
        output = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True)
        return self.tokens_for_decoder(output.last_hidden_state)

    def tokens_for_decoder(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, C, W) of an image tower's `last_hidden_state`: all queries but the one that is the embedding."""
        first = 1 if self.config.vision_config.pooling == "queries" else 0
        return self.token_projection(tokens[:, first:])

    def caption_states(self, text_tokens: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, W) of which `lm_head` makes the logits of next tokens.

        Args:
            text_tokens: (B, T, W), the text tower's `last_hidden_state`.
            image_tokens: (B, C, W), of `tokens_for_decoder`.
        """
        return self.text_decoder(text_tokens, image_tokens.to(text_tokens.device))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        concept_ids: torch.Tensor | None = None,
        return_logits: bool = False,
        image_tokens: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> HFCLIPCoCaOutput:
        """As `HFCLIPModel.forward`, and what the decoder says of captions.

        With `return_loss=True`, `loss` is the contrastive loss plus `config.caption_loss_weight` times
        `caption_loss`. With `return_logits=True` (images and captions are pairs too) `logits` are those of the token
        behind each. With `image_tokens` in place of `pixel_values`, as `generate` calls it, `logits` are all there is.

        Args:
            image_tokens: (B, C, W) of `encode_image_tokens`.
            cache: what is kept of the tokens before these.
            use_cache: keep it; needs `image_tokens`.
            logits_to_keep: of how many last tokens; 0: all.
            past_key_values: `cache`, as transformers before 5.24 calls it.

        Raises:
            TypeError, ValueError: as `HFCLIPModel.forward`; for images and captions that are no pairs.
        """
        if image_tokens is not None and input_ids is not None:
            cache = past_key_values if cache is None else cache
            return self._next_tokens(input_ids, attention_mask, image_tokens, cache, logits_to_keep, kwargs)
        kwargs = {**kwargs, "return_dict": True}
        output = super().forward(
            input_ids, pixel_values, attention_mask, None, return_loss, interpolate_pos_encoding, concept_ids, **kwargs
        )
        if not (return_loss or return_logits):
            return HFCLIPCoCaOutput(**output)
        pixel_values, input_ids = _given(pixel_values), _given(input_ids, "input_ids", "the texts")
        if len(input_ids) != len(pixel_values):
            raise ValueError(
                f"`return_logits=True` takes pairs, and there are {len(input_ids)} texts in `input_ids` and "
                f"{len(pixel_values)} images in `pixel_values`: pass as many of both."
            )
        towers: Any = output
        seen_BCW = self.tokens_for_decoder(towers.vision_model_output.last_hidden_state)
        states_BTW = self.text_decoder(towers.text_model_output.last_hidden_state, seen_BCW)
        fields: dict[str, Any] = dict(output)
        if return_loss:
            captions = fields["caption_loss"] = self._caption_loss(states_BTW, input_ids)
            fields["loss"] = towers.loss + self.config.caption_loss_weight * captions
        if return_logits:
            fields["logits"] = self.lm_head(_last(states_BTW, logits_to_keep))
        return HFCLIPCoCaOutput(**fields)

    def _caption_loss(self, states_BTW: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        labels_BT = caption_labels(input_ids, self.config.text_config.pad_token_id)
        return mean_caption_loss(states_BTW[:, :-1], cast(nn.Linear, self.lm_head).weight, labels_BT)

    def _next_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_tokens: torch.Tensor,
        cache: Cache | None,
        logits_to_keep: int | torch.Tensor,
        kwargs: dict[str, Any],
    ) -> HFCLIPCoCaOutput:
        known_arguments(self, kwargs)
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                f"`cache` is a {type(cache).__name__}: pass an EncoderDecoderCache, which keeps the image's "
                "keys too, or None."
            )
        text: HFCLIPClassTokenTextModel = self.text_model
        own = None if cache is None else cache.self_attention_cache
        tokens_BTW = text(input_ids, attention_mask, tokens_only=True, cache=own, return_dict=True).last_hidden_state
        first_layer = self.config.text_config.num_hidden_layers
        states_BTW = self.text_decoder(tokens_BTW, image_tokens, cache, first_layer)
        kept: dict[str, Any] = {CACHE: cache}
        return HFCLIPCoCaOutput(logits=self.lm_head(_last(states_BTW, logits_to_keep)), **kept)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> Any:
        """The ids of captions, by transformers' `generate`, which takes all else: `num_beams`, `do_sample`, ...

        Images are encoded once. Captions end with the end token, or at `max_length` tokens, by default and at most
        as many as the model has positions.

        Args:
            pixel_values: (B, channels, rows, columns).
            input_ids: (B, T) how the captions begin, as the processor makes it of texts of one length in tokens, its
                end token and padding dropped; None: they begin at the beginning.
            attention_mask: taken, and not needed.
            image_tokens: in place of the pixels.
            interpolate_pos_encoding: see `HFCLIPModel.forward`.

        Returns:
            (B * num_return_sequences, tokens) ids that begin with the start token; what transformers returns where
            `return_dict_in_generate=True`.

        Raises:
            ValueError: without images; for texts of several lengths; what transformers raises.
        """
        if image_tokens is None:
            image_tokens = self.encode_image_tokens(_given(pixel_values), interpolate_pos_encoding)
        begin_BT = self._beginnings(input_ids, len(image_tokens)).to(image_tokens.device)
        kwargs = self._within_positions(begin_BT.shape[1], kwargs)
        # Typed for a protocol of which no model has all attributes.
        own: Any = super()
        return own.generate(begin_BT, image_tokens=image_tokens, **kwargs)

    def _within_positions(self, begun: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments with lengths that the model's positions allow, and all of them by default."""
        limits = {"max_length": self.config.text_config.max_position_embeddings}
        limits["max_new_tokens"] = limits["max_length"] - begun
        if limits["max_new_tokens"] < 1:
            raise ValueError(f"`input_ids` has {begun} tokens, all that a caption has place for: pass fewer.")
        kwargs, given = dict(kwargs), copy.deepcopy(kwargs.get("generation_config"))
        is_said = False
        for name, limit in limits.items():
            if kwargs.get(name) is not None:
                kwargs[name], is_said = min(kwargs[name], limit), True
            for config in (given, self.generation_config):
                if config is not None and getattr(config, name) is not None:
                    is_said = True
            if given is not None and getattr(given, name) is not None:
                setattr(given, name, min(getattr(given, name), limit))
        if given is not None:
            kwargs["generation_config"] = given
        return kwargs if is_said else kwargs | {"max_length": limits["max_length"]}

    def _beginnings(self, input_ids: torch.Tensor | None, count: int) -> torch.Tensor:
        """(B, T) the start token, and what captions are told to begin with."""
        text = self.config.text_config
        start = self.generation_config.bos_token_id
        start = text.bos_token_id if start is None else start
        if start is None:
            raise ValueError(
                "`bos_token_id` of the model's generation_config is None: set the id captions begin with."
            )
        if input_ids is None:
            return torch.full((count, 1), int(start), device=self.device)
        check_texts(input_ids, None, None)
        if len(input_ids) != count:
            raise ValueError(
                f"`input_ids` are {len(input_ids)} texts for {count} images: pass as many as images, or none."
            )
        is_end_BT = (input_ids == text.eos_token_id) | (input_ids == text.pad_token_id)
        ends_BT = is_end_BT.flip(1).int().cumprod(dim=1)
        lengths_B = input_ids.shape[1] - ends_BT.sum(dim=1)
        require_on_device(
            (lengths_B == lengths_B[0]).all(),
            "`input_ids` are texts of several lengths, which cannot go on together: call `generate` once for each.",
        )
        return input_ids[:, : max(1, int(lengths_B[0]))]

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        image_tokens: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """What `forward` is called with for the next token. Padding hides the token behind it."""
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        return {
            "input_ids": new,
            "attention_mask": (input_ids != self.config.text_config.pad_token_id).long(),
            "cache": past_key_values if cache is None else cache,
            "image_tokens": image_tokens,
            "logits_to_keep": logits_to_keep,
        }

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict, *args, **kwargs) -> None:
        """One cache for the layers of both, the text tower's first, and one for the image's keys."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"`cache_implementation={generation_config.cache_implementation!r}`: captions are short, and kept in "
                "the dynamic cache. Drop it."
            )
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE] = EncoderDecoderCache(DynamicCache(), DynamicCache())


def _last(states_BTW: torch.Tensor, keep: int | torch.Tensor | Sequence[int]) -> torch.Tensor:
    return states_BTW[:, -keep:] if isinstance(keep, int) else states_BTW[:, keep]


def _given(
    tensor: torch.Tensor | None, name: str = "pixel_values", what: str = "the images, or their `image_tokens`"
) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"`{name}` is missing: pass {what}.")
    return tensor
