"""Texts and images to the model's inputs, together."""

from transformers.processing_utils import ProcessorMixin

from .remote_code_hf_clip import SavedWithCode
from .tokenization_hf_clip import canonicalize_text, clean_text, clean_whitespace

PADDINGS = ("longest", "max_length")
CLEANINGS = {"whitespace": clean_whitespace, "lower": clean_text, "canonicalize": canonicalize_text}


class HFCLIPProcessor(SavedWithCode, ProcessorMixin):
    """An image processor and a tokenizer, called and saved as one.

        inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="pt")

    gives `input_ids` (B, T) and `pixel_values` (N, 3, H, W). Texts are padded to the longest of the batch,
    not to the context length, and no attention mask is returned: the text tower is causal and pools at the
    first end token, which cannot see the padding behind it. The embeddings are the same at a fraction of the
    work, and the fastest attention kernels take no mask. `return_attention_mask=True` brings it back.

    A call takes the arguments of the tokenizer and of the image processor. Their defaults stand in those two,
    and are saved with them; the three arguments on texts are saved with the processor.

    Args:
        text_padding: "longest", or "max_length" for models whose text towers see the padding (SigLIP, CLIPA): every
            text then has `tokenizer.model_max_length` tokens, whatever a call asks for.
        text_cleaning: what is done to a text before a tokenizer that does none of it: "whitespace" (repaired, single
            spaces) or "canonicalize" (in lower case and without punctuation too, as SigLIP was trained).
        returns_text_mask: True for text towers from elsewhere, whose tokens see those behind them: the attention mask
            is returned unless a call says otherwise, and texts need no end token.

    Raises:
        ValueError: for another padding or cleaning.
    """

    _auto_class = "AutoProcessor"
    text_kwargs = {"padding": True, "truncation": True, "return_attention_mask": False, "return_token_type_ids": False}

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        text_padding: str = "longest",
        text_cleaning: str | None = None,
        returns_text_mask: bool = False,
        **kwargs,
    ):
        if text_padding not in PADDINGS:
            raise ValueError(f"text_padding={text_padding!r} is unknown: use {' or '.join(map(repr, PADDINGS))}.")
        if text_cleaning is not None and text_cleaning not in CLEANINGS:
            raise ValueError(f"text_cleaning={text_cleaning!r} is unknown: use {', '.join(CLEANINGS)} or None.")
        self.text_padding = text_padding
        self.text_cleaning = text_cleaning
        self.returns_text_mask = returns_text_mask
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs):
        """A BatchFeature with `input_ids` if there is text, and `pixel_values` if there are images.

        Args:
            images: one image or several, each of any kind that `decode_image` takes.
            text: one caption or several; "" is a caption.
            kwargs: arguments of the tokenizer and of the image processor, such as `return_tensors="pt"`.

        Raises:
            ValueError: if both are missing; if a caption is not a string; if a caption would have no end
                token, where the model pools (`add_special_tokens=False`); for left padding; for `padding=False`
                where `text_padding` is "max_length".
            ImageDecodeError: (a ValueError) with the index of the image that cannot be decoded.
        """
        if text is not None:
            text = self._check_captions(text)
            text_kwargs = {**kwargs.get("text_kwargs", {}), **kwargs}
            if self.returns_text_mask and "return_attention_mask" not in text_kwargs:
                kwargs = {**kwargs, "return_attention_mask": True}
            if not (self.returns_text_mask or text_kwargs.get("add_special_tokens", True)):
                raise ValueError(
                    "add_special_tokens=False leaves the texts without the end token at which CLIP pools. "
                    "Drop the argument, or call the tokenizer alone."
                )
            if self.text_padding == "max_length":
                kwargs = self._padded_to_the_end(kwargs, text_kwargs)
        outputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None and self.text_padding == "longest" and not self.returns_text_mask:
            self._check_end_tokens(outputs["input_ids"])
        return outputs

    def _padded_to_the_end(self, kwargs: dict, text_kwargs: dict) -> dict:
        """The arguments of a call with those replaced that would give the model texts of another length."""
        length = self.tokenizer.model_max_length
        if text_kwargs.get("padding", True) in (False, "do_not_pad"):
            raise ValueError(
                f"padding=False: this model's texts are always {length} tokens long. Drop the argument, or call the "
                "tokenizer alone."
            )
        fixed = {"padding": "max_length", "max_length": length, "truncation": True}
        kept = {key: value for key, value in kwargs.get("text_kwargs", {}).items() if key not in fixed}
        return {**{key: value for key, value in kwargs.items() if key not in fixed}, "text_kwargs": {**kept, **fixed}}

    def _check_captions(self, text) -> str | list[str]:
        clean = CLEANINGS.get(self.text_cleaning, str)
        if isinstance(text, str):
            return clean(text)
        if not isinstance(text, list | tuple) or not text:
            raise ValueError(f"text={text!r:.50} is neither a string nor a list with one in it.")
        for index, caption in enumerate(text):
            if not isinstance(caption, str):
                raise ValueError(
                    f"text[{index}] is {caption!r:.50}, of type {type(caption).__name__}. "
                    "Pass strings; leave out rows without a caption."
                )
        return [clean(caption) for caption in text]

    def _check_end_tokens(self, input_ids) -> None:
        """Hold a tokenizer of another class, which a user may have put in, to the same rule."""
        end = self.tokenizer.eos_token_id
        if end is None:
            return
        rows = input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids
        for index, row in enumerate([rows] if isinstance(rows[0], int) else rows):
            if end not in row:
                raise ValueError(f"text {index} has no end token (id {end}): CLIP has nowhere to pool.")
