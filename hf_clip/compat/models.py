"""A dual encoder with the methods, attributes and state dict that the models of `clip` and `open_clip` have.

Shape suffixes: B texts, T tokens, W width of a tower.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.export_configs import open_clip_preprocess_cfg
from hf_clip.conversion.rules import Rule, export_tensors, import_tensors
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.modeling_hf_clip import HFCLIPModel


def pooled_of(tower: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What a tower pools of its inputs; nothing else is computed where the tower can be asked so."""
    asked = {"pooled_only": True} if getattr(tower, "has_pooled_only", False) else {}
    return tower(inputs, return_dict=True, **asked).pooler_output


class ImageEncoder(nn.Module):
    """`model.visual`: pixels (B, 3, rows, columns) to embeddings (B, D), not normalized.

    Attributes:
        input_resolution: rows and columns of the pixels, as OpenAI's towers have it.
        image_size: the two as a pair, as OpenCLIP's towers have it.
        output_dim: D.
        image_processor: prepares images for it.
        preprocess_cfg: its settings, as OpenCLIP's towers have them; empty where they cannot be said so.
    """

    def __init__(self, model: HFCLIPModel, image_processor: HFCLIPImageProcessor):
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection
        self.input_resolution: int = model.config.vision_config.image_size
        self.image_size = (self.input_resolution, self.input_resolution)
        self.output_dim: int = model.config.projection_dim
        self.image_processor = image_processor
        preprocess_cfg, missing = open_clip_preprocess_cfg(image_processor, model.config)
        self.preprocess_cfg: dict[str, Any] = {} if missing else preprocess_cfg

    @property
    def conv1(self) -> nn.Module:
        """The first convolution; programs ask for the type of its weight."""
        return next(module for module in self.vision_model.modules() if isinstance(module, nn.Conv2d))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.visual_projection(pooled_of(self.vision_model, image))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Has activations computed again in the backward pass, or not."""
        set_checkpointing(self.vision_model, enable)


class TextEncoder(nn.Module):
    """Token ids (B, T) to embeddings (B, D), not normalized."""

    def __init__(self, model: HFCLIPModel):
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection
        text = model.config.text_config
        # Nothing sees what stands behind the end of a text.
        self._may_trim = text.tower == "clip" and text.is_causal and text.pooling in ("eos", "first_eos")

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.text_projection(pooled_of(self.text_model, self._trimmed(text)))

    def _trimmed(self, text: torch.Tensor) -> torch.Tensor:
        """The ids without the columns of zeros behind the longest text, which originals compute along."""
        # Elsewhere the look at the ids would cost more than it saves.
        if not self._may_trim or text.device.type != "cpu" or text.ndim != 2 or torch.compiler.is_compiling():
            return text
        used = text.ne(0).any(dim=0).nonzero()
        return text[:, : int(used[-1]) + 1] if len(used) else text


class TextLayers:
    """`model.transformer`: the text tower's layers on token embeddings that a program makes itself (learned prompts).

    Args:
        tower: the text tower.
        batch_first: whether tokens are (B, T, W), as OpenCLIP has them, or (T, B, W), as OpenAI does.
    """

    def __init__(self, tower: Any, batch_first: bool):
        self.tower, self.batch_first = tower, batch_first

    def __call__(self, tokens: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens behind the layers, under the tower's own mask; `attn_mask` (T, T) is added in its place."""
        tokens_BTW = tokens if self.batch_first else tokens.transpose(0, 1)
        if attn_mask is None:
            attn_mask = self.mask(tokens_BTW.shape[1], tokens_BTW)
        result_BTW = self.tower.encoder(tokens_BTW, attn_mask.to(tokens_BTW)[None, None], is_causal=False)
        return result_BTW if self.batch_first else result_BTW.transpose(0, 1)

    def mask(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """(T, T), added to scores: the least number where a token does not see another."""
        mask = torch.zeros(length, length, dtype=like.dtype, device=like.device)
        least = torch.finfo(like.dtype).min
        return torch.full_like(mask, least).triu(1) if self.tower.config.is_causal else mask

    def get_cast_dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.tower.dtype


class DropIn(nn.Module):
    """The model of both stand-ins, apart from what they return.

    Its state dict has the original's names and shapes, in both directions: a checkpoint of the one loads into the
    other. Tensors that are stored otherwise here (joined, transposed) are copies there.

    Args:
        model: is taken apart; its tensors are shared.
        image_processor: for `visual`.
        rules: between the original's names and this package's.
        batch_first: see `TextLayers`.
        tokenize: how a program makes token ids of texts, for errors.
    """

    def __init__(
        self,
        model: HFCLIPModel,
        image_processor: HFCLIPImageProcessor,
        *,
        rules: Sequence[Rule],
        batch_first: bool,
        tokenize: str,
    ):
        super().__init__()
        self.visual = ImageEncoder(model, image_processor)
        self.text = TextEncoder(model)
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias
        self.config = model.config
        self.context_length: int = model.config.text_config.max_position_embeddings
        self.vocab_size: int = model.config.text_config.vocab_size
        self._rules, self._batch_first, self._tokenize = rules, batch_first, tokenize
        self.register_state_dict_post_hook(_to_originals_names)
        self.register_load_state_dict_pre_hook(_from_originals_names)

    @property
    def dtype(self) -> torch.dtype:
        """Of the image tower's weights."""
        return next(self.visual.parameters()).dtype

    @property
    def token_embedding(self) -> nn.Module:
        return self.text.text_model.get_input_embeddings()

    @property
    def positional_embedding(self) -> torch.Tensor:
        """(context_length, W)."""
        return self.text.text_model.embeddings.position_embedding.weight

    @property
    def ln_final(self) -> nn.Module:
        return self.text.text_model.final_layer_norm

    @property
    def transformer(self) -> TextLayers:
        return TextLayers(self.text.text_model, self._batch_first)

    @property
    def attn_mask(self) -> torch.Tensor:
        """(context_length, context_length), which the text tower adds to scores."""
        return self.transformer.mask(self.context_length, self.positional_embedding)

    @property
    def text_projection(self) -> Any:
        """(W, D), to be multiplied from the right; the layer, where it has a bias or is no matrix."""
        layer = self.text.text_projection
        is_matrix = isinstance(layer, nn.Linear) and layer.bias is None
        return layer.weight.T if is_matrix else layer

    def image_features(self, image: Any) -> torch.Tensor:
        """(B, D), not normalized. Raises TypeError for what is no tensor, with the right call."""
        if isinstance(image, torch.Tensor):
            return self.visual(image)
        if isinstance(image, Mapping):
            call = "model.encode_image(inputs['pixel_values'])"
        else:
            call = "model.encode_image(preprocess(image).unsqueeze(0))"
        raise TypeError(f"`image` is {_kind(image)}, not a tensor of pixels: call {call}.")

    def text_features(self, text: Any) -> torch.Tensor:
        """(B, D), not normalized. Raises TypeError for what is no tensor, with the right call."""
        if isinstance(text, torch.Tensor):
            return self.text(text)
        given = f"[{text!r:.60}]" if isinstance(text, str) else "texts"
        call = "inputs['input_ids']" if isinstance(text, Mapping) else f"{self._tokenize}({given})"
        raise TypeError(f"`text` is {_kind(text)}, not a tensor of token ids: call model.encode_text({call}).")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Has activations computed again in the backward pass, or not."""
        for tower in (self.visual.vision_model, self.text.text_model):
            set_checkpointing(tower, enable)

    def own_state(self) -> dict[str, torch.Tensor]:
        """The state dict in this package's names: `HFCLIPModel`'s."""
        state = {**self.visual.state_dict(), **self.text.state_dict(), "logit_scale": self.logit_scale.detach()}
        return state if self.logit_bias is None else {**state, "logit_bias": self.logit_bias.detach()}


def set_checkpointing(tower: Any, enable: bool) -> None:
    (tower.gradient_checkpointing_enable if enable else tower.gradient_checkpointing_disable)()


def _kind(value: Any) -> str:
    shown = f" ({value!r:.60})" if isinstance(value, str) else ""
    return f"of type {type(value).__name__}{shown}"


def _place(name: str) -> str:
    """Where a tensor of `HFCLIPModel` stands in a `DropIn`."""
    part = {"vision_model": "visual", "visual_projection": "visual", "text_model": "text", "text_projection": "text"}
    holder = part.get(name.partition(".")[0])
    return name if holder is None else f"{holder}.{name}"


def _taken(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, taken out of a state dict."""
    return {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}


def _to_originals_names(module: DropIn, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    own = {name.removeprefix("visual.").removeprefix("text."): one for name, one in _taken(state, prefix).items()}
    state.update({prefix + name: tensor for name, tensor in export_tensors(own, module._rules).items()})


def _from_originals_names(
    module: DropIn,
    state: dict[str, torch.Tensor],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    own = module.own_state()
    theirs, present = _taken(state, prefix), export_tensors(own, module._rules)
    # What is to be done about these, the caller's `strict` says.
    missing += [prefix + name for name in present if name not in theirs]
    unexpected += [prefix + name for name in theirs if name not in present]
    theirs = present | {name: tensor for name, tensor in theirs.items() if name in present}
    try:
        loaded = import_tensors(theirs, module._rules, {name: tensor.shape for name, tensor in own.items()})
    except ConversionError as error:
        raise RuntimeError(f"Error in loading state_dict for {type(module).__name__}: {error}") from None
    state.update({prefix + _place(name): tensor for name, tensor in loaded.items()})
