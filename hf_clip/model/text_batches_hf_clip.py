"""Texts in batches that waste no work: of like length in tokens, and a beginning that all share is computed once.

Padding to the longest of a batch is exact, and it is work: the longest of 256 captions is several times the mean.
"""

# Shapes: N texts of a block, B texts of a batch, T tokens, D width of the shared space.

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import functional as F

from .typing_hf_clip import DualEncoder, Processor

_Item = TypeVar("_Item")

# Batches that are sorted together: enough that those of a batch are of one length or two.
BATCHES_PER_BLOCK = 64
# A beginning of fewer tokens, or of fewer texts, saves less than it costs to treat it apart.
LEAST_SHARED_TOKENS = 2
LEAST_SHARING_TEXTS = 16


class TextBatch(NamedTuple):
    """Texts that are encoded at once.

    Attributes:
        positions: of the texts, among all that were given.
        input_ids: (B, T).
        attention_mask: (B, T), where the processor makes one.
        shared_prefix: how many tokens all texts begin with, 0 where it is not worth a look.
    """

    positions: list[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    shared_prefix: int = 0


def batched(items: Iterable[_Item], batch_size: int) -> Iterator[list[_Item]]:
    """Lists of `batch_size` items in order, the last one shorter. Raises ValueError if it is below 1."""
    check_batch_size(batch_size)
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError if it is below 1."""
    if batch_size < 1:
        raise ValueError(f"`batch_size={batch_size}` is below 1: set it to 1 or more.")


def text_batches(
    processor: Processor, texts: Iterable[str], batch_size: int, groups: Iterable[int] | None = None, **arguments: Any
) -> Iterator[TextBatch]:
    """Batches of texts of like length, `BATCHES_PER_BLOCK` of them sorted at a time: memory does not grow with texts.

    Args:
        processor: any; where it is not known how it pads (another class than this package's), texts are sorted by
            their characters and every batch is its own call.
        groups: one number a text. Those of one number begin alike, and share batches where they are many.
        arguments: of the processor, for all texts.
    """
    check_batch_size(batch_size)
    grouped = ((text, 0) for text in texts) if groups is None else zip(texts, groups, strict=True)
    for block in batched(enumerate(grouped), BATCHES_PER_BLOCK * batch_size):
        positions = [position for position, _ in block]
        block_texts, block_groups = [text for _, (text, _) in block], [group for _, (_, group) in block]
        yield from _batches_of_block(processor, positions, block_texts, block_groups, batch_size, arguments)


def _batches_of_block(
    processor: Processor,
    positions: list[int],
    texts: list[str],
    groups: list[int],
    batch_size: int,
    arguments: Mapping[str, Any],
) -> Iterator[TextBatch]:
    lengths, all_ids_NT, all_masks_NT = [len(text) for text in texts], None, None
    if pads_as_asked(processor) and not arguments:
        all_ids_NT, all_masks_NT = tokenized(processor, texts)
        lengths = text_lengths(processor, all_ids_NT, all_masks_NT)
    for rows in _rows_of_like_length(groups, lengths, batch_size):
        at = [positions[row] for row in rows]
        if all_ids_NT is None:
            yield TextBatch(at, *tokenized(processor, [texts[row] for row in rows], **arguments))
            continue
        longest, shortest = max(lengths[row] for row in rows), min(lengths[row] for row in rows)
        ids_BT = all_ids_NT[rows, :longest]
        if all_masks_NT is None:
            yield TextBatch(at, ids_BT, None, _shared_prefix(ids_BT, shortest))
        else:
            yield TextBatch(at, ids_BT, all_masks_NT[rows, :longest])


def encode_batch(model: DualEncoder, batch: TextBatch) -> torch.Tensor:
    """(B, D) float32 unit embeddings on the model's device, from one forward pass."""
    mask = batch.attention_mask
    sharing: dict[str, Any] = {}
    if batch.shared_prefix and getattr(model, "has_shared_prefix", False):
        sharing["shared_prefix"] = batch.shared_prefix
    embeddings_BD = model.encode_text(
        batch.input_ids.to(model.device),
        None if mask is None else mask.to(model.device),
        normalize=False,
        **sharing,
    )
    # In half precision a unit embedding is only unit to three digits: normalize after widening.
    return F.normalize(embeddings_BD.float(), dim=-1)


def tokenized(
    processor: Processor, texts: Sequence[str], **arguments: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids (N, T), and their mask where the processor makes one."""
    given = {"padding": True, "truncation": True, **arguments, "return_tensors": "pt"}
    encoding = processor(text=list(texts), **given)
    return encoding["input_ids"], encoding.get("attention_mask")


def pads_as_asked(processor: Processor) -> bool:
    """Whether the processor pads texts on the right, to the longest of a call, so that padding can be cut off."""
    tokenizer: Any = getattr(processor, "tokenizer", None)
    is_known = getattr(processor, "text_padding", None) == "longest"
    return is_known and tokenizer.padding_side == "right" and tokenizer.pad_token_id is not None


def text_lengths(processor: Processor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[int]:
    """The tokens of each text; without a mask, one that ends like padding counts as well."""
    if attention_mask is not None:
        return attention_mask.sum(1).tolist()
    tokenizer: Any = getattr(processor, "tokenizer", None)
    padding = tokenizer.pad_token_id
    # Of the last token that is no padding, and one more where texts end with what they are padded with.
    places_T = torch.arange(1, input_ids.shape[1] + 1)
    lengths_N = ((input_ids != padding) * places_T).amax(1) + (tokenizer.eos_token_id == padding)
    return lengths_N.clamp(1, input_ids.shape[1]).tolist()


def _rows_of_like_length(groups: list[int], lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Rows of a block in batches: large groups by themselves, the others together, each sorted by length."""
    together: list[int] = []
    for _, found in groupby(sorted(range(len(groups)), key=groups.__getitem__), key=groups.__getitem__):
        rows = list(found)
        # Batches of few texts are slower than what they share is worth.
        if len(rows) >= max(batch_size // 4, LEAST_SHARING_TEXTS):
            yield from batched(sorted(rows, key=lengths.__getitem__), batch_size)
        else:
            together += rows
    yield from batched(sorted(together, key=lengths.__getitem__), batch_size)


def _shared_prefix(ids_BT: torch.Tensor, shortest: int) -> int:
    """How many tokens all texts begin with, at least one short of the shortest; 0 where it is not worth a look."""
    if len(ids_BT) < LEAST_SHARING_TEXTS:
        return 0
    is_equal_T = (ids_BT == ids_BT[:1]).all(0)
    count = min(int(is_equal_T.long().cumprod(0).sum()), shortest - 1)
    return count if count >= LEAST_SHARED_TOKENS else 0
