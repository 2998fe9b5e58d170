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
    """

    parts: list[list[dict[str, torch.Tensor]]]
    rows: list[torch.Tensor]
    places: torch.Tensor


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
    lengths = tokens.lengths[order]
    all_padded = len(lengths) * int(lengths[-1])
    cost = all_padded if has_one_chunk else CHUNK_IN_TOKENS["cpu" if device.type == "cpu" else "gpu"]
    made, rows = [], []
    for first, last in _even_parts(lengths, parts):
        chunks = []
        for start, end in _chunks(lengths[first:last], cost):
            some = torch.from_numpy(order[first + start : first + end])
            longest = int(lengths[first + end - 1])
            chunk = {"input_ids": tokens.input_ids[some, :longest].to(device)}
            if tokens.attention_mask is not None:
                chunk["attention_mask"] = tokens.attention_mask[some, :longest].to(device)
            chunks.append(chunk)
        made.append(chunks)
        rows.append(torch.from_numpy(order[first:last]).to(device))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return StepTexts(made, rows, torch.from_numpy(places).to(device))


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
