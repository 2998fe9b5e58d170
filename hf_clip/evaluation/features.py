"""Embeddings of images and texts, in batches: the first half of every evaluation."""

# Shapes: B images of a batch, N images, M texts, D width of the shared space, H and W pixels.

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from hf_clip.evaluation.cache import IMAGES_PER_FILE, FeatureCache
from hf_clip.evaluation.corruptions import Corruption
from hf_clip.model.embedding_hf_clip import (
    batched,
    dual_encoder,
    evaluation_mode,
    image_inputs,
    unit_image_embeds,
    unit_text_embeds,
)
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image
from hf_clip.model.typing_hf_clip import DualEncoder, Processor

if TYPE_CHECKING:
    from accelerate import PartialState


SECONDS_BETWEEN_LINES = 30.0
# Of one process for the others' parts: storage may be slow for one of them.
TIMEOUT = timedelta(hours=1)
# Reasons to skip an image that lie with the machine, not with the image.
PASSING = {"unreadable", "out_of_memory"}

Item = TypeVar("Item")


class OtherProcessError(RuntimeError):
    """What ended the part of another process, and with it the evaluation on all of them."""


@dataclass
class ImageFeatures:
    """Embeddings of the images that could be read.

    Attributes:
        embeddings: (N, D) float32 embeddings on the CPU; unit embeddings, unless features before the projection
            were asked for.
        kept: N positions in the stream that was given: `embeddings[i]` belongs to image `kept[i]`.
        skipped: how many images could not be decoded, by `ImageDecodeError.reason`.
    """

    embeddings: torch.Tensor
    kept: list[int]
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Encoding:
    """How the embeddings of an evaluation are made.

    Attributes:
        batch_size, text_batch_size: images and texts encoded at once.
        cache: where embeddings of images are kept, and looked up first; None keeps none.
        processes: Accelerate's state, where several processes evaluate together: each encodes a part and all get the
            same result. None: this process does it alone, whatever others there are.
        before_projection: the image tower's pooled features instead of unit embeddings of the shared space: what the
            paper's linear probes stand on (appendix A.3).
        corruption: what is done to the images before the model sees them.
        before_batch: is called before each batch of images; what it raises ends the evaluation, on all processes.
    """

    batch_size: int = 64
    text_batch_size: int = 256
    cache: FeatureCache | None = None
    processes: "PartialState | None" = None
    before_projection: bool = False
    corruption: Corruption | None = None
    before_batch: Callable[[], object] | None = None

    @property
    def kind(self) -> str:
        """A name for how embeddings are made, beside the model: part of a cache's key."""
        kind = "before_projection" if self.before_projection else "projected"
        return f"{kind}-{self.corruption.name}-{self.corruption.severity}" if self.corruption else kind


def progress(items: Iterable[Item], description: str, *, total: int | None = None, unit: str = "it") -> Iterable[Item]:
    """Shows how far it is, on standard error: a bar, or a line each half a minute where that is no terminal.

    A terminal that is gone ends nothing.
    """
    if sys.stderr is None or sys.stderr.closed:
        return items
    if sys.stderr.isatty():
        return _with_bar(items, description, total, unit)
    return _with_lines(items, description, "" if total is None else f" of {total:,}")


def _with_bar(items: Iterable[Item], description: str, total: int | None, unit: str) -> Iterator[Item]:
    with contextlib.ExitStack() as stack:
        bar = None
        with contextlib.suppress(OSError, ValueError):
            bar = tqdm(desc=description, total=total, unit=unit, leave=False)
            stack.callback(_quietly, bar.close)
        for item in items:
            yield item
            if bar is not None:
                _quietly(bar.update)


def _with_lines(items: Iterable[Item], description: str, of_total: str) -> Iterator[Item]:
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            _quietly(partial(print, f"{description}: {done:,}{of_total}", file=sys.stderr, flush=True))
        yield item


def _quietly(say: Callable[[], object]) -> None:
    with contextlib.suppress(OSError, ValueError):
        say()


def encode_texts(
    model: DualEncoder,
    processor: Processor,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    processes: "PartialState | None" = None,
) -> torch.Tensor:
    """(M, D) float32 unit embeddings on the CPU of M texts, `batch_size` at a time.

    With several processes each encodes every so-many-th text.

    Raises:
        ValueError: if `texts` is empty. OtherProcessError: another process failed.
    """
    if not texts:
        raise ValueError("there are no texts to encode: pass at least one.")
    model = dual_encoder(model)
    rank, world_size = _rank_and_world_size(processes)
    own = texts[rank::world_size]
    shown = partial(progress, description="texts", total=-(-len(own) // batch_size), unit="batch")

    def make_part() -> list[tuple]:
        show = iter if rank else shown
        return [(rank, unit_text_embeds(model, processor, own, batch_size, show))] if own else []

    gathered = _of_all(make_part, processes)
    text_embeds_MD = gathered[0][1].new_empty(len(texts), gathered[0][1].shape[1])
    for of_rank, embeddings_BD in gathered:
        text_embeds_MD[of_rank::world_size] = embeddings_BD
    return text_embeds_MD


def encode_images(
    model: DualEncoder,
    processor: Processor,
    images: Iterable,
    *,
    batch_size: int = 64,
    total: int | None = None,
    encoding: Encoding | None = None,
) -> ImageFeatures:
    """Embeddings of a stream of images, of any kind that `decode_image` reads, held `batch_size` at a time.

    An image that cannot be decoded is skipped and counted by its reason: one broken file must not end an
    evaluation of a million, nor go unnoticed.

    Args:
        images: the stream. An item may come from anywhere: it is read once, in order.
        batch_size: images encoded at once.
        total: how many there are, for the progress bar.
        encoding: more of how, in place of `batch_size`. With a cache or several processes images are held
            `IMAGES_PER_FILE` at a time, as they are given, and every process goes through the whole stream.

    Raises:
        ValueError: if no image could be read; the message gives the reasons. OtherProcessError: another process
            failed.
    """
    encoding = encoding or Encoding(batch_size)
    is_first = _rank_and_world_size(encoding.processes)[0] == 0
    shown = progress(images, "images", total=total, unit="image") if is_first else images
    encoder = dual_encoder(model)
    encode = _image_encoder(encoder, processor, encoding)
    with evaluation_mode(encoder):
        if encoding.cache is None and encoding.processes is None:
            parts = [(0, encode(shown))]
        else:
            make_parts = partial(_encode_parts, model, processor, shown, encoding, encode)
            parts = _of_all(lambda: list(make_parts()), encoding.processes)
    kept = [index * IMAGES_PER_FILE + position for index, part in parts for position in part.kept]
    features = ImageFeatures(torch.empty(0), kept, sum((part.skipped for _, part in parts), Counter()))
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(features.skipped.items()))
        raise ValueError(
            f"no image could be read ({reasons or 'the data set is empty'}): check the image column and the files."
        )
    features.embeddings = torch.cat([part.embeddings for _, part in parts if part.kept])
    return features


def _image_encoder(
    model: DualEncoder, processor: Processor, encoding: Encoding
) -> Callable[[Iterable], ImageFeatures]:
    def readable(images: Iterable, features: ImageFeatures) -> Iterator:
        for position, image in enumerate(images):
            try:
                decoded = decode_image(image)
            except ImageDecodeError as error:
                features.skipped[error.reason] += 1
                continue
            features.kept.append(position)
            yield decoded if encoding.corruption is None else encoding.corruption(decoded, processor)

    def encode(images: Iterable) -> ImageFeatures:
        features, embeddings = ImageFeatures(torch.empty(0), []), []
        for batch in batched(readable(images, features), encoding.batch_size):
            if encoding.before_batch is not None:
                encoding.before_batch()
            inputs = image_inputs(processor, batch)
            if encoding.before_projection:
                embeddings.append(_pooled(model, inputs))
            else:
                embeddings.append(unit_image_embeds(model, inputs).cpu())
        if embeddings:
            features.embeddings = torch.cat(embeddings)
        return features

    return encode


def _pooled(model: DualEncoder, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, width) float32 features of the image tower before the projection, on the CPU."""
    tower = getattr(model, "vision_model", None)
    if tower is None:
        raise TypeError(
            f"`model` is {type(model).__name__}, which has no vision_model whose features a probe could use."
        )
    placed = {name: value.to(model.device) for name, value in inputs.items()}
    pixel_values = placed.pop("pixel_values").to(model.dtype)
    return tower(pixel_values, **placed).pooler_output.float().cpu()


def _encode_parts(
    model: DualEncoder, processor: Processor, images: Iterable, encoding: Encoding, encode
) -> Iterator[tuple]:
    """(index of the part, its features) of this process's parts, from the cache where they are there."""
    rank, world_size = _rank_and_world_size(encoding.processes)
    cache = encoding.cache
    key = None if cache is None else cache.key(model, processor, encoding.kind)
    for index, chunk in enumerate(batched(images, IMAGES_PER_FILE)):
        if index % world_size != rank:
            continue
        if cache is None or key is None:
            yield index, encode(chunk)
            continue
        path = cache.path(key, chunk)
        if found := cache.read(path):
            features = ImageFeatures(*found)
        else:
            features = encode(chunk)
            # What could not be read this time may be read the next.
            if not features.skipped.keys() & PASSING:
                cache.write(path, features.embeddings, features.kept, features.skipped)
        yield index, features


def _rank_and_world_size(processes: "PartialState | None") -> tuple[int, int]:
    return (0, 1) if processes is None else (processes.process_index, processes.num_processes)


def _of_all(make_parts: Callable[[], list[tuple]], processes: "PartialState | None") -> list[tuple]:
    """The numbered parts of all processes, in order. Parts are of any length: none is padded.

    What ends one process's part ends all of them, which would wait for it.
    """
    if processes is None or processes.num_processes == 1:
        return sorted(make_parts(), key=lambda item: item[0])
    own, error = [], None
    try:
        own = make_parts()
    except BaseException as raised:
        error = raised
    reason = None if error is None else " ".join(str(error).split())[:300] or type(error).__name__
    found = _exchange((own, reason))
    if error is not None:
        raise error
    if failed := [f"process {rank}: {reason}" for rank, (_, reason) in enumerate(found) if reason is not None]:
        raise OtherProcessError(f"The evaluation failed on {'; '.join(failed[:3])}.")
    return sorted((item for parts, _ in found for item in parts), key=lambda item: item[0])


# A group is made once, by all processes together.
_groups: dict[Any, Any] = {}


def _exchange(item: Any) -> list[Any]:
    """The items of all processes, over gloo: NCCL's waits are short, and tensors would go through GPUs."""
    import torch.distributed as dist

    world = dist.group.WORLD
    if dist.get_backend() != "gloo" and world not in _groups:
        _groups[world] = dist.new_group(backend="gloo", timeout=TIMEOUT)
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item, group=_groups.get(world))
    return items
