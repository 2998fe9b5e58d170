"""Where one image lies within another: the box of one that the other shows, by correlation and then by least squares.

Both are small squares of luminance. A crop shows a box of the image that it was cut from, and an image a box of its
copy with a border: one lies within the other. Two frames of a moving camera each show what the other does not.
"""

# Shapes: S side of a square, W windows along one axis, B side of what windows are compared at.

from dataclasses import dataclass
from functools import cache

import numpy as np

# Boxes are searched on a grid of GRID pixels, from SMALLEST pixels on, each compared at BASE x BASE.
GRID, SMALLEST, BASE = 16, 12, 8
# Steps of least squares on small blurred squares, and then on sharp ones.
BLURRED_STEPS, SHARP_STEPS = 8, 8
BLUR_OF_SMALL, BLUR_OF_SHARP = 1.2, 0.8
# The largest move of an edge in one step, as a fraction of the side, and the one at which steps end.
LARGEST_MOVE, SMALLEST_MOVE = 0.04, 3e-4
# Luminances that differ by more are of something else, not of a box that is a little off.
NOISE = 0.1
_EDGES = np.arange(4)
# So many boxes of the grid are refined, fewer where one fits like this.
STARTS, SURE = 3, 0.99


@dataclass(frozen=True)
class Alignment:
    """Where the inner image lies in the outer one.

    Attributes:
        is_first_inner: whether the first of the two that were compared is the inner one.
        box: (top, bottom, left, right) of the inner one in the outer one, whose edges are 0 and 1.
        correlation: of their luminance within the box.
    """

    is_first_inner: bool
    box: tuple[float, float, float, float]
    correlation: float

    @property
    def overhang(self) -> float:
        """How far the inner image reaches out of the outer one, as a fraction of its own side."""
        top, bottom, left, right = self.box
        height, width = bottom - top, right - left
        return max(0.0, -top / height, (bottom - 1) / height, -left / width, (right - 1) / width)

    def turned(self) -> "Alignment":
        """The same with the inner one for the outer one, where that lies within it."""
        top, bottom, left, right = self.box
        height, width = bottom - top, right - left
        box = -top / height, (1 - top) / height, -left / width, (1 - left) / width
        other = Alignment(not self.is_first_inner, box, self.correlation)
        return other if other.overhang < self.overhang else self


class Square:
    """What is kept of an image for being aligned, 35 kilobytes.

    Attributes:
        half: (S / 2, S / 2) luminance at half the size.
        windows: (W * W, BASE * BASE) float16: boxes of it that are looked at, centered and of unit length.
        whole: (BASE * BASE,): all of it, likewise.
    """

    def __init__(self, luma_SS: np.ndarray):
        side = len(luma_SS)
        self.half = luma_SS.reshape(side // 2, 2, side // 2, 2).mean((1, 3))
        grid = luma_SS.reshape(GRID, side // GRID, GRID, -1).mean((1, 3))
        operator, edges = _windows()
        flat = operator.reshape(-1, GRID)
        cells = (flat @ grid @ flat.T).reshape(len(edges), BASE, len(edges), BASE).transpose(0, 2, 1, 3)
        self.windows = _centered(cells.reshape(-1, BASE * BASE)).astype(np.float16)
        self.whole = _centered(grid.reshape(BASE, GRID // BASE, BASE, -1).mean((1, 3)).reshape(1, -1))[0]

    def boxes_like(self, inner: "Square", count: int) -> list[tuple[float, tuple]]:
        """(correlation, box) of the boxes that look most like the whole of another."""
        scores = self.windows.astype(np.float32) @ inner.whole
        _, edges = _windows()
        best = np.argpartition(-scores, count)[:count]
        rows, columns = np.divmod(best, len(edges))
        return [
            (float(scores[at]), (*edges[row], *edges[column]))
            for at, row, column in zip(best, rows, columns, strict=True)
        ]


@cache
def _windows() -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Operators (W, BASE, GRID) that average a window of GRID pixels to BASE, and the windows' edges."""
    edges = [
        (first / GRID, (first + size) / GRID) for size in range(SMALLEST, GRID + 1) for first in range(GRID + 1 - size)
    ]
    return np.stack([averaging(low, high, BASE, GRID) for low, high in edges]), edges


def averaging(low: float, high: float, count: int, side: int) -> np.ndarray:
    """(count, side) float32: means over `count` equal parts of [low, high] of a row of `side` pixels from 0 to 1."""
    cuts = np.linspace(low * side, high * side, count + 1)
    pixels = np.arange(side)
    overlap = np.minimum(cuts[1:, None], pixels + 1) - np.maximum(cuts[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    return (weights / np.maximum(weights.sum(1, keepdims=True), 1e-6)).astype(np.float32)


@cache
def blurring(deviation: float, side: int) -> np.ndarray:
    """(side, side) float32: a Gaussian of so many pixels; edges are repeated."""
    if deviation <= 0:
        return np.eye(side, dtype=np.float32)
    reach = int(np.ceil(3 * deviation))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / deviation) ** 2)
    operator = np.zeros((side, side))
    for offset, weight in zip(offsets, kernel / kernel.sum(), strict=True):
        operator[np.arange(side), np.clip(np.arange(side) + offset, 0, side - 1)] += weight
    return operator.astype(np.float32)


def blurred(square: np.ndarray, deviation: float) -> np.ndarray:
    operator = blurring(deviation, square.shape[0])
    return operator @ square @ operator.T


def align(
    first: Square, second: Square, lumas: tuple[np.ndarray, np.ndarray], *, least_coarse: float, least_fine: float
) -> Alignment | None:
    """Where one of two images lies within the other; None where they look nothing alike.

    Args:
        lumas: (S, S) luminance of both.
        least_coarse: correlation of the best box on the grid, below which nothing more is tried.
        least_fine: the same at half the size after least squares.
    """
    starts = [(score, True, box) for score, box in second.boxes_like(first, 2)]
    starts += [(score, False, box) for score, box in first.boxes_like(second, 2)]
    starts.sort(key=lambda start: -start[0])
    if starts[0][0] < least_coarse:
        return None
    halves = [blurred(square.half, BLUR_OF_SMALL) for square in (first, second)]
    found = []
    for _, is_first_inner, box in starts[:STARTS]:
        inner, outer = halves if is_first_inner else halves[::-1]
        found.append(Alignment(is_first_inner, *refine(inner, outer, box, BLURRED_STEPS, margin=3)))
        if found[-1].correlation > SURE:
            break
    best = max(found, key=lambda one: one.correlation)
    if best.correlation < least_fine:
        return None
    sharp = [blurred(luma, BLUR_OF_SHARP) for luma in lumas]
    inner, outer = sharp if best.is_first_inner else sharp[::-1]
    return Alignment(best.is_first_inner, *refine(inner, outer, best.box, SHARP_STEPS, margin=3, noise=NOISE)).turned()


def refine(
    inner: np.ndarray, outer: np.ndarray, box: tuple, steps: int, *, margin: int, noise: float | None = None
) -> tuple[tuple, float]:
    """The box of the outer square that fits the inner one best near a box, and the correlation there.

    The inner image is gain x outer + offset; the four edges of the box, gain and offset are found by least squares,
    step by step. Points out of the outer square do not count.

    Args:
        margin: so many pixels at the inner one's edges do not count, where a border of the outer one is blurred in.
        noise: differences of luminance beyond it count less, so that a text on one of them moves nothing.
    """
    for _ in range(steps):
        moved, move = _step(inner, outer, box, margin, noise)
        if moved is None:
            return box, -1.0
        box = moved
        if move < SMALLEST_MOVE:
            break
    return box, correlation_at(inner, outer, box, margin)


class _Samples:
    """Linear interpolation along one axis of a square, at the middles of as many equal parts of [low, high]."""

    def __init__(self, low: float, high: float, side: int):
        self.along = (np.arange(side, dtype=np.float32) + 0.5) / side
        places = low + self.along * (high - low)
        at = places * side - 0.5
        self.left = np.minimum(np.maximum(at, 0), side - 1.001).astype(np.intp)
        self.weight = np.minimum(np.maximum(at - self.left, 0), 1).astype(np.float32)
        self.is_in = (places >= 0) & (places <= 1)

    def rows(self, square: np.ndarray) -> np.ndarray:
        weight = self.weight[:, None]
        return square[self.left] * (1 - weight) + square[self.left + 1] * weight

    def row_slopes(self, square: np.ndarray) -> np.ndarray:
        """The derivative of `rows` by the places, of which the square's side is 1."""
        return (square[self.left + 1] - square[self.left]) * len(square)


def sample(square: np.ndarray, box: tuple) -> np.ndarray:
    """A box of a square, as large as the square itself."""
    side = len(square)
    by_rows = _Samples(box[0], box[1], side).rows(square)
    return _Samples(box[2], box[3], side).rows(by_rows.swapaxes(0, 1)).swapaxes(0, 1)


def _step(inner: np.ndarray, outer: np.ndarray, box: tuple, margin: int, noise: float | None):
    """The box after one step of least squares, None where there is none, and the largest move of an edge."""
    side = len(inner)
    rows, columns = _Samples(box[0], box[1], side), _Samples(box[2], box[3], side)
    counted = (slice(margin, side - margin),) * 2
    is_in = (rows.is_in[:, None] & columns.is_in)[counted].ravel()
    if is_in.mean() < 0.6:
        return None, 0.0
    by_rows = rows.rows(outer)
    moved = columns.rows(by_rows.T).T
    right = columns.row_slopes(by_rows.T).T
    down = columns.rows(rows.row_slopes(outer).T).T
    below, beyond = rows.along[:, None], columns.along
    parts = (down * (1 - below), down * below, right * (1 - beyond), right * beyond, moved, np.ones_like(moved))
    terms = np.stack([part[counted].ravel() for part in parts]) * is_in
    target = inner[counted].ravel() * is_in
    found = _least_squares(terms, terms, target)
    if noise is not None:
        weighted = terms / (1 + np.square((target - found @ terms) / noise))
        found = _least_squares(terms, weighted, target)
    gain = found[4]
    if gain < 0.1:
        return None, 0.0
    moves = np.clip(found[:4] / gain, -LARGEST_MOVE, LARGEST_MOVE)
    box = tuple((np.array(box) + moves).tolist())
    if min(box[1] - box[0], box[3] - box[2]) < 0.5:
        return None, 0.0
    return box, float(np.abs(moves).max())


def _least_squares(terms: np.ndarray, weighted: np.ndarray, target: np.ndarray) -> np.ndarray:
    products = (weighted @ terms.T).astype(np.float64)
    # Where there is nothing to see along an edge, the edge stays.
    products[_EDGES, _EDGES] += 1e-4 * np.trace(products[:4, :4]) + 1e-6
    return np.linalg.solve(products, (weighted @ target).astype(np.float64))


def correlation_at(inner: np.ndarray, outer: np.ndarray, box: tuple, margin: int = 0) -> float:
    """Of the inner square with a box of the outer one, over the points that lie in both."""
    side = len(inner)
    counted = (slice(margin, side - margin),) * 2
    is_in = _Samples(box[0], box[1], side).is_in[:, None] & _Samples(box[2], box[3], side).is_in
    is_in = is_in[counted].ravel()
    if is_in.mean() < 0.6:
        return -1.0
    pair = np.stack([inner[counted].ravel()[is_in], sample(outer, box)[counted].ravel()[is_in]])
    one, other = _centered(pair)
    return float(one @ other)


def _centered(rows: np.ndarray) -> np.ndarray:
    """Rows less their mean, of unit length; rows of one value are zeros."""
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(length, 1e-6)
