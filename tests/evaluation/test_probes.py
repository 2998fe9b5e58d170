"""Linear probes and few-shot classification: the paper's search, splits, and scikit-learn's own numbers."""

import json
import math
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hf_clip.evaluation import evaluate_few_shot, evaluate_linear_probe, evaluate_zero_shot, few_shot, linear_probe
from hf_clip.evaluation.linear_probe import PENALTIES, TrainingSet, hold_out, search_penalty
from hf_clip.sources import SourceError, open_source
from tests.helpers.squares import COLOURS, SIZE, rows, write_parquet
from tests.helpers.toys import tiny_clip


@pytest.fixture(scope="module")
def model():
    return tiny_clip(["a red square"], SIZE)


def squares(file, copies: int, first_seed: int = 0, **options):
    """Squares labeled with their colors, 4 of each color in a copy."""
    content = [{**row, "label": row["caption"].split(" ")[1]} for row in rows(copies, first_seed)]
    return open_source(str(write_parquet(file, content)), **options)


# The search


@pytest.mark.parametrize("peak", [0, 1, 37, 48, 90, 95, 96])
def test_the_search_finds_the_peak_of_a_hill_in_few_fits(peak):
    tried = []

    def score(penalty: float) -> float:
        tried.append(penalty)
        return -abs(math.log10(penalty) - math.log10(PENALTIES[peak]))

    best, scores = search_penalty(score)
    assert best == PENALTIES[peak] and scores[best] == pytest.approx(0)
    assert len(tried) == len(set(tried)) == len(scores) <= 15
    assert tried[:7] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])


def test_the_grid_is_the_papers():
    # 96 steps of an eighth of a decade from 1e-6 to 1e6.
    assert len(PENALTIES) - 1 == 96
    assert np.diff(np.log10(PENALTIES)) == pytest.approx(1 / 8)
    assert (PENALTIES[0], PENALTIES[-1]) == (pytest.approx(1e-6), pytest.approx(1e6))


def test_of_equal_scores_the_simplest_model_wins():
    assert search_penalty(lambda penalty: 0.5)[0] == PENALTIES[-1]
    assert search_penalty(lambda penalty: float(penalty <= 1.0))[0] == pytest.approx(1.0)


# The split


def test_a_fraction_of_each_class_is_held_out():
    labels = np.array(["a"] * 10 + ["b"] * 5 + ["c"])
    held = hold_out(labels, 0.2, seed=3)
    assert [held[labels == name].sum() for name in "abc"] == [2, 1, 0]
    assert (held == hold_out(labels, 0.2, seed=3)).all() and (held != hold_out(labels, 0.2, seed=4)).any()
    assert hold_out(labels, 0.99, seed=0).sum() == 9 + 4
    with pytest.raises(ValueError, match="3 images are too few to set 20% of each class aside"):
        hold_out(np.array(["a", "b", "c"]), 0.2, seed=0)
    with pytest.raises(ValueError, match="validation_fraction=1.0"):
        hold_out(labels, 1.0, seed=0)


# Probes


def test_the_probe_is_scikit_learns_on_features_before_the_projection(model, tmp_path):
    train, test = squares(tmp_path / "train.parquet", 2), squares(tmp_path / "test.parquet", 1, first_seed=9)
    validation = squares(tmp_path / "validation.parquet", 1, first_seed=20)
    result = evaluate_linear_probe(*model, train, test, validation=validation, batch_size=16, title="squares")

    def features(seed: int, copies: int):
        content = rows(copies, seed)
        pixels = model[1](images=[row["image"] for row in content], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            pooled = model[0].vision_model(pixels).pooler_output.numpy()
        return pooled, np.array([row["caption"].split(" ")[1] for row in content])

    (fit_on, labels), (held, held_labels), (asked, truth) = features(0, 2), features(20, 1), features(9, 1)
    assert fit_on.shape[1] == 32 != model[0].config.projection_dim
    by_hand = {
        penalty: LogisticRegression(C=1 / penalty, max_iter=1000).fit(fit_on, labels).score(held, held_labels)
        for penalty in result.sweep
    }
    assert result.sweep == pytest.approx(by_hand)
    assert by_hand[result.penalty] == max(by_hand.values()) == result.validation_top_1
    final = LogisticRegression(C=1 / result.penalty, max_iter=1000)
    final.fit(np.concatenate([fit_on, held]), np.concatenate([labels, held_labels]))
    assert result.top_1 == pytest.approx(final.score(asked, truth)) and result.top_1 > 1.5 / len(COLOURS)
    assert (result.train_images, result.validation_images, result.images, result.classes) == (72, 24, 24, 6)
    hits = final.predict(asked) == truth
    assert {row["label"]: row["top_1"] for row in result.per_class} == {
        name: pytest.approx(hits[truth == name].mean()) for name in COLOURS
    }
    assert "squares" in result.table() and result.to_dict()["task"] == "linear-probe"


def test_training_data_that_cannot_be_trained_on(model, tmp_path):
    train = squares(tmp_path / "train.parquet", 2)
    red = squares(tmp_path / "red.parquet", 2, where={"label": "red"})
    some = squares(tmp_path / "some.parquet", 2, where={"label": ["red", "blue"]})
    with pytest.raises(ValueError, match="red.parquet.* has one class to train on, 'red'"):
        evaluate_linear_probe(*model, red, train)
    with pytest.raises(ValueError, match="4 classes of the test data are not in .*some.parquet: 'black', 'green'"):
        evaluate_linear_probe(*model, some, train)
    with pytest.raises(SourceError, match="label"):
        evaluate_linear_probe(*model, open_source(str(write_parquet(tmp_path / "no.parquet", rows(1)))), train)


def test_numbers_of_classes_are_one_class_however_they_are_written():
    """Folders 001, 002 to train on, a column of 1 and 2 to test on; names stay what they are."""

    def in_own(trained: list[str], tested: list[str]) -> list[str]:
        labels = np.array(trained)
        training = TrainingSet("data", np.zeros((len(labels), 1)), labels, np.zeros(len(labels), bool), Counter())
        return training.in_own_labels(np.array(tested)).tolist()

    assert in_own(["001", "002", "010"], ["1", "10", "002"]) == ["001", "010", "002"]
    assert in_own(["1", "2"], ["001", "2.0"]) == ["1", "2"]
    for trained, tested in ((["001", "1"], ["01"]), (["001", "cat"], ["1"])):
        with pytest.raises(ValueError, match="1 classes of the test data are not in data"):
            in_own(trained, tested)


def test_images_skipped_are_counted_for_training_and_test(model, tmp_path):
    def with_broken(name: str, copies: int, count: int, first_seed: int):
        content = [{**row, "label": row["caption"].split(" ")[1]} for row in rows(copies, first_seed)]
        broken = [{**row, "image": {"bytes": b"broken", "path": None}} for row in content[:count]]
        return open_source(str(write_parquet(tmp_path / name, [*broken, *content])))

    train, held_out = with_broken("train.parquet", 2, 2, 0), with_broken("validation.parquet", 1, 3, 20)
    test = with_broken("test.parquet", 1, 1, 9)
    for result in (
        evaluate_linear_probe(*model, train, test, validation=held_out),
        evaluate_few_shot(*model, train, test, validation=held_out, shots=(1,), num_seeds=1),
    ):
        told = json.loads(json.dumps(result.to_dict()))
        assert (told["skipped"], told["train_skipped"]) == ({"unknown_format": 1}, {"unknown_format": 5})
        assert result.table().endswith("skipped: 1 unknown_format\nskipped of training: 5 unknown_format")


# Few shots


def test_trials_are_nested_and_of_each_class():
    labels = np.array(["b", "a"] * 8)
    draw = few_shot.draw_shots(labels, 4, seed=1)
    assert draw.shape == (2, 4) and len(set(draw.ravel())) == 8
    assert (labels[draw] == [["a"] * 4, ["b"] * 4]).all()
    assert (draw == few_shot.draw_shots(labels, 4, seed=1)).all()
    assert (draw != few_shot.draw_shots(labels, 4, seed=2)).any()


@pytest.mark.slow
def test_few_shots_by_scikit_learn(model, tmp_path):
    train, test = squares(tmp_path / "train.parquet", 2), squares(tmp_path / "test.parquet", 1, first_seed=9)
    validation = squares(tmp_path / "validation.parquet", 1, first_seed=20)
    result = evaluate_few_shot(*model, train, test, validation=validation, shots=(1, 4), num_seeds=3)
    assert [row["shots"] for row in result.shots] == [1, 4]
    for row in result.shots:
        assert len(row["scores"]) == 3
        assert row["mean"] == pytest.approx(np.mean(row["scores"]))
        assert row["standard_deviation"] == pytest.approx(np.std(row["scores"], ddof=1))
        assert row["penalty"] in PENALTIES
    training = linear_probe.TrainingSet.embed(
        *model, train, None, 0.2, 0, linear_probe.Encoding(before_projection=True)
    )
    asked = linear_probe.TrainingSet.embed(*model, test, None, 0.2, 0, linear_probe.Encoding(before_projection=True))
    few = few_shot.draw_shots(training.labels, 4, seed=2).ravel()
    probe = LogisticRegression(C=1 / result.shots[1]["penalty"], max_iter=1000)
    probe.fit(training.features[few], training.labels[few])
    assert probe.score(asked.features, asked.labels) == pytest.approx(result.shots[1]["scores"][2])
    assert (result.train_images, result.images, result.classes, result.num_seeds) == (48, 24, 6, 3)
    assert result.table().count("\n") == 4
    assert result.zero_shot_top_1 == evaluate_zero_shot(*model, test).top_1


def test_wrong_labels_are_told_before_any_probe_is_fitted(model, tmp_path, monkeypatch):
    train, test = squares(tmp_path / "train.parquet", 2), squares(tmp_path / "test.parquet", 1, first_seed=9)
    monkeypatch.setattr(linear_probe.PenaltySearch, "fit", lambda *_: pytest.fail("a probe was fitted"))
    with pytest.raises(ValueError, match="is none of the 2 classes"):
        evaluate_few_shot(*model, train, test, shots=(1,), num_seeds=1, labels=["red", "blue"])


def test_class_names_that_are_numbers_in_order_of_text_are_the_datas_own(model, tmp_path):
    """As folders 0, 1, 10, 11, 2 are sorted: index 2 is class "10"."""
    names = sorted(map(str, range(12)))
    content = [{"image": row["image"], "label": index % 12} for index, row in enumerate(rows(2))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    table = datasets.Dataset.from_list(content, features=features)
    table.to_parquet(str(tmp_path / "numbers.parquet"))
    source = open_source(str(tmp_path / "numbers.parquet"))
    result = evaluate_few_shot(*model, source, source, shots=(1,), num_seeds=1)
    assert result.zero_shot_top_1 == evaluate_zero_shot(*model, source).top_1


def test_one_trial_has_no_deviation_and_validation_is_never_drawn(model, tmp_path):
    train, test = squares(tmp_path / "train.parquet", 2), squares(tmp_path / "test.parquet", 1, first_seed=9)
    result = evaluate_few_shot(*model, train, test, shots=(1,), num_seeds=1)
    assert result.shots[0]["standard_deviation"] is None and " -" in result.table()
    # 8 images a color, a fifth of them held out.
    assert result.train_images == 6 * (8 - 2)
    with pytest.raises(ValueError, match="class 'black' has 6 images to draw from, fewer than 7 shots"):
        evaluate_few_shot(*model, train, test, shots=(1, 7))
    for wrong in ({"shots": ()}, {"shots": (0, 1)}, {"num_seeds": 0}):
        with pytest.raises(ValueError, match="below 1"):
            evaluate_few_shot(*model, train, test, **wrong)
