"""Embeddings of images and texts, whatever they come as, and what all that encodes in batches is made of."""

# Shapes: B images or texts of a batch, N images or texts, D width of the shared space, H and W pixels.

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from .device_check_hf_clip import warn_of_device
from .device_hf_clip import computing_in
from .image_decoding_hf_clip import ImageDecodeError, decode_image, on_all_cores
from .image_files_hf_clip import images_in_folder
from .image_processing_hf_clip import require_one_size
from .text_batches_hf_clip import TextBatch, batched, check_batch_size, encode_batch, text_batches, tokenized
from .typing_hf_clip import DualEncoder, Processor

_Item = TypeVar("_Item")
# Arguments of `encode_image` that processors make of images.
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


@overload
def embed_images(
    model: DualEncoder,
    processor: Processor,
    images: Any,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = "auto",
    image_column: str | None = None,
    may_reduce_jpeg: bool = False,
    return_errors: Literal[False] = False,
    show_progress: bool | None = None,
) -> torch.Tensor: ...


@overload
def embed_images(
    model: DualEncoder,
    processor: Processor,
    images: Any,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = "auto",
    image_column: str | None = None,
    may_reduce_jpeg: bool = False,
    return_errors: Literal[True],
    show_progress: bool | None = None,
) -> tuple[torch.Tensor, dict[int, ImageDecodeError]]: ...


def embed_images(
    model: DualEncoder,
    processor: Processor,
    images: Any,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = "auto",
    image_column: str | None = None,
    may_reduce_jpeg: bool = False,
    return_errors: bool = False,
    show_progress: bool | None = None,
) -> torch.Tensor | tuple[torch.Tensor, dict[int, ImageDecodeError]]:
    """Unit embeddings of images: the product with those of texts is the cosine similarity.

        image_embeds = embed_images(model, processor, "photos/")
        text_embeds = embed_texts(model, processor, ["a dog on a beach"])
        similarity = image_embeds @ text_embeds.T

    Args:
        model: a dual encoder, as `hf_clip.load` gives it. It is left in the mode (training or evaluation) that it was
            found in, and encodes in evaluation mode.
        processor: its processor.
        images: images of any kind that `decode_image` takes, in a list or any other iterable; a (N, ...) array or
            tensor; a folder's path, for the images below it in natural order; a data set or stream of `datasets`.
        batch_size: images encoded at once.
        device: where to encode. The model is moved there, and stays there; by default it is used where it is.
        dtype: what to compute in: "float32", "bfloat16", "float16", or "auto" for bf16 where the device is fast at it
            (a float32 model's cosines then differ by a few thousandths). None: that of the weights, which stay.
        image_column: the column of a data set's rows; by default the one of `datasets`' type Image, or "image".
        may_reduce_jpeg: decode large JPEG files at a fraction of their size, as `HFCLIPImageProcessor.resize_and_crop`
            has it: several times faster, and not quite the pixels that the model's numbers were measured on.
        return_errors: skip images that cannot be decoded, and return their errors too.
        show_progress: whether to draw a bar on standard error; by default where that is a terminal.

    Returns:
        (N, D) float32 unit embeddings on the CPU, without a graph. With `return_errors`, a pair: the embeddings of the
        images that could be decoded, in order, and a dict of position and ImageDecodeError for the others.

    Raises:
        TypeError: if `images` is one image instead of several; for `may_reduce_jpeg` with another class's processor.
        ImageDecodeError: (a ValueError) with the position of an image that cannot be decoded.
        ValueError: if there is no image, `batch_size` is below 1, rows lack the column, or embeddings are not finite.
    """
    model = _placed(model, device)
    errors: dict[int, ImageDecodeError] = {}
    embeddings, position = [], 0
    options: dict[str, Any] = {"image_column": image_column, "return_errors": return_errors}
    options |= {"dtype": dtype, "show_progress": show_progress, "may_reduce_jpeg": may_reduce_jpeg}
    for batch, embeddings_BD in image_batches(model, processor, images, batch_size, **options):
        errors |= {position + at: item for at, item in enumerate(batch) if isinstance(item, ImageDecodeError)}
        position += len(batch)
        if embeddings_BD is not None:
            embeddings.append(embeddings_BD.cpu())
    if not embeddings:
        first = f" The first of {len(errors)} errors: {errors[0]}" if errors else ""
        raise ValueError(f"`images` holds no image that can be encoded: pass at least one.{first}")
    # Outside inference mode, so that the result is a tensor like any other: a probe may be trained on it.
    image_embeds_ND = torch.cat(embeddings)
    return (image_embeds_ND, errors) if return_errors else image_embeds_ND


def embed_texts(
    model: DualEncoder,
    processor: Processor,
    texts: Iterable[str],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = "auto",
    show_progress: bool | None = None,
) -> torch.Tensor:
    """Unit embeddings of texts, each as it is: no template is put around it.

    Args:
        model: a dual encoder, as for `embed_images`.
        processor: its processor. Texts longer than the model's context are cut, as in training.
        texts: strings in a list or any other iterable.
        batch_size: texts encoded at once. Texts of like length share a batch, as padding is work.
        device: where to encode. The model is moved there, and stays there; by default it is used where it is.
        dtype: what to compute in, as for `embed_images`.
        show_progress: whether to draw a bar on standard error; by default where that is a terminal.

    Returns:
        (N, D) float32 unit embeddings on the CPU, without a graph, in the order of the texts.

    Raises:
        TypeError: if `texts` is one string, or holds something else than strings.
        ValueError: if there is no text, `batch_size` is below 1, or the model gives NaN or infinity.
    """
    if isinstance(texts, str):
        raise TypeError(f"`texts` is one string, {texts!r:.60}: pass a list of strings.")
    listed = list(texts)
    if not listed:
        raise ValueError("`texts` is empty: pass at least one.")
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(
                f"`texts` holds {text!r:.60} at position {position}, which is {type(text).__name__}: pass strings."
            )
    check_batch_size(batch_size)
    model = _placed(model, device)
    shown = partial(progress_bar, total=-(-len(listed) // batch_size), unit="batch", show_progress=show_progress)
    with computing_in(model, dtype):
        return unit_text_embeds(model, processor, listed, batch_size, shown)


def dual_encoder(model: Any) -> DualEncoder:
    """The model, or the one within a wrapper that does not pass `encode_image` and `encode_text` on.

    DistributedDataParallel is such a wrapper. Raises TypeError for a model that holds no dual encoder.
    """
    held = model.modules() if isinstance(model, torch.nn.Module) else ()
    for module in (model, *held):
        if hasattr(module, "encode_image") and hasattr(module, "encode_text"):
            return cast(DualEncoder, module)
    raise TypeError(
        f"`model` is {type(model).__name__}, which has no encode_image and encode_text: load a dual encoder with "
        "hf_clip.load, or as HFCLIPModel."
    )


def _placed(model: Any, device: torch.device | str | None) -> DualEncoder:
    encoder = dual_encoder(model)
    if device is not None:
        encoder.to(device)
    return encoder


# Modules that some thread encodes with: by id, the module, how many do, and whether it was in training mode before.
_held: dict[int, tuple[torch.nn.Module, int, bool]] = {}
_held_lock = threading.Lock()


@contextmanager
def evaluation_mode(model: DualEncoder | torch.nn.Module):
    """Run the body without dropout and gradients, and leave every module in the mode it was found in.

    Threads may share a model: it stays in evaluation mode until the last of them has left.
    """
    modules = list(model.modules())
    with _held_lock:
        for module in modules:
            _, count, was_training = _held.get(id(module), (module, 0, module.training))
            _held[id(module)] = (module, count + 1, was_training)
        if any(module.training for module in modules):
            model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        with _held_lock:
            for module in modules:
                _, count, was_training = _held.pop(id(module))
                if count > 1:
                    _held[id(module)] = (module, count - 1, was_training)
                elif was_training:
                    # One by one: model.train() would also switch on modules that the caller had frozen in
                    # evaluation mode.
                    module.training = True


def unit_text_embeds(
    model: DualEncoder,
    processor: Processor,
    texts: Sequence[str],
    batch_size: int,
    shown: Callable[[Iterable[TextBatch]], Iterable[TextBatch]] = iter,
) -> torch.Tensor:
    """(len(texts), D) float32 unit embeddings on the CPU, in the order of the texts.

    `shown` is put around the batches: a progress bar.
    """
    warn_of_device(model, processor)
    embeddings, positions = [], []
    for batch in shown(text_batches(processor, texts, batch_size)):
        # Not around the loop: between two batches the bar runs.
        with evaluation_mode(model):
            embeddings_BD = encode_batch(model, batch)
        embeddings.append(check_finite(embeddings_BD, "texts").cpu())
        positions += batch.positions
    sorted_ND = torch.cat(embeddings)
    text_embeds_ND = torch.empty_like(sorted_ND)
    text_embeds_ND[torch.tensor(positions)] = sorted_ND
    return text_embeds_ND


def encode_texts(model: DualEncoder, processor: Processor, texts: Sequence[str]) -> torch.Tensor:
    """(len(texts), D) float32 unit embeddings on the model's device, from one forward pass."""
    return encode_batch(model, TextBatch([], *tokenized(processor, texts)))


def image_inputs(processor: Processor, images: Sequence[Any], **kwargs: Any) -> dict[str, torch.Tensor]:
    """What a model takes of images: `pixel_values`, and for a NaFlex model their mask and shapes too."""
    made = processor(images=images, return_tensors="pt", **kwargs)
    return {name: made[name] for name in IMAGE_INPUTS if name in made}


def stack_inputs(inputs: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch of what `image_inputs` gave for images one by one; images in patches are padded to the longest."""
    batch = {name: [one[name] for one in inputs] for name in inputs[0]}
    if "spatial_shapes" in batch:
        for name in ("pixel_values", "pixel_attention_mask"):
            rows = [row for tensor in batch[name] for row in tensor]
            batch[name] = [pad_sequence(rows, batch_first=True)]
    return {name: torch.cat(tensors) for name, tensors in batch.items()}


def unit_image_embeds(model: DualEncoder, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, D) float32 unit embeddings on the model's device, from one forward pass.

    Args:
        inputs: what `image_inputs` gives; pixels alone, (B, 3, H, W), where that is all that the model takes.
    """
    if isinstance(inputs, torch.Tensor):
        inputs = {"pixel_values": inputs}
    placed = {name: inputs[name].to(model.device) for name in IMAGE_INPUTS if name in inputs}
    embeddings_BD = model.encode_image(placed.pop("pixel_values"), normalize=False, **placed)
    return F.normalize(embeddings_BD.float(), dim=-1)


def _finite_image_embeds(model: DualEncoder, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return check_finite(unit_image_embeds(model, inputs), "images")


def check_finite(embeddings: torch.Tensor, of: str) -> torch.Tensor:
    """The embeddings. Raises ValueError if one holds NaN or infinity: every score would be NaN."""
    if not torch.isfinite(embeddings).all():
        raise ValueError(
            f"embeddings of {of} hold NaN or infinity: the model has diverged or overflows in "
            f"{str(embeddings.dtype)[6:]} or its own dtype. Take an earlier checkpoint, or load it in float32."
        )
    return embeddings


def progress_bar(items: Iterable[_Item], total: int | None, unit: str, show_progress: bool | None) -> Iterable[_Item]:
    """The items, with a bar on standard error; where `show_progress` is None, only if that is a terminal."""
    if show_progress is None:
        show_progress = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    return logging.tqdm(items, total=total, unit=unit, leave=False, disable=not show_progress)


def image_batches(
    model: DualEncoder,
    processor: Processor,
    images: Any,
    batch_size: int,
    *,
    dtype: torch.dtype | str | None = None,
    image_column: str | None = None,
    may_reduce_jpeg: bool = False,
    return_errors: bool = False,
    show_progress: bool | None = None,
    compute: Callable[..., Any] | None = None,
) -> Iterator[tuple[list, Any]]:
    """Batches of prepared images, and the embeddings (B, D) of those in it, on the model's device.

    `compute` is called with the model and the inputs of each batch, and gives something else in place of embeddings.

    Arguments and errors are those of `embed_images`. With `return_errors`, an image that cannot be decoded is an
    ImageDecodeError in its batch and has no embedding; a batch of nothing else has None. Arguments are checked at
    once. Images are decoded on all cores; on an accelerator, those of the next batch while it encodes one. On a CPU
    nothing is read ahead of the batch that is asked for.
    """
    check_batch_size(batch_size)
    computing_in(model, dtype)
    warn_of_device(model, processor)
    opened = open_images(images, image_column)
    total = len(opened) if isinstance(opened, Sized) else None
    least_edge = _reduced_edge(processor) if may_reduce_jpeg else None
    shown = progress_bar(opened, total, "image", show_progress)

    one = partial(_prepared_image, _pixels_of(processor), least_edge, return_errors)

    def prepared():
        for numbered in batched(enumerate(shown), batch_size):
            batch = on_all_cores(one, numbered)
            readable = [item for item in batch if not isinstance(item, ImageDecodeError)]
            yield batch, _inputs_of(processor, readable) if readable else None

    def encoded():
        # A CPU has no time to spare for what comes next.
        batches = prepared() if model.device.type == "cpu" else one_ahead(prepared())
        for batch, inputs in batches:
            embeddings_BD = None
            if inputs is not None:
                # Not around the loop: between two batches the caller's own code runs.
                with evaluation_mode(model), computing_in(model, dtype):
                    embeddings_BD = (compute or _finite_image_embeds)(model, inputs)
            yield batch, embeddings_BD

    return encoded()


def _pixels_of(processor: Any) -> Callable[[Image.Image], np.ndarray | None]:
    """What makes a model's pixels of one image, where the processor has it."""
    return getattr(getattr(processor, "image_processor", processor), "pixels_of", lambda image: None)


def _prepared_image(
    pixels_of: Callable[[Image.Image], np.ndarray | None],
    least_edge: int | None,
    return_errors: bool,
    numbered: tuple[int, Any],
) -> Image.Image | np.ndarray | ImageDecodeError:
    """A decoded image or its pixels; its error, which is raised unless it is to be returned.

    An image in full size is dropped by the thread that decoded it: memory for a batch of them would have to be cleared
    by the kernel again and again.
    """
    position, image = numbered
    try:
        decoded = decode_image(image, least_edge=least_edge)
    except ImageDecodeError as error:
        if not return_errors:
            raise error.at(position, image) from error
        return error
    pixels = pixels_of(decoded)
    return decoded if pixels is None else pixels


def _inputs_of(processor: Processor, prepared: Sequence[Any]) -> dict[str, torch.Tensor]:
    """What a model takes of images, or of the pixels that were made of each."""
    if not isinstance(prepared[0], np.ndarray):
        return image_inputs(processor, prepared)
    require_one_size(prepared)
    return {"pixel_values": torch.from_numpy(np.stack(prepared))}


def _reduced_edge(processor: Any) -> int | None:
    """The shortest edge that a JPEG may be decoded to. Raises TypeError for a processor that does not say."""
    image_processor = getattr(processor, "image_processor", processor)
    if not hasattr(image_processor, "reduced_edge"):
        raise TypeError(
            f"`may_reduce_jpeg=True`: {type(image_processor).__name__} does not say how large its images have to be. "
            "Use an HFCLIPImageProcessor, or drop it."
        )
    return image_processor.reduced_edge


def one_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items in order, each made by another thread while the one before it is used."""
    none_left: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, none_left)
        while (item := coming.result()) is not none_left:
            coming = thread.submit(next, items, none_left)
            yield item


def open_images(images: Any, image_column: str | None = None) -> Iterable:
    """An iterable of images for `decode_image`, from what `embed_images` takes.

    Raises:
        TypeError: if `images` is one image instead of several.
        ValueError: if it is a folder without images.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        found = images_in_folder(images)
        if not found:
            raise ValueError(f"{images} holds no images.")
        return found
    # A single path would be taken apart into its letters, an array into its rows or its channels.
    is_one = isinstance(images, str | bytes | Path | Mapping) or getattr(images, "ndim", 4) in (2, 3)
    if is_one or not isinstance(images, Iterable):
        raise TypeError(f"`images` is one {type(images).__name__}: pass a list of images, [image] for one.")
    features = getattr(images, "features", None) or {}
    if not isinstance(features, Mapping):
        # A column of a data set, whose `features` are those of the column.
        source, name = getattr(images, "source", None), getattr(images, "column_name", None)
        if type(features).__name__ == "Image" and source is not None and hasattr(source, "cast_column"):
            images = source.cast_column(name, type(features)(decode=False))[name]
        features = {}
    rows: Any = images
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    column = image_column or (columns[0] if columns else None)
    if columns:
        # Undecoded: a stream of datasets ends at its first broken image.
        undecoded = type(features[columns[0]])(decode=False)
        for name in columns:
            rows = rows.cast_column(name, undecoded)
    return _ImageRun(rows, column) if isinstance(rows, Sized) else _images_of_rows(rows, column)


class _ImageRun:
    """The images of a collection that knows its length."""

    def __init__(self, rows, column: str | None):
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator:
        return _images_of_rows(self.rows, self.column)


def _images_of_rows(rows: Iterable, column: str | None) -> Iterator:
    for row in rows:
        # What `decode_image` takes as an image is a mapping of bytes and path.
        if isinstance(row, Mapping) and (column is not None or not row.keys() <= {"bytes", "path"}):
            wanted = column or "image"
            if wanted not in row:
                raise ValueError(f"rows have no column {wanted!r}: set `image_column` to one of {', '.join(row)}.")
            row = row[wanted]
        yield row
