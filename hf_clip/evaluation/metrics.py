"""The numbers of classification, each from scores and labels alone."""

# Shapes: N images, C classes, K candidates kept, G bins.

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15


def accuracy(is_hit) -> float:
    """Fraction of hits; NaN of none."""
    is_hit_N = np.asarray(is_hit)
    return float(is_hit_N.mean()) if len(is_hit_N) else float("nan")


def mean_per_class(labels, is_hit) -> float:
    """`accuracy` of each class that has images, averaged over classes (scikit-learn's balanced accuracy)."""
    _, classes_N = np.unique(np.asarray(labels), return_inverse=True)
    return float((np.bincount(classes_N, np.asarray(is_hit, dtype=float)) / np.bincount(classes_N)).mean())


def expected_calibration_error(confidences, is_hit, bins: int = CALIBRATION_BINS) -> float:
    """How far confidence and accuracy are apart (Guo et al. 2017, equation 3), in bins of equal width.

    The bins are (0, 1/G], (1/G, 2/G], ..., each weighed by its fraction of the images; a confidence of 0 is in the
    first.

    Raises:
        ValueError: if there are none, they are not as many as verdicts, one is not from 0 to 1, or `bins` is below 1.
    """
    counts_G, confidences_G, hits_G = calibration_curve(confidences, is_hit, bins)
    return float(np.abs(confidences_G - hits_G) @ (counts_G / counts_G.sum()))


def calibration_curve(confidences, is_hit, bins: int = CALIBRATION_BINS) -> tuple[np.ndarray, ...]:
    """Number of images, mean confidence and accuracy of each bin of `expected_calibration_error`; 0 where empty."""
    confidences_N, is_hit_N = np.asarray(confidences, dtype=np.float64), np.asarray(is_hit, dtype=np.float64)
    if bins < 1 or not len(confidences_N) or len(confidences_N) != len(is_hit_N):
        raise ValueError(
            f"{len(confidences_N)} confidences, {len(is_hit_N)} verdicts and bins={bins}: there must be one verdict a "
            "confidence, and one or more of all."
        )
    # exp(logit - logsumexp) may end a rounding above 1.
    if not ((confidences_N >= 0) & (confidences_N <= 1 + 1e-6)).all():
        raise ValueError("confidences must lie in [0, 1]: take them after softmax or sigmoid.")
    bin_N = np.clip(np.ceil(confidences_N * bins).astype(int) - 1, 0, bins - 1)
    counts_G = np.bincount(bin_N, minlength=bins)
    divisor_G = np.maximum(counts_G, 1)
    confidences_G = np.bincount(bin_N, confidences_N, bins) / divisor_G
    return counts_G, confidences_G, np.bincount(bin_N, is_hit_N, bins) / divisor_G


def average_precision(scores, is_positive, *, points: int | None = None) -> float:
    """Area under the precision-recall steps of one class; NaN without a positive.

    Images of equal score come in together, whatever order they stand in.

    Args:
        points: None takes every step (as scikit-learn, and VOC from 2010 on); 11 takes the best precision at
            recalls of at least 0, 0.1, ..., 1 (VOC 2007, as the paper reports it).
    """
    scores_N, is_positive_N = np.asarray(scores), np.asarray(is_positive, dtype=bool)
    positives = is_positive_N.sum()
    if not positives:
        return float("nan")
    order = np.argsort(-scores_N, kind="stable")
    ends_of_ties = np.append(np.diff(scores_N[order]) != 0, True)
    hits = np.cumsum(is_positive_N[order])[ends_of_ties]
    recalls, precisions = hits / positives, hits / (np.flatnonzero(ends_of_ties) + 1)
    if points is None:
        return float(np.diff(recalls, prepend=0) @ precisions)
    wanted = np.arange(points) / (points - 1)
    # 3 of 10 positives are a recall of 0.3, whatever binary fractions make of it.
    return float(np.mean([precisions[recalls >= recall - 1e-9].max(initial=0) for recall in wanted]))


def mean_average_precision(scores, is_positive, *, points: int | None = None) -> float:
    """`average_precision` averaged over the classes that have a positive; NaN where none has."""
    classes = zip(np.asarray(scores).T, np.asarray(is_positive).T, strict=True)
    found = [average_precision(scores_N, true_N, points=points) for scores_N, true_N in classes if true_N.any()]
    return float(np.mean(found)) if found else float("nan")


def confusion_matrix(labels, predictions, class_count: int) -> np.ndarray:
    """(C, C) counts: a row for each true class, a column for each predicted one."""
    cells = np.asarray(labels) * class_count + np.asarray(predictions)
    return np.bincount(cells, minlength=class_count**2).reshape(class_count, class_count)


def frequent_confusions(confusion_matrix: np.ndarray, names: Sequence[str], limit: int = 20) -> list[dict]:
    """The false pairs (true class, predicted class) that occur most, with their counts."""
    classes = len(confusion_matrix)
    wrong = confusion_matrix * (1 - np.eye(classes, dtype=confusion_matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(cell), classes) for cell in order if wrong.flat[cell]]
    return [
        {"label": names[row], "taken_for": names[column], "images": int(wrong[row, column])} for row, column in pairs
    ]
