"""What an index knows about its scores: means of both modalities, and what prompts about anything at all reach on it.

A fixed bank of short prompts (things, places, actions, textures) is encoded once for a model. Most of them show on few
of one's images, and some on none: how far the best score of a question lies above those of the bank says whether the
index holds what is asked for. Where names of what such images show are given, these compete with the question for the
images that it finds.
"""

# Shapes: N images, M prompts, J names, K rows found, D width of the shared space.

from collections.abc import Mapping
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
# Their products with many names are held at a time.
ROWS_AT_ONCE = 8192
_UPPER = float(np.log(np.log(2)) - np.log(-np.log(0.95)))
_LOWER = float(np.log(-np.log(0.1)) - np.log(np.log(2)))
# Texts of a greater cosine are one text.
SAME = 0.995
# So many standard deviations of a name's cosines with the images lie in one unit of the exponent. Both constants were
# chosen on the styles that the emoji model was trained on.
SHARPNESS = 5.0
# Of the plain cosine beside the one that names compete with.
PLAIN = 0.25
# So many of a question's rows are looked at.
LOOKED_AT = 20
# Half of the bank's prompts, which know nothing of these images, reach this match probability: below it, a match is
# low. Of right first images few are below it, and of questions about what is not there a quarter.
LOW = 0.05


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
        names: (J, D) unit embeddings of texts that name what such images show, or of none.
        text_mean, image_mean: (D,) means of the bank's and of the index's unit embeddings.
        covariance: (D, D) of the index's embeddings.
        sharpness: (1,) the factor on cosines with names, over which names compete.
        bank_evidence: (M,) sorted `evidence` of each prompt.
    """

    bank: np.ndarray
    names: np.ndarray
    text_mean: np.ndarray
    image_mean: np.ndarray
    covariance: np.ndarray
    sharpness: np.ndarray
    bank_evidence: np.ndarray

    def evidence(self, query: np.ndarray, rows: np.ndarray) -> float:
        """How much the best rows of a query speak for its being there.

        Without names the greatest cosine, over the mean of all images: some texts lie nearer to any image than others
        do. With names, an image that a name describes better than the query does
        speaks against it: from each image's cosine the soft maximum of its cosines with the names is taken off
        (inverted softmax, Smith et al. 2017). A name that is the query itself does not compete.

        Args:
            query: (D,).
            rows: (K, D), best first.
        """
        scores = rows @ query - query @ self.image_mean
        if not len(self.names):
            return float(scores.max())
        others = self.names[self.names @ query < SAME]
        return float(_less_names(scores[None], rows @ others.T, float(self.sharpness[0])).max())

    def match_probability(self, query: np.ndarray, rows: np.ndarray) -> float:
        """How likely the index holds what a query asks for, from 0 to 1.

        A logistic curve over the evidence. That of texts which match nothing is as greatest values of many draws are
        (Gumbel): the lower half of the bank's, which is of prompts that match little, says where 19 of 20 such texts
        lie below. There the curve is at a half; at the bank's median it is at 1 in 20.
        """
        low, median = np.quantile(self.bank_evidence, (0.1, 0.5))
        # Of a Gumbel distribution, from its median to the quantile 0.95, and down to the quantile 0.1.
        to_middle = max(float(median - low), 1e-6) * _UPPER / _LOWER
        slope = to_middle / np.log(1 / LOW - 1)
        return float(1 / (1 + np.exp(-np.clip((self.evidence(query, rows) - median - to_middle) / slope, -50, 50))))

    def to_bytes(self, **others: np.ndarray) -> bytes:
        return to_bytes({**{item.name: getattr(self, item.name) for item in fields(self)}, **others})


def to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(one, np.float32) for name, one in tensors.items()})


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return load(content) if content else {}


def read_calibration(entry: ModelEntry) -> Calibration | None:
    """The calibration of a model, or None before its first update is done."""
    tensors = read_tensors(entry.tensors)
    names = [item.name for item in fields(Calibration)]
    return Calibration(**{name: tensors[name] for name in names}) if set(names) <= tensors.keys() else None


def _less_names(scores: np.ndarray, of_names: np.ndarray, sharpness: float) -> np.ndarray:
    """(M, K) cosines of texts with rows, less the soft maximum of the rows' (K, J) with names."""
    if not of_names.shape[1]:
        return (1 + PLAIN) * scores
    highest = of_names.max(1, keepdims=True)
    soft = np.log(np.exp(sharpness * (of_names - highest)).sum(1)) / sharpness + highest[:, 0]
    return (1 + PLAIN) * scores - soft


def calibrate(
    store: Store, entry: ModelEntry, bank: np.ndarray, names: np.ndarray | None = None
) -> tuple[Calibration, np.ndarray]:
    """The calibration of an index, and (M, 10) the best scores of each prompt, exact, in falling order.

    Every row is read once.
    """
    width = entry.width
    given = np.zeros((0, width), np.float32) if names is None else names
    total = store.read(entry, lambda table: table.count_rows(IS_FOUND))
    scan = store.read(entry, lambda table: _Scan(bank, given, max(1, total // SAMPLE)).through(table))
    mean = scan.sums / max(scan.count, 1)
    covariance = scan.products / max(scan.count, 1) - np.outer(mean, mean)
    shift = (1 + PLAIN if len(given) else 1) * (bank @ mean)
    evidence = np.sort(scan.evidence - shift) if scan.count > 1 else np.zeros(0)
    found = (mean, covariance, np.array([scan.sharpness]), evidence)
    return Calibration(bank, given, bank.mean(0), *(one.astype(np.float32) for one in found)), scan.best


class _Scan:
    """What one passage over the rows gathers; a second try begins with a new one."""

    def __init__(self, bank: np.ndarray, names: np.ndarray, stride: int):
        # As LanceDB has a question to a column of float16.
        self.bank, self.names, self.stride = bank.astype(np.float16).astype(np.float32), names, stride
        self.best = np.full((len(bank), 10), -np.inf, np.float32)
        self.evidence = np.full(len(bank), -np.inf, np.float32)
        self.count, self.sharpness = 0, 0.0
        self.sums, self.products = np.zeros(bank.shape[1]), np.zeros((bank.shape[1], bank.shape[1]))
        # Prompts that are among the names themselves.
        self.same = bank @ names.T >= SAME

    def through(self, table) -> "_Scan":
        query = table.search().where(IS_FOUND).select([EMBEDDING]).limit(None)
        for batch in query.to_batches():
            rows = as_matrix(pa.chunked_array([batch.column(EMBEDDING)]))
            for first in range(0, len(rows), ROWS_AT_ONCE):
                self._add(rows[first : first + ROWS_AT_ONCE])
        return self

    def _add(self, rows: np.ndarray) -> None:
        scores = self.bank @ rows.T
        together = np.concatenate([self.best, scores], 1)
        kept = self.best.shape[1]
        self.best = -np.sort(-np.partition(together, -kept, axis=1)[:, -kept:], axis=1)
        self.evidence = np.maximum(self.evidence, self._evidence(scores, rows).max(1))
        sample = rows[:: self.stride].astype(np.float64)
        self.sums += sample.sum(0)
        self.products += sample.T @ sample
        self.count += len(sample)

    def _evidence(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if not len(self.names):
            return scores
        of_names = rows @ self.names.T
        if not self.sharpness:
            self.sharpness = SHARPNESS / max(float(of_names.std()), 1e-6)
        found = _less_names(scores, of_names, self.sharpness)
        for at in np.flatnonzero(self.same.any(1)):
            found[at] = _less_names(scores[at : at + 1], of_names[:, ~self.same[at]], self.sharpness)[0]
        return found
