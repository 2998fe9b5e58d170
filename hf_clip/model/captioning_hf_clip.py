"""Captions of images, by a model that writes them (CoCa)."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from .embedding_hf_clip import image_batches
from .image_decoding_hf_clip import ImageDecodeError
from .modeling_coca_hf_clip import HFCLIPCoCaModel
from .typing_hf_clip import Processor


def caption_images(
    model: HFCLIPCoCaModel, processor: Processor, images: Any, batch_size: int = 16, **options: Any
) -> list[str]:
    """A caption for each image.

    Args:
        model: a CoCa, on the device that it is to use.
        processor: its processor.
        images: whatever `embed_images` takes: paths, PIL images, arrays, a data set or a stream.
        batch_size: images captioned at once.
        options: those of `stream_captions`.

    Raises:
        What `stream_captions` raises.
    """
    return cast(list[str], list(stream_captions(model, processor, images, batch_size, **options)))


def stream_captions(
    model: HFCLIPCoCaModel,
    processor: Processor,
    images: Any,
    batch_size: int = 16,
    *,
    begins_with: str = "",
    dtype: torch.dtype | str | None = None,
    image_column: str | None = None,
    return_errors: bool = False,
    show_progress: bool | None = None,
    **generate: Any,
) -> Iterator[str | ImageDecodeError]:
    """`caption_images`, one image after the other: for streams longer than memory. Arguments are checked at once.

    Args:
        begins_with: how every caption begins.
        dtype, image_column, return_errors, show_progress: as in `embed_images`; with `return_errors`, what cannot be
            decoded has an ImageDecodeError in place of its caption.
        generate: arguments of transformers' `generate`, such as `num_beams=4`, `max_new_tokens=20`, `do_sample=True`.

    Raises:
        TypeError: for a model that writes no captions.
        ImageDecodeError: (a ValueError) with the position of an image that cannot be decoded.
        ValueError: for `num_return_sequences`; what `image_batches` and `generate` raise.
    """
    _check(model, generate)
    begin_1T = processor(text=[begins_with], return_tensors="pt")["input_ids"] if begins_with else None

    def written(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[str]:
        return write_captions(model, processor, inputs["pixel_values"], begin_1T, **generate)

    batches = image_batches(
        cast(Any, model),
        processor,
        images,
        batch_size,
        dtype=dtype,
        image_column=image_column,
        return_errors=return_errors,
        show_progress=show_progress,
        compute=written,
    )

    def answers() -> Iterator[str | ImageDecodeError]:
        for batch, texts in batches:
            following = iter(texts or ())
            for item in batch:
                yield item if isinstance(item, ImageDecodeError) else next(following)

    return answers()


def write_captions(
    model: HFCLIPCoCaModel,
    processor: Processor,
    pixel_values: torch.Tensor,
    begin: torch.Tensor | None = None,
    **generate: Any,
) -> list[str]:
    """A caption for each of a batch of images (B, channels, rows, columns), each begun by the ids `begin` (1, T)."""
    pixel_values = pixel_values.to(model.device)
    begin_BT = None if begin is None else begin.expand(len(pixel_values), -1).to(model.device)
    ids_BT = model.generate(pixel_values, begin_BT, **generate)
    texts = cast(Any, processor).tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
    return [text.strip() for text in texts]


def writes_captions(model: Any) -> bool:
    """Whether it is a model that writes captions."""
    return hasattr(model, "encode_image_tokens")


def _check(model: Any, generate: Mapping[str, Any]) -> None:
    """Raises what `stream_captions` says."""
    if not writes_captions(model):
        raise TypeError(
            f"`model` is {type(model).__name__}, which writes no captions: load a CoCa, such as "
            "laion/CoCa-ViT-B-32-laion2B-s13B-b90k, or train one."
        )
    if generate.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"`num_return_sequences={generate['num_return_sequences']}`: an image gets one caption here. Call "
            "`model.generate` for several."
        )
