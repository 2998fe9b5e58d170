"""The approximate index of many rows, and how much of it a question reads: chosen by recall, measured with texts.

Texts lie off the images' cone, so that recall measured with images, or a default, says nothing about questions: at a
million rows one with 0.99 for images may find one in eight for texts.
"""

import time
from typing import Any

import numpy as np

from .calibration import Calibration
from .queries import EXACT_ROWS, find
from .store import EMBEDDING, ModelEntry, Store

# Recall of the first ten, over the bank's prompts.
WANTED_RECALL = 0.995
# How many times more rows are compared exactly than are asked for; tried in this order.
REFINE_FACTORS = (10, 30, 100)
# Questions of the bank that are measured.
QUESTIONS = 64
INDEX_NAME = f"{EMBEDDING}_idx"


def partitions_of(rows: int) -> int:
    return int(np.clip(rows / 1000, 16, 4096))


def is_wanted(entry: ModelEntry, rows: int) -> bool:
    """Whether the approximate index is to be made: there is none, or half of the rows are newer."""
    built = entry.facts.get("approximate", {}).get("built_rows", 0)
    return rows > EXACT_ROWS and rows > 1.5 * built


def build(store: Store, entry: ModelEntry) -> None:
    """Makes the approximate index, in place of one that there may be."""
    from lancedb.index import IvfRq

    table = store.images(entry)
    count = table.count_rows()
    config = IvfRq(distance_type="dot", num_partitions=partitions_of(count), num_bits=1)
    table.create_index(EMBEDDING, config=config, replace=True, name=INDEX_NAME)


def measure(store: Store, entry: ModelEntry, calibration: Calibration, best: np.ndarray, rows: int) -> dict[str, Any]:
    """The fewest partitions that give WANTED_RECALL, with what was measured; `best`: (M, 10) exact scores.

    `is_used` is False if no number of partitions does: then every row is compared.

    A row counts as found if its score reaches that of the tenth: rows of equal scores are equally good.
    """
    partitions = partitions_of(rows)
    asked = np.linspace(0, len(calibration.bank) - 1, min(QUESTIONS, len(calibration.bank))).astype(int)
    facts: dict[str, Any] = {"built_rows": rows, "partitions": partitions}

    def measured(nprobes: int, refine_factor: int) -> dict[str, Any]:
        tried = {**facts, "nprobes": nprobes, "refine_factor": refine_factor}
        recall, milliseconds = _recall(store, entry, tried, calibration.bank[asked], best[asked])
        reached = recall >= WANTED_RECALL
        return {**tried, "recall_at_10": recall, "milliseconds": milliseconds, "is_used": reached}

    chosen: dict[str, Any] = {}
    for refine_factor in REFINE_FACTORS:
        chosen = measured(partitions, refine_factor)
        if chosen["is_used"]:
            break
    else:
        return chosen
    tried = sorted({min(partitions, n) for n in (10, 20, 40, 60, 100, 150, 220, 320, 480, 700, 1000, partitions)})
    low, high = 0, len(tried) - 1
    while low < high:
        middle = (low + high) // 2
        found = measured(tried[middle], chosen["refine_factor"])
        if found["is_used"]:
            chosen, high = found, middle
        else:
            low = middle + 1
    return chosen


def _recall(
    store: Store, entry: ModelEntry, facts: dict, queries: np.ndarray, best: np.ndarray
) -> tuple[float, float]:
    """Recall of the first ten, and the median time of a question in milliseconds."""
    tried = ModelEntry(entry.id, entry.source, width=entry.width, facts={"approximate": {**facts, "is_used": True}})
    found, times = [], []
    for query, exact in zip(queries, best, strict=True):
        begun = time.perf_counter()
        rows, _, _ = find(store, tried, query, 10, is_exact=False)
        times.append(time.perf_counter() - begun)
        # The last bit differs between products of one row and of many.
        least = exact[np.isfinite(exact)].min() - 1e-4
        found.append(sum(row["score"] >= least for row in rows) / max(np.isfinite(exact).sum(), 1))
    return float(np.mean(np.minimum(found, 1.0))), float(np.median(times)) * 1000
