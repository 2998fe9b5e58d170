"""Pairs of images whose embeddings are near, from products of blocks: no more than some for each image are held."""

# Shapes: N, M images, D width of the shared space, P pairs.

from collections.abc import Callable

import numpy as np

ROWS_AT_ONCE = 2048
# Pairs are thinned to the nearest of each image whenever there are more than this; a pair takes 12 bytes.
PAIRS_AT_ONCE = 4_000_000
# Where a block has this many times more pairs than are kept, they are thinned before they are listed.
CROWDED = 8


class _Pairs:
    """Pairs found so far, and the similarity that a further one of an image must have to count."""

    def __init__(self, count: int, least: float, top_k: int, is_one_set: bool):
        self.top_k, self.is_one_set = top_k, is_one_set
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.size = 0
        self.least = np.full(count, least, np.float32)

    def add(self, rows: np.ndarray, columns: np.ndarray, similarity: np.ndarray) -> None:
        self.parts.append((rows.astype(np.int32), columns.astype(np.int32), similarity))
        self.size += len(rows)
        if self.size > PAIRS_AT_ONCE:
            self.thin()

    def thin(self) -> None:
        if not self.parts:
            return
        rows, columns, similarity = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        if self.is_one_set:
            # A pair stays while it is among the nearest of one of its two.
            both, twice = np.concatenate([rows, columns]), np.tile(similarity, 2)
            kept, self.least = _nearest(both, twice, self.top_k, self.least)
            kept = kept[: len(rows)] | kept[len(rows) :]
        else:
            kept, self.least = _nearest(rows, similarity, self.top_k, self.least)
        self.parts = [(rows[kept], columns[kept], similarity[kept])]
        self.size = int(kept.sum())


def _nearest(images: np.ndarray, similarity: np.ndarray, top_k: int, least: np.ndarray):
    """Which entries are among the `top_k` nearest of their image, and what a further one must have now."""
    order = np.lexsort((-similarity, images))
    sorted_images = images[order]
    begins = np.flatnonzero(np.r_[True, sorted_images[1:] != sorted_images[:-1]])
    place = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    kept = np.zeros(len(order), bool)
    kept[order[place < top_k]] = True
    least = least.copy()
    last = order[place == top_k - 1]
    least[images[last]] = np.maximum(least[images[last]], similarity[last])
    return kept, least


def near_pairs(
    embeds: np.ndarray,
    others: np.ndarray | None = None,
    *,
    least: float,
    top_k: int,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a cosine of at least `least` that are among the `top_k` nearest of one of the two.

    Args:
        embeds: (N, D) unit embeddings, float16 or float32.
        others: (M, D): pairs of one of `embeds` and one of these, the nearest of each of `embeds`. By default pairs
            among `embeds`, each once, the first index below the second.
        tick: is called with the number of blocks that were compared.

    Returns:
        First and second indices (P,), and cosines (P,).
    """
    is_one_set = others is None
    against = embeds if others is None else others
    pairs = _Pairs(len(embeds), least, top_k, is_one_set)
    for first in range(0, len(embeds), ROWS_AT_ONCE):
        block = embeds[first : first + ROWS_AT_ONCE].astype(np.float32)
        for second in range(first if is_one_set else 0, len(against), ROWS_AT_ONCE):
            products = block @ against[second : second + ROWS_AT_ONCE].astype(np.float32).T
            _take(pairs, products, first, second)
            tick(1)
    pairs.thin()
    if not pairs.parts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    return pairs.parts[0]


def count_blocks(rows: int, others: int | None = None) -> int:
    """How many blocks `near_pairs` compares."""
    count = -(-rows // ROWS_AT_ONCE)
    return count * (count + 1) // 2 if others is None else count * -(-others // ROWS_AT_ONCE)


def _take(pairs: _Pairs, products: np.ndarray, first: int, second: int) -> None:
    height, width = products.shape
    of_rows = pairs.least[first : first + height]
    of_columns = pairs.least[second : second + width] if pairs.is_one_set else of_rows
    found = np.flatnonzero(products.ravel() >= min(of_rows.min(), of_columns.min()))
    if not len(found):
        return
    if len(found) > CROWDED * pairs.top_k * height:
        # One more than are kept: an image is its own nearest.
        place = -min(pairs.top_k + 1, width), -min(pairs.top_k + 1, height)
        of_rows = np.maximum(of_rows, np.partition(products, place[0], axis=1)[:, place[0]])
        of_columns = (
            np.maximum(of_columns, np.partition(products, place[1], axis=0)[place[1]]) if pairs.is_one_set else of_rows
        )
        is_near = products >= of_rows[:, None]
        found = np.flatnonzero(is_near | (products >= of_columns) if pairs.is_one_set else is_near)
    rows, columns = np.divmod(found, width)
    similarity = products.ravel()[found]
    is_kept = similarity >= of_rows[rows]
    if pairs.is_one_set:
        is_kept |= similarity >= of_columns[columns]
        if first == second:
            is_kept &= rows < columns
    pairs.add(rows[is_kept] + first, columns[is_kept] + second, similarity[is_kept])
