"""Metrics of classification: by hand on cases small enough to see, ties included, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix

from hf_clip.evaluation import metrics
from tests.helpers.counts import soak_count


def test_average_precision_by_hand():
    # Best first: true, false, true, false. Precision 1 at recall 1/2, precision 2/3 at recall 1.
    assert metrics.average_precision([4, 3, 2, 1], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    # The true one ties with two false ones: all three come in together, at precision 1/3.
    assert metrics.average_precision([1, 1, 1, 0], [0, 1, 0, 0]) == pytest.approx(1 / 3)
    assert np.isnan(metrics.average_precision([1, 2], [0, 0]))


def test_eleven_points_by_hand():
    # Recalls 0 to 0.5 are had at precision 1, recalls 0.6 to 1 at best at 2/3.
    assert metrics.average_precision([4, 3, 2, 1], [1, 0, 1, 0], points=11) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # Three of ten, all first: a recall of 0.3 is one of 0.3, though 3/10 and 0.1 * 3 differ in binary.
    assert metrics.average_precision(range(10, 0, -1), [1] * 10, points=11) == 1


@settings(max_examples=soak_count(60, 3000), deadline=None)
@given(
    scores=arrays.arrays(np.float64, 12, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    truth=arrays.arrays(bool, 12).filter(np.any),
)
def test_average_precision_is_scikit_learns_ties_included(scores, truth):
    assert metrics.average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_mean_average_precision_leaves_out_classes_without_a_positive():
    random = np.random.default_rng(0)
    scores, truth = random.random((50, 4)), random.random((50, 4)) < 0.3
    truth[:, 2] = False
    used = [0, 1, 3]
    expected = average_precision_score(truth[:, used], scores[:, used], average="macro")
    assert metrics.mean_average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(metrics.mean_average_precision(scores, np.zeros_like(truth)))


def test_mean_per_class_and_confusion_are_scikit_learns():
    random = np.random.default_rng(1)
    truth, guesses = random.choice([0, 1, 3], 200), random.integers(0, 4, 200)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(truth, guesses)
    assert metrics.mean_per_class(truth, truth == guesses) == pytest.approx(expected, abs=1e-12)
    counts = metrics.confusion_matrix(truth, guesses, 4)
    assert (counts == confusion_matrix(truth, guesses, labels=range(4))).all()


def test_the_most_frequent_confusions_come_first():
    counts = np.array([[9, 1, 0], [3, 5, 0], [0, 0, 2]])
    assert metrics.frequent_confusions(counts, ["cat", "dog", "elk"]) == [
        {"label": "dog", "taken_for": "cat", "images": 3},
        {"label": "cat", "taken_for": "dog", "images": 1},
    ]
    assert len(metrics.frequent_confusions(counts, ["cat", "dog", "elk"], limit=1)) == 1


def test_calibration_by_hand():
    # Two bins. (0, 0.5]: confidences 0.2, 0.5 (its upper end), one right: |0.35 - 0.5| for 2 of 4.
    # (0.5, 1]: confidences 0.6, 1.0, both right: |0.8 - 1| for 2 of 4.
    confidences, hits = [0.2, 0.5, 0.6, 1.0], [True, False, True, True]
    counts, means, accuracies = metrics.calibration_curve(confidences, hits, bins=2)
    assert (counts.tolist(), means.tolist(), accuracies.tolist()) == ([2, 2], [0.35, 0.8], [0.5, 1.0])
    assert metrics.expected_calibration_error(confidences, hits, bins=2) == pytest.approx((0.15 + 0.2) / 2)
    assert metrics.expected_calibration_error([0.0, 1.0], [False, True]) == 0
    assert metrics.expected_calibration_error([1.0], [False]) == 1


@pytest.mark.parametrize(
    ("confidences", "hits", "bins", "said"),
    [([1.2], [1], 15, r"in \[0, 1\]"), ([], [], 15, "0 confidences"), ([0.5], [1, 0], 15, "1 confidences, 2 verdicts"),
     ([0.5], [1], 0, "bins=0"), ([float("nan")], [1], 15, r"in \[0, 1\]")],
)  # fmt: skip
def test_what_has_no_calibration(confidences, hits, bins, said):
    with pytest.raises(ValueError, match=said):
        metrics.expected_calibration_error(confidences, hits, bins)
