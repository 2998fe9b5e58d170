"""Thresholds with known error: intervals cover the truth, parts stay apart, and the file says what was measured."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm

from hf_clip import Decisions, ZeroShotClassifier, evaluate_zero_shot, open_source
from hf_clip.evaluation.operating_points import OperatingPoint, find_operating_points, interval
from tests.helpers.counts import soak_count
from tests.helpers.squares import COLOURS, rows, write_parquet
from tests.helpers.trained import trained_clip

SEEDS = soak_count(60, 200)


def drawn(seed: int, images: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one concept, normal around 0 without it and around 2 with it, and whether an image has it."""
    draw = np.random.default_rng(seed)
    is_true = draw.random((images, 1)) < 0.3
    return draw.normal(size=(images, 1)) + 2 * is_true, is_true


def test_intervals_cover_the_true_rates():
    covered = {"false_positive_rate": 0, "false_negative_rate": 0}
    for seed in range(SEEDS):
        found = find_operating_points(*drawn(seed), ["it"], OperatingPoint(0.05, 0.1, seed=seed))
        [point] = found.concepts
        true = {
            "false_positive_rate": norm.sf(point["yes_from"]),
            "false_negative_rate": norm.cdf(point["no_below"] - 2),
        }
        for name, rate in true.items():
            covered[name] += point[name]["low"] <= rate <= point[name]["high"]
    assert min(covered.values()) >= 0.93 * SEEDS, covered


def test_the_interval_is_clopper_and_pearsons():
    found = interval(3, 40)
    assert found["low"] == pytest.approx(beta.ppf(0.025, 3, 38)) and found["high"] == pytest.approx(
        beta.ppf(0.975, 4, 37)
    )
    assert interval(0, 10)["low"] == 0 and interval(10, 10)["high"] == 1 and interval(0, 0)["rate"] is None


def test_thresholds_keep_to_the_rates_on_the_part_that_they_are_found_on():
    scores, is_true = drawn(1)
    found = find_operating_points(scores, is_true, ["it"], OperatingPoint(0.1, 0.05))
    [yes], [no] = found.yes_from, found.no_below
    assert no < yes and sum(found.images) == len(scores) and found.images == (600, 300, 600)
    first = np.sort(np.random.default_rng(0).permutation(len(scores))[:600])
    without, with_it = scores[first][~is_true[first]], scores[first][is_true[first]]
    # As many as are allowed, and no lower threshold would do.
    assert (without >= yes).sum() == math.floor(0.1 * len(without))
    assert (with_it < no).sum() == math.floor(0.05 * len(with_it))


def test_equal_scores_and_missing_classes_give_no_false_promise():
    scores = np.zeros((30, 2), dtype=np.float32)
    is_true = np.zeros((30, 2), dtype=bool)
    is_true[::2, 0] = True
    found = find_operating_points(scores, is_true, ["half", "none"], OperatingPoint(0.01))
    half, none = found.concepts
    assert half["false_positive_rate"]["hits"] == 0 and half["recall"]["rate"] == 0
    # Nothing is known of what an image with it would score: it is never answered "no".
    assert none["no_below"] is None and found.no_below[1] == -math.inf and none["false_negative_rate"]["rate"] is None
    with pytest.raises(ValueError, match="2 labeled images cannot be divided"):
        find_operating_points(scores[:2], is_true[:2], ["half", "none"], OperatingPoint(0.01))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_positive_rate": 0.0}, "`false_positive_rate=0.0` is a fraction"),
        ({"false_positive_rate": 0.1, "parts": (0.5, 0.5, 0.5)}, "three fractions of the images that add up to 1"),
        ({"false_positive_rate": 0.1, "confidence": 95}, "`confidence=95`"),
    ],
)
def test_what_cannot_be_asked_for(arguments, message):
    with pytest.raises(ValueError, match=message):
        OperatingPoint(**arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A model that knows colors, and what was measured of it on squares, by their corner."""
    model, processor = trained_clip()
    content = [
        {"image": row["image"], "label": row["caption"].split(" ")[1], "corner": row["caption"].split(" at the ")[1]}
        for row in rows(5)
    ]
    file = write_parquet(tmp_path_factory.mktemp("squares") / "squares.parquet", content)
    source = open_source(file, keyword_columns=["corner"])
    words = {"templates": ["a {} square"], "by": ["corner"]}
    result = evaluate_zero_shot(model, processor, source, operating_point=OperatingPoint(0.1, 0.05), **words)
    return model, processor, content, result


def test_decisions_are_kept_in_a_file_and_answer_as_measured(measured, tmp_path):
    model, processor, content, result = measured
    assert result.decisions.save(tmp_path / "decisions.safetensors")
    decisions = Decisions.load(tmp_path / "decisions.safetensors", model, processor)
    assert decisions.report == json.loads(json.dumps(result.operating_points.to_dict()))
    answers = decisions.decide([row["image"]["bytes"] for row in content])
    said = {"yes": 0, "no": 0, "look at it": 0}
    for of_image in answers:
        assert [one["label"] for one in of_image] == sorted(COLOURS)
        for one in of_image:
            said[one["answer"]] += 1
            at = decisions.classifier.labels.index(one["label"])
            assert (one["answer"] == "yes") == (one["score"] >= decisions.yes_from[at])
    assert said["yes"] >= len(content) / 2 and said["no"] > said["yes"]
    right = [
        one["answer"] for row, of in zip(content, answers, strict=True) for one in of if one["label"] == row["label"]
    ]
    assert right.count("no") <= 0.2 * len(right)
    # It is the classifier's file too, and a classifier's is not its.
    classifier = ZeroShotClassifier.load(tmp_path / "decisions.safetensors", model, processor)
    classifier.save(tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="a classifier without thresholds"):
        Decisions.load(tmp_path / "classifier.safetensors", model, processor)


def test_the_result_has_rates_by_group_and_a_table(measured):
    *_, result = measured
    points = result.operating_points
    assert {value for value in points.groups["corner"]} == {"top left", "top right", "bottom left", "bottom right"}
    for label, whole in zip(result.labels, points.concepts, strict=True):
        parts = [row for rows_of in points.groups["corner"].values() for row in rows_of if row["label"] == label]
        # Groups divide the second part.
        for name in ("false_positive_rate", "recall"):
            assert sum(row[name]["images"] for row in parts) == whole[name]["images"]
            assert sum(row[name]["hits"] for row in parts) == whole[name]["hits"]
    assert "corner: top left" in result.table() and "look at it" in result.table()
    assert result.to_dict()["operating_points"]["asked"]["false_negative_rate"] == 0.05


def test_thresholds_that_contradict_one_another_are_refused(measured):
    *_, result = measured
    classifier = result.decisions.classifier
    count = len(classifier.labels)
    with pytest.raises(ValueError, match="answered both"):
        Decisions(classifier, [0.1] * count, [0.2] * count)
    with pytest.raises(ValueError, match="one is no number"):
        Decisions(classifier, [math.nan] * count, [0.2] * count)
    with pytest.raises(ValueError, match="1 `yes_from`"):
        Decisions(classifier, [0.1], [0.2] * count)
    assert torch.is_tensor(classifier.class_embeddings)
