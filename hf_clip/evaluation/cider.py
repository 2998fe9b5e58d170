"""CIDEr-D (Vedantam et al. 2015): how near a caption's n-grams are to those that people wrote for the same image."""

import math
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]
_Vector = tuple[dict[tuple[str, ...], float], list[float], int]

LONGEST = 4
# Of the Gaussian on the difference of two captions' lengths.
SIGMA = 6.0


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of each image's caption, 0 to 10.

    N-grams of 1 to 4 tokens count by how often they stand in a text and how few images have them in a reference; a
    candidate's count is cut to the reference's, and a Gaussian on the difference of lengths punishes other lengths.
    As images are told apart by their references, a single image scores 0.

    Args:
        candidates: tokens of one caption for each image.
        references: for each image the tokens of its references, at least one.

    Returns:
        A score for each image; the mean is the data set's.
    """
    counted = [[_ngrams(tokens) for tokens in texts] for texts in references]
    # Of images, not of references.
    frequencies: Counter[tuple[str, ...]] = Counter()
    for texts in counted:
        frequencies.update(set().union(*texts))
    log_images = math.log(len(references))
    scores = []
    for tokens, texts in zip(candidates, counted, strict=True):
        own = _vector(_ngrams(tokens), frequencies, log_images)
        others = [_vector(ngrams, frequencies, log_images) for ngrams in texts]
        scores.append(10 * sum(_similarity(own, other) for other in others) / len(others))
    return scores


def _ngrams(tokens: Tokens) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(tokens) - length + 1)
    )


def _vector(ngrams: Counter[tuple[str, ...]], frequencies: Counter, log_images: float) -> _Vector:
    """Weights by n-gram, their norms by length, and the length of the text: bigrams, as the authors' code has it."""
    weights = {ngram: count * (log_images - math.log(max(1, frequencies[ngram]))) for ngram, count in ngrams.items()}
    squares = [0.0] * LONGEST
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    length = sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
    return weights, [math.sqrt(square) for square in squares], length


def _similarity(own: _Vector, other: _Vector) -> float:
    """The mean over the lengths of n-grams of the cosines, with the candidate's weights cut."""
    sums = [0.0] * LONGEST
    for ngram, weight in own[0].items():
        theirs = other[0].get(ngram, 0.0)
        sums[len(ngram) - 1] += min(weight, theirs) * theirs
    cosines = [
        part / (one * two) if one and two else part for part, one, two in zip(sums, own[1], other[1], strict=True)
    ]
    return sum(cosines) / LONGEST * math.exp(-((own[2] - other[2]) ** 2) / (2 * SIGMA**2))
