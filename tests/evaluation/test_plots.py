"""Plots: drawn whatever a result holds and whatever backend the machine names; several models side by side."""

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_clip.evaluation import corruptions
from hf_clip.evaluation.comparison import compare, comparison_table
from hf_clip.evaluation.plots import canvas, image_sheets, result_charts, training_curves
from hf_clip.evaluation.plots.result_charts import plot_comparison
from hf_clip_cli.evaluate import CORRUPTIONS, PLOTS
from tests.evaluation.test_evaluation import evaluate_fruit
from tests.helpers.toys import gray

ZERO_SHOT = {"task": "zero-shot", "title": "pets"}
RESULTS = [
    {**ZERO_SHOT, "model": "first", "top_1": 0.5, "top_5": 0.75, "templates": ["a {}"]},
    {**ZERO_SHOT, "model": "second $x$", "top_1": 0.25, "top_5": None, "templates": ["{}", "b {}"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_no_backend_matters(backend, tmp_path):
    """Jupyter hands its backend to every program it starts: where it is not installed, importing matplotlib fails."""
    # The module by its path: the package takes seconds.
    script = f"""
import os, runpy
canvas = runpy.run_path({canvas.__file__!r})
with canvas["style"]():
    figure = canvas["new_figure"](4, 3)
    figure.add_subplot().plot([1, 2])
    canvas["save"](figure, "curve.png")
print(os.environ["MPLBACKEND"])
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout.strip()) == (0, backend), run.stderr
    assert Image.open(tmp_path / "curve.png").width > 400


def test_the_command_knows_the_plots_of_every_task():
    """It checks the files that they would replace before it imports what draws them."""
    assert evaluate_fruit().to_dict()["task"] == "retrieval"
    assert tuple(result_charts.charts_of(evaluate_fruit())) == PLOTS["retrieval"]
    drawn = set(re.findall(r'"(\w+\.png)"', inspect.getsource(result_charts.charts_of)))
    assert drawn == {name for names in PLOTS.values() for name in names}
    assert CORRUPTIONS == tuple(corruptions.CORRUPTIONS)


def test_several_models_stand_in_one_table_and_one_plot(tmp_path):
    assert compare(RESULTS) == {
        "first": {"top-1": 0.5, "top-5": 0.75},
        "second $x$": {"top-1": 0.25, "top-5": None},
    }
    lines = comparison_table(RESULTS).splitlines()
    assert lines[0] == "pets" and lines[1].split() == ["model", "top-1", "top-5"]
    assert lines[2].split() == ["first", "0.500", "0.750"] and lines[3].split()[-2:] == ["0.250", "-"]
    assert lines[4:] == ['first: 1 template: "a {}"', 'second $x$: 2 templates: "{}", ...']
    image = Image.open(plot_comparison(RESULTS, tmp_path / "comparison.png"))
    assert 400 <= image.width <= 2000 and np.asarray(image.convert("L")).min() < 150
    with pytest.raises(ValueError, match="one result of one task for each model"):
        compare([RESULTS[0], {**RESULTS[1], "task": "retrieval"}])
    with pytest.raises(ValueError, match="one result of one task for each model"):
        compare([RESULTS[0], RESULTS[0]])


def test_every_task_has_columns():
    found = {**evaluate_fruit().to_dict(), "model": "fruit"}
    (row,) = compare([found]).values()
    assert row["image to text R@1"] == pytest.approx(5 / 6) and len(row) == 4
    few = {"task": "few-shot", "model": "a", "zero_shot_top_1": None, "shots": [{"shots": 4, "mean": 0.5}]}
    assert compare([few]) == {"a": {"4 shots": 0.5}}


def test_the_loss_fits_its_axes_and_every_evaluation_is_within_them(tmp_path, monkeypatch):
    """Step 0 too, and one behind the last logged step."""
    lines = [{"step": step, "loss": 5 - step / 100} for step in range(10, 101, 10)]
    lines += [{"step": step, "evaluation": {"held_out": {"recall_at_1": 0.1}}} for step in (0, 50, 110)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = []
    monkeypatch.setattr(training_curves, "save", lambda figure, output: figures.append(figure) or output)
    training_curves.plot_training(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    loss, recall = figures[0].axes
    (low, high), (bottom, top) = recall.get_xlim(), loss.get_ylim()
    assert low < 0 and high > 110 and list(recall.lines[0].get_xdata()) == [0, 50, 110]
    # The curve, from 4.9 to 4.0, takes most of the height.
    assert 3.8 < bottom < 4.0 and 4.9 < top < 5.1


def test_the_headings_of_a_sheet_are_true(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(image_sheets, "save", lambda figure, output: figures.append(figure) or output)
    result = evaluate_fruit()
    images = [gray(200)] * 100
    for ranks in (result.ranks.ranks, result.ranks.ranks + 1, result.ranks.ranks * 0 + 1):
        result.ranks = replace(result.ranks, ranks=ranks)
        image_sheets.plot_retrievals(result, images, tmp_path / "sheet.png", count=2)
    headings = [[text.get_text() for text in figure.texts if ":" in text.get_text()] for figure in figures]
    assert headings[0] == ["Best: the true name first, by the widest margin", "Worst: the true name ranked lowest"]
    assert headings[1] == ["Best: the true name ranked highest", "Worst: the true name ranked lowest"]
    assert headings[2][1] == "Worst: the true name first, by the narrowest margin"


def test_both_axes_of_confusions_are_named(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(result_charts, "save", lambda figure, output: figures.append(figure) or output)
    result = SimpleNamespace(confusion_matrix=np.array([[3, 1], [0, 2]]), labels=["cat", "dog"])
    result_charts.plot_confusion(result, tmp_path / "confusion.png")
    assert figures[0].axes[0].get_ylabel() == "true class" and "came first" in figures[0].axes[0].get_xlabel()
