"""The texts of a step: tokens of captions and keywords, computed in one pass, and in chunks of like length.

Padding is work, and the longest of a batch is several times its mean. Shape suffixes: N texts, captions first and
keywords behind them; T tokens.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch

from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.text_batches_hf_clip import pads_as_asked, text_lengths

# What a further chunk costs, in tokens: it starts all operations and reads all weights once more.
CHUNK_IN_TOKENS = {"cpu": 64, "gpu": 2048}


class TextTokens(NamedTuple):
    """Texts as the processor makes them.

    Attributes:
        input_ids: (N, T), padded to the longest.
        attention_mask: (N, T), where the text tower needs one.
        lengths: (N,) tokens of each; T where the padding must stay.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    lengths: np.ndarray


class StepTexts(NamedTuple):
    """The texts of a step, each in one micro-batch.

    Attributes:
        parts: the arguments of the text tower, for each micro-batch, for each of its chunks.
        rows: the texts of each micro-batch, in the order of its chunks.
        places: where each text is among all that the micro-batches hold.
        images: of each micro-batch whose first chunks are its images' captions: for each of those chunks, which of
            its images each caption belongs to. None where texts and images of a micro-batch are not pairs.
    """

    parts: list[list[dict[str, torch.Tensor]]]
    rows: list[torch.Tensor]
    places: torch.Tensor
    images: list[list[torch.Tensor]] | None = None


def tokens_of(processor: HFCLIPProcessor, captions: Sequence[str], further: Sequence[str] | None) -> TextTokens:
    """The tokens of captions and of further texts (keywords, hard negatives)."""
    encoding = processor(text=[*captions, *(further or [])], return_tensors="pt")
    ids_NT, mask_NT = encoding["input_ids"], encoding.get("attention_mask")
    if pads_as_asked(processor):
        lengths = np.array(text_lengths(processor, ids_NT, mask_NT))
    else:
        lengths = np.full(len(ids_NT), ids_NT.shape[1])
    return TextTokens(ids_NT, mask_NT, lengths)


def texts_of_step(tokens: TextTokens, parts: int, device: torch.device, has_one_chunk: bool = False) -> StepTexts:
    """The texts sorted by length and dealt to `parts` micro-batches that have as many tokens, in chunks.

    Args:
        has_one_chunk: a single chunk each, so that all processes compute as many.
    """
    order = np.argsort(tokens.lengths, kind="stable")
    cost = chunk_cost(tokens, device, has_one_chunk)
    made, rows = [], []
    for first, last in _even_parts(tokens.lengths[order], parts):
        made.append([chunk for _, chunk in in_chunks(tokens, order[first:last], cost, device)])
        rows.append(order[first:last])
    return StepTexts(made, [torch.from_numpy(each).to(device) for each in rows], places_of(rows).to(device))


def chunk_cost(tokens: TextTokens, device: torch.device, has_one_chunk: bool) -> int:
    """What a further chunk costs in tokens; more than all there are where there is to be one chunk."""
    if has_one_chunk:
        return len(tokens.lengths) * int(tokens.lengths.max())
    return CHUNK_IN_TOKENS["cpu" if device.type == "cpu" else "gpu"]


def in_chunks(
    tokens: TextTokens, order: np.ndarray, cost: int, device: torch.device
) -> list[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Texts in an order of rising length in chunks: which they are, and the arguments of the text tower."""
    chunks, lengths = [], tokens.lengths[order]
    for start, end in _chunks(lengths, cost):
        some, longest = torch.from_numpy(order[start:end]), int(lengths[end - 1])
        chunk = {"input_ids": tokens.input_ids[some, :longest].to(device)}
        if tokens.attention_mask is not None:
            chunk["attention_mask"] = tokens.attention_mask[some, :longest].to(device)
        chunks.append((order[start:end], chunk))
    return chunks


def places_of(rows: list[np.ndarray]) -> torch.Tensor:
    """Where each text is in all rows, one micro-batch's behind the other's."""
    order = np.concatenate(rows)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return torch.from_numpy(places)


def _even_parts(lengths: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Cuts between which there are about as many tokens, and at least one text."""
    total, count = np.cumsum(lengths), len(lengths)
    cuts = [0]
    for index in range(1, parts):
        cut = int(np.searchsorted(total, total[-1] * index / parts, side="left")) + 1
        cuts.append(min(max(cut, cuts[-1] + 1), count - parts + index))
    return list(pairwise([*cuts, count]))


def _chunks(lengths: np.ndarray, cost: int) -> list[tuple[int, int]]:
    """The chunks of texts sorted by length whose padded tokens are fewest, where each costs `cost` tokens more."""
    values, counts = np.unique(lengths, return_counts=True)
    ends = [0, *accumulate(counts.tolist())]
    least, begins = [0.0], [0]
    for index, length in enumerate(values.tolist(), 1):
        costs = [least[begin] + (ends[index] - ends[begin]) * length + cost for begin in range(index)]
        begins.append(int(np.argmin(costs)))
        least.append(costs[begins[-1]])
    chunks, index = [], len(values)
    while index:
        chunks.append((ends[begins[index]], ends[index]))
        index = begins[index]
    return chunks[::-1]
