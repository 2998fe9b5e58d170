"""Runs side by side by what they left: every task's numbers, and files that are not as training writes them."""

import json

import pytest

from hf_clip.training.comparison import compare_runs

ZERO_SHOT = {"task": "zero-shot", "top_1": 0.5, "top_5": 1, "mean_per_class": 0.25}
FEW_SHOT = {"task": "few-shot", "zero_shot_top_1": 0.5, "shots": [{"shots": 1, "mean": 0.75}]}
GROUPS = {"task": "groups", "overall": [{"label": "cat", "rate": 0.125}]}


def write(folder, **content):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_tasks_without_fixed_columns_are_compared_too(tmp_path):
    evaluations = {"first": ZERO_SHOT, "second": FEW_SHOT, "third": GROUPS}
    runs = [write(tmp_path / name, evaluations=evaluations, step=step) for name, step in (("a", 3), ("b", None))]
    compared = compare_runs(runs)
    assert compared.rows["first, top-5"] == [1, 1]
    assert compared.rows["second, 1 shots"] == [0.75, 0.75] and compared.rows["third, cat"] == [0.125, 0.125]
    assert compared.details == {"steps": ["3", "-"]}


@pytest.mark.parametrize(
    "change",
    [
        {"evaluations": {"first": {"task": "of tomorrow"}}},
        {"evaluations": {"first": None}},
        {"evaluations": {"first": {**ZERO_SHOT, "top_1": "high"}}},
        {"evaluations_at_start": [1]},
        {"pairs_skipped": 3},
        {"step": "last"},
        {"best": 4},
    ],
)
def test_a_broken_run_is_one_line(tmp_path, change):
    run = write(tmp_path / "a", **{"evaluations": {"first": ZERO_SHOT}, **change})
    with pytest.raises(ValueError, match="is not as training writes it") as told:
        compare_runs([run])
    assert "\n" not in str(told.value)
