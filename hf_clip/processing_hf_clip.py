"""Texts and pictures to the model's inputs, together."""

from transformers.processing_utils import ProcessorMixin


class HFCLIPProcessor(ProcessorMixin):
    """An image processor and a tokenizer, called and saved as one.

        inputs = processor(text=["a cat", "a dog"], images=picture, return_tensors="pt")

    gives `input_ids` (B, T) and `pixel_values` (N, 3, H, W). Texts are padded to the longest of the batch,
    not to the context length, and no attention mask is returned: the text tower is causal and pools at the
    first end token, which cannot see the padding behind it. The vectors are the same at a fraction of the
    work, and the fastest attention kernels take no mask. `return_attention_mask=True` brings it back.

    A call takes the arguments of the tokenizer and of the image processor. Their defaults stand in those two,
    and are saved with them.
    """

    text_kwargs = {"padding": True, "truncation": True, "return_attention_mask": False}

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs):
        """A BatchFeature with `input_ids` if there is text, and `pixel_values` if there are pictures.

        Args:
            images: one picture or several, each of any kind that `decode_image` takes.
            text: one caption or several; "" is a caption.
            kwargs: arguments of the tokenizer and of the image processor, such as `return_tensors="pt"`.

        Raises:
            ValueError: if both are missing; if a caption is not a string; if a caption would have no end
                token, where the model pools (`add_special_tokens=False`); for left padding.
            ImageDecodeError: (a ValueError) with the index of the picture that cannot be decoded.
        """
        if text is not None:
            text = self._check_captions(text)
            text_kwargs = {**kwargs.get("text_kwargs", {}), **kwargs}
            if not text_kwargs.get("add_special_tokens", True):
                raise ValueError(
                    "add_special_tokens=False leaves the texts without the end token at which CLIP pools. "
                    "Drop the argument, or call the tokenizer alone."
                )
        outputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            self._check_end_tokens(outputs["input_ids"])
        return outputs

    def _check_captions(self, text) -> str | list[str]:
        if isinstance(text, str):
            return text
        if not isinstance(text, list | tuple) or not text:
            raise ValueError(f"text={text!r:.50} is neither a string nor a list with one in it.")
        for index, caption in enumerate(text):
            if not isinstance(caption, str):
                raise ValueError(
                    f"text[{index}] is {caption!r:.50}, of type {type(caption).__name__}. "
                    "Pass strings; leave out rows without a caption."
                )
        return list(text)

    def _check_end_tokens(self, input_ids) -> None:
        """Hold a tokenizer of another class, which a user may have put in, to the same rule."""
        end = self.tokenizer.eos_token_id
        rows = input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids
        for index, row in enumerate([rows] if isinstance(rows[0], int) else rows):
            if end not in row:
                raise ValueError(f"text {index} has no end token (id {end}): CLIP has nowhere to pool.")
