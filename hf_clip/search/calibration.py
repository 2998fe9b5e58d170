"""What an index knows about its scores: means of both modalities, and what prompts about anything at all reach on it.

A fixed bank of short prompts (things, places, actions, textures) is encoded once for a model. Most of them show on few
of one's images, and some on none: how far the best score of a question lies above those of the bank says whether the
index holds what is asked for. A raw cosine does not, as its size differs from text to text more than from a match to
none.
"""

# Shapes: N images, M prompts, D width of the shared space.

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pyarrow as pa

from .store import EMBEDDING, IS_FOUND, ModelEntry, Store, as_matrix

# Data sets of the bundled prompts, and how many of their classes are in the bank.
BANK = {
    "ImageNet": 120, "SUN397": 60, "UCF101": 40, "Food101": 24, "DescribableTextures": 16, "Caltech101": 24,
}  # fmt: skip
# So many rows give means and covariances to a hundredth.
SAMPLE = 20_000
_UPPER = float(np.log(np.log(2)) - np.log(-np.log(0.95)))
_LOWER = float(np.log(-np.log(0.1)) - np.log(np.log(2)))
# A question whose match probability is below it is about something that is not there.
CUTOFF = 0.5


@cache
def bank_prompts() -> tuple[str, ...]:
    """The bank: class names of data sets that differ, evenly spaced."""
    from hf_clip.prompts import load_prompts

    found: dict[str, None] = {}
    for name, count in BANK.items():
        labels = load_prompts(name).labels
        found.update(dict.fromkeys(labels[at * len(labels) // count] for at in range(count)))
    return tuple(found)


@dataclass
class Calibration:
    """Numbers of a model on an index.

    Attributes:
        bank: (M, D) unit embeddings of the bank's prompts.
        text_mean, image_mean: (D,) means of the bank's and of the index's unit embeddings.
        covariance: (D, D) of the index's embeddings.
        bank_heights: (M,) sorted `height` of each prompt's best score.
    """

    bank: np.ndarray
    text_mean: np.ndarray
    image_mean: np.ndarray
    covariance: np.ndarray
    bank_heights: np.ndarray

    def height(self, query: np.ndarray, best: float | np.ndarray) -> np.ndarray:
        """By how many standard deviations of its scores on this index the best score of a query lies over their mean.

        Args:
            query: (D,) or (M, D).
            best: the greatest product with a row.
        """
        spread = np.sqrt(np.maximum(((query @ self.covariance) * query).sum(-1), 1e-12))
        return (best - query @ self.image_mean) / spread

    def match_probability(self, query: np.ndarray, best: float) -> float:
        """How likely the index holds what a query asks for, from 0 to 1.

        A logistic curve over the height of its best score. Heights of texts that match nothing are as greatest values
        of many draws are (Gumbel): the lower half of the bank's heights, which are those of prompts that match little,
        says where 19 of 20 such texts lie below. There the curve is at a half; at the bank's median it is at 1 in 20.
        """
        low, median = np.quantile(self.bank_heights, (0.1, 0.5))
        # Of a Gumbel distribution, from its median to the quantile 0.95, and down to the quantile 0.1.
        to_middle = max(float(median - low), 1e-6) * _UPPER / _LOWER
        slope = to_middle / np.log(19)
        return float(1 / (1 + np.exp(-np.clip((self.height(query, best) - median - to_middle) / slope, -50, 50))))

    def to_bytes(self, **others: np.ndarray) -> bytes:
        from safetensors.numpy import save

        tensors = {item.name: np.ascontiguousarray(getattr(self, item.name), np.float32) for item in fields(self)}
        return save({**tensors, **others})


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return load(content) if content else {}


def read_calibration(entry: ModelEntry) -> Calibration | None:
    """The calibration of a model, or None before its first update is done."""
    tensors = read_tensors(entry.tensors)
    names = [item.name for item in fields(Calibration)]
    return Calibration(**{name: tensors[name] for name in names}) if set(names) <= tensors.keys() else None


def calibrate(store: Store, entry: ModelEntry, bank: np.ndarray) -> tuple[Calibration, np.ndarray]:
    """The calibration of an index, and (M, 10) the best scores of each prompt, exact, in falling order.

    Every row is read once.
    """
    count, width = 0, entry.width
    best = np.full((len(bank), 10), -np.inf, np.float32)
    total = store.read(entry, lambda table: table.count_rows(IS_FOUND))
    stride = max(1, total // SAMPLE)
    sums, products = np.zeros(width), np.zeros((width, width))
    content = store.read(entry, lambda table: _scan(table, bank, best, stride, sums, products))
    best, count = content
    mean = sums / max(count, 1)
    covariance = products / max(count, 1) - np.outer(mean, mean)
    empty = np.zeros(0, np.float32)
    made = Calibration(bank, bank.mean(0), mean.astype(np.float32), covariance.astype(np.float32), empty)
    if count > 1:
        made.bank_heights = np.sort(made.height(bank, best[:, 0])).astype(np.float32)
    return made, best


def _scan(table, bank, best, stride, sums, products):
    # A second try begins again.
    best, count = best.copy(), 0
    # As LanceDB has a question to a column of float16.
    bank = bank.astype(np.float16).astype(np.float32)
    sums[:], products[:] = 0, 0
    query = table.search().where(IS_FOUND).select([EMBEDDING]).limit(None)
    for batch in query.to_batches():
        rows = as_matrix(pa.chunked_array([batch.column(EMBEDDING)]))
        if not len(rows):
            continue
        scores = bank @ rows.T
        together = np.concatenate([best, scores], 1)
        kept = min(best.shape[1], together.shape[1])
        best = -np.sort(-np.partition(together, -kept, axis=1)[:, -kept:], axis=1)
        sample = rows[::stride].astype(np.float64)
        sums += sample.sum(0)
        products += sample.T @ sample
        count += len(sample)
    return best, count
