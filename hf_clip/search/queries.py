"""Questions: what is asked for as one direction in the shared space, and the rows that lie in it."""

# Shapes: D width of the shared space, K rows found.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .calibration import LOW, Calibration
from .errors import SearchError, one_line
from .store import EMBEDDING, IS_FOUND, ModelEntry, Store, as_matrix

# Up to so many rows every row is compared: it takes some 90 ms of two cores, and finds what there is.
EXACT_ROWS = 20_000
SHOWN = ("path", "width", "height", "taken")


@dataclass(frozen=True)
class Term:
    """A part of a question.

    Attributes:
        embedding: (D,), of unit length.
        is_text: of which modality, each of which has a mean of its own.
        weight: below 0 for what is not wanted.
    """

    embedding: np.ndarray
    is_text: bool
    weight: float = 1.0


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: relative to the indexed folder, FILE#ROW for a table of images.
        score: cosine similarity; for several terms, the product of the centered question with the centered image.
        width, height: in pixels.
        taken: when, as the camera has it, or None.
        row: its number in the table, by which `Index.path_of` knows it until the row is written again.
    """

    path: str
    score: float
    width: int | None = None
    height: int | None = None
    taken: str | None = None
    row: int | None = None


@dataclass
class Hits:
    """The answer to a question: a sequence of `Hit`, best first.

    Attributes:
        hits: those.
        match_probability: how likely the index holds what was asked for; None where it is not known, as for images
            and for several terms.
        is_exact: whether every row was compared.
    """

    hits: list[Hit] = field(default_factory=list)
    match_probability: float | None = None
    is_exact: bool = True

    @property
    def has_match(self) -> bool:
        """False where nothing was found, or no more alike than what prompts about anything at all find (LOW)."""
        return bool(self.hits) and (self.match_probability is None or self.match_probability >= LOW)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]


def compose(terms: Sequence[Term], calibration: Calibration | None) -> np.ndarray:
    """(D,) one direction for all terms.

    A single term is what it is. Of several, each modality's mean is taken off first: texts and images lie in two
    narrow cones, and a plain sum of a text and an image points at what all texts have in common (the modality gap;
    Liang et al. 2022).
    """
    if len(terms) == 1 and terms[0].weight > 0:
        return terms[0].embedding
    total = np.zeros_like(terms[0].embedding, np.float32)
    for term in terms:
        centered = term.embedding
        if calibration is not None:
            centered = centered - (calibration.text_mean if term.is_text else calibration.image_mean)
        total += term.weight * unit(centered)
    return unit(total)


def unit(vector: np.ndarray) -> np.ndarray:
    """(D,) float32 of unit length."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def usable(entry: ModelEntry) -> dict[str, Any] | None:
    """What is known of the approximate index of a model, if it has one that finds enough."""
    facts = entry.facts.get("approximate")
    return facts if facts is not None and facts["is_used"] else None


def find(
    store: Store,
    entry: ModelEntry,
    query: np.ndarray,
    top_k: int,
    *,
    where: str | None = None,
    is_exact: bool | None = None,
    with_embeddings: bool = False,
) -> tuple[list[dict[str, Any]], np.ndarray | None, bool]:
    """The rows with the greatest product with `query`, in falling order.

    Args:
        where: a condition in SQL. It is exact: all rows that fulfil it are compared.
        is_exact: compare all rows; by default where there is no approximate index.
        with_embeddings: give those as well.

    Returns:
        Rows with `score`, their embeddings (K, D) or None, and whether every row was compared.
    """
    facts = usable(entry)
    exact = facts is None or where is not None if is_exact is None else is_exact or facts is None
    condition = f"({where}) AND {IS_FOUND}" if where else IS_FOUND
    columns = [*SHOWN, "_distance", *([EMBEDDING] if with_embeddings else [])]

    def ask(table):
        asked = table.search(query, vector_column_name=EMBEDDING).distance_type("dot").limit(top_k).select(columns)
        asked = asked.with_row_id(True)
        if exact or facts is None:
            return asked.where(condition).bypass_vector_index().to_arrow()
        asked = asked.nprobes(facts["nprobes"]).refine_factor(facts["refine_factor"])
        # Rows without an image are in no partition; those whose file is gone are few, and filtered first.
        return asked.where(condition).to_arrow()

    try:
        found = store.read(entry, ask)
    except SearchError as error:
        cause = error.__cause__
        if where and isinstance(cause, ValueError):
            raise SearchError(f"`where={where}` cannot be understood: {_without_noise(cause)}") from cause
        raise
    embeddings = as_matrix(found[EMBEDDING]) if with_embeddings and found.num_rows else None
    rows = found.select([name for name in found.column_names if name != EMBEDDING]).to_pylist()
    for row in rows:
        row["score"] = 1 - row.pop("_distance")
    return rows, embeddings, exact


def _without_noise(error: BaseException) -> str:
    text = one_line(error)
    for noise in ("Invalid input, ", "Schema error: ", "Error parsing statement: "):
        text = text.replace(noise, "")
    # What this package adds to a condition is none of the caller's.
    text = text.replace("SELECT 1 FROM t WHERE ", "").replace(f" AND {IS_FOUND}", "")
    return text + (": texts stand in quotes, taken > '2024-01-01'" if "Utf8" in text else "")


def to_hits(rows: Sequence[dict[str, Any]]) -> list[Hit]:
    return [
        Hit(row["path"], row["score"], row["width"], row["height"], row["taken"], row.get("_rowid")) for row in rows
    ]


def diversify(rows: Sequence[dict[str, Any]], embeddings: np.ndarray, top_k: int, diversity: float) -> list[int]:
    """Places of `top_k` rows by maximal marginal relevance (Carbonell and Goldstein 1998).

    Args:
        rows: with `score`, in falling order.
        embeddings: (K, D) of the rows.
        diversity: 0 takes the best, 1 takes what is least like those taken.
    """
    scores = np.array([row["score"] for row in rows], np.float32)
    taken: list[int] = []
    is_taken = np.zeros(len(rows), bool)
    closest = np.full(len(rows), -np.inf, np.float32)
    while len(taken) < min(top_k, len(rows)):
        marginal = scores if not taken else (1 - diversity) * scores - diversity * closest
        best = int(np.argmax(np.where(is_taken, -np.inf, marginal)))
        taken.append(best)
        is_taken[best] = True
        # Row by row: all products of many rows with one another would be gigabytes.
        closest = np.maximum(closest, embeddings @ embeddings[best])
    return taken
