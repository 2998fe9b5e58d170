"""Texts and images to the model's inputs, together."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, TextKwargs

from .arguments_hf_clip import refuse_unknown_arguments
from .remote_code_hf_clip import SavedWithCode
from .tokenization_hf_clip import (
    CLEANINGS,
    HFCLIPTokenizer,
    cleaning_around,
    guard_of,
    lowers_texts,
    set_text_options,
    text_options,
)


class HFCLIPInputs(BatchFeature):
    """A model's inputs. Programs that read `attention_mask` find one, which the model is not passed: it needs none."""

    def __init__(self, data: Mapping[str, Any], end_token_id: int | None, sees_padding: bool):
        super().__init__(dict(data))
        self.end_token_id, self.sees_padding = end_token_id, sees_padding

    def __getitem__(self, item):
        return self._mask() if self._is_missing_mask(item) else super().__getitem__(item)

    def get(self, key, default=None):
        # Whoever asks so does without: a mask that is passed on takes the fast kernels away.
        return self.data.get(key, default)

    def __getattr__(self, item: str):
        return self._mask() if self._is_missing_mask(item) else super().__getattr__(item)

    def __getstate__(self):
        return dict(self.__dict__)

    def __setstate__(self, state):
        self.__dict__.update(state)

    def _is_missing_mask(self, item: Any) -> bool:
        data = self.__dict__.get("data", {})
        return isinstance(item, str) and item == "attention_mask" and item not in data and "input_ids" in data

    def _mask(self) -> Any:
        """1 for each token up to the first end token; for all where the text tower was trained to see padding."""
        ids = self.data["input_ids"]
        if isinstance(ids, torch.Tensor):
            return torch.from_numpy(self._mask_of(ids.cpu().numpy())).to(ids.device)
        if isinstance(ids, np.ndarray):
            return self._mask_of(ids)
        rows = [self._mask_of(np.asarray(row)).tolist() for row in (ids if isinstance(ids[0], list) else [ids])]
        return rows if isinstance(ids[0], list) else rows[0]

    def _mask_of(self, ids: np.ndarray) -> np.ndarray:
        if self.sees_padding or self.end_token_id is None:
            return np.ones_like(ids)
        is_end = ids == self.end_token_id
        # Tokens with no end token before them.
        return (is_end.cumsum(-1) - is_end == 0).astype(ids.dtype)


class _ProcessingKwargs(ProcessingKwargs, total=False):
    """Arguments of a call."""


class HFCLIPProcessor(SavedWithCode, ProcessorMixin):
    """An image processor and a tokenizer, called and saved as one.

        inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="pt")

    gives `input_ids` (B, T) and `pixel_values` (N, 3, H, W); see `HFCLIPImageProcessor` for NaFlex models. Texts are
    padded to the longest of the batch, not to the context length, and no attention mask is returned: the text tower is
    causal and pools at the first end token, which cannot see the padding behind it. The embeddings are the same at a
    fraction of the work, and the fastest attention kernels take no mask. `return_attention_mask=True` brings it back;
    a program that reads `inputs.attention_mask` finds it without.

    A call takes the arguments of the tokenizer and of the image processor. Their defaults are those of the two,
    and are saved with them. So are the three arguments on texts: in the tokenizer's own file, so that a tokenizer
    that is loaded alone, as transformers' pipelines do, prepares texts as the processor does. One processor may be
    called from several threads.

    Args:
        text_padding: "longest", or "max_length" for models whose text towers see the padding (SigLIP, CLIPA): every
            text then has `tokenizer.model_max_length` tokens, whatever a call asks for. None: what the tokenizer's
            file says, else "longest".
        text_cleaning: what is done to a text before a tokenizer that does none of it: "whitespace" (repaired, single
            spaces), "lower" (in lower case too; a tokenizer that lowers texts itself, as SigLIP 2's, gets them as they
            are) or "canonicalize" (in lower case and without punctuation, as SigLIP was trained). None: what the
            tokenizer's file says, else nothing.
        returns_text_mask: True for text towers from elsewhere, whose tokens see those behind them: the attention mask
            is returned unless a call says otherwise, and texts need no end token. None: what the tokenizer's file
            says, else False.

    Raises:
        ValueError: for another padding or cleaning.
    """

    _auto_class = "AutoProcessor"
    valid_processor_kwargs = _ProcessingKwargs
    text_kwargs = {"padding": True, "truncation": True, "return_attention_mask": False, "return_token_type_ids": False}

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        text_padding: str | None = None,
        text_cleaning: str | None = None,
        returns_text_mask: bool | None = None,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        given = {
            "text_padding": text_padding,
            "text_cleaning": text_cleaning,
            "returns_text_mask": returns_text_mask,
        }
        options = text_options(self.tokenizer) | {name: value for name, value in given.items() if value is not None}
        set_text_options(self.tokenizer, **options)

    @property
    def text_padding(self) -> str:
        return text_options(self.tokenizer)["text_padding"]

    @text_padding.setter
    def text_padding(self, padding: str) -> None:
        set_text_options(self.tokenizer, text_padding=padding)

    @property
    def text_cleaning(self) -> str | None:
        return text_options(self.tokenizer)["text_cleaning"]

    @text_cleaning.setter
    def text_cleaning(self, cleaning: str | None) -> None:
        set_text_options(self.tokenizer, text_cleaning=cleaning)

    @property
    def returns_text_mask(self) -> bool:
        return text_options(self.tokenizer)["returns_text_mask"]

    @returns_text_mask.setter
    def returns_text_mask(self, is_returned: bool) -> None:
        set_text_options(self.tokenizer, returns_text_mask=is_returned)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | text_options(self.tokenizer)

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs):
        """A BatchFeature with `input_ids` if there is text, and `pixel_values` if there are images.

        Args:
            images: one image or several, each of any kind that `decode_image` takes.
            text: one caption or several; "" is a caption.
            kwargs: arguments of the tokenizer and of the image processor, such as `return_tensors="pt"`.

        Raises:
            TypeError: for arguments that neither of the two has. The error names the nearest.
            ValueError: if both are missing; if a caption is not a string; if a caption would have no end
                token, where the model pools (`add_special_tokens=False`); for left padding; for `padding=False`
                where `text_padding` is "max_length".
            ImageDecodeError: (a ValueError) with the index of the image that cannot be decoded.
        """
        self._refuse_unknown_arguments(kwargs)
        if text is None:
            return super().__call__(images=images, **kwargs)
        text, kwargs = self._checked_captions(text), self._checked_text_arguments(kwargs)
        # transformers' tokenizers keep a call's padding on themselves: another thread must not set its own meanwhile.
        with guard_of(self.tokenizer):
            outputs = super().__call__(text=text, **kwargs)
        if self.text_padding == "longest" and not self.returns_text_mask:
            self._check_end_tokens(outputs["input_ids"])
        if images is not None:
            outputs.update(super().__call__(images=images, **kwargs))
        return HFCLIPInputs(outputs, self.tokenizer.eos_token_id, self.text_padding == "max_length")

    def _refuse_unknown_arguments(self, kwargs: dict[str, Any]) -> None:
        of_images = set(getattr(self.image_processor, "valid_kwargs", ImagesKwargs).__annotations__)
        of_texts = set(TextKwargs.__annotations__)
        groups = {"text_kwargs": of_texts, "images_kwargs": of_images}
        known = of_texts | of_images | set(ProcessingKwargs.__annotations__) | {"common_kwargs", "return_metadata"}
        refuse_unknown_arguments(type(self).__name__, kwargs, known)
        for group, names in groups.items():
            refuse_unknown_arguments(f"{type(self).__name__}'s {group}", kwargs.get(group) or {}, names)

    def _checked_text_arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call with those replaced that would give the model texts that it does not take."""
        text_kwargs = {**kwargs.get("text_kwargs", {}), **kwargs}
        if self.returns_text_mask and "return_attention_mask" not in text_kwargs:
            kwargs = {**kwargs, "return_attention_mask": True}
        if not (self.returns_text_mask or text_kwargs.get("add_special_tokens", True)):
            raise ValueError(
                "`add_special_tokens=False` leaves the texts without the end token at which CLIP pools. "
                "Drop the argument, or call the tokenizer alone."
            )
        side = self.tokenizer.padding_side
        if text_kwargs.get("padding_side") not in (None, side):
            raise ValueError(
                f"`padding_side={text_kwargs['padding_side']}`: this model's texts are padded on the {side}."
            )
        if self.text_padding != "max_length":
            return kwargs
        length = self.tokenizer.model_max_length
        if text_kwargs.get("padding", True) in (False, "do_not_pad"):
            raise ValueError(
                f"`padding=False`: the texts of this model always have {length} tokens. Drop the argument."
            )
        fixed = {"padding": "max_length", "max_length": length, "truncation": True}
        kept = {key: value for key, value in kwargs.get("text_kwargs", {}).items() if key not in fixed}
        return {**{key: value for key, value in kwargs.items() if key not in fixed}, "text_kwargs": {**kept, **fixed}}

    def _checked_captions(self, text) -> str | list[str]:
        clean = self._cleaning()
        if isinstance(text, str):
            return clean(text)
        if not isinstance(text, list | tuple) or not text:
            raise ValueError(f"`text` is {text!r:.50}: pass a string, or a list with one or more.")
        for index, caption in enumerate(text):
            if not isinstance(caption, str):
                raise ValueError(
                    f"text[{index}] is {caption!r:.50}, of type {type(caption).__name__}. "
                    "Pass strings, and skip rows without a caption."
                )
        return [clean(caption) for caption in text]

    def _cleaning(self):
        """What is done to a text before the tokenizer sees it. The tokenizer of this package does it itself."""
        if self.text_cleaning is None or isinstance(self.tokenizer, HFCLIPTokenizer):
            return str
        if self.text_cleaning == "lower" and lowers_texts(self.tokenizer):
            return str
        # Those that came with the tokenizer are its own affair.
        tokens = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        added = [token for index, token in tokens if index >= self.tokenizer.vocab_size]
        return cleaning_around(CLEANINGS[self.text_cleaning], added)

    def _check_end_tokens(self, input_ids) -> None:
        """Hold a tokenizer of another class, which a user may have put in, to the same rule."""
        end = self.tokenizer.eos_token_id
        if end is None:
            return
        rows = input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids
        for index, row in enumerate([rows] if isinstance(rows[0], int) else rows):
            if end not in row:
                raise ValueError(
                    f"text {index} has no end token (id {end}), at which CLIP pools: let the tokenizer add it."
                )


# Where transformers before 5.23 looks for a processor's defaults. Set from without: a type checker knows no values of
# a TypedDict.
setattr(_ProcessingKwargs, "_defaults", {"text_kwargs": HFCLIPProcessor.text_kwargs})  # noqa: B010
