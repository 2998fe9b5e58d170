"""Plots: drawn whatever a result holds and whatever backend the machine names; several models side by side."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_clip.evaluation.comparison import compare, comparison_table
from hf_clip.evaluation.plots import canvas, result_charts
from hf_clip.evaluation.plots.result_charts import draw_charts, plot_comparison
from tests.evaluation.test_evaluation import evaluate_fruit

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


def test_a_plot_that_fails_is_named_and_the_others_are_drawn(tmp_path, monkeypatch, caplog):
    result = evaluate_fruit()

    def fail(output):
        raise RuntimeError("no ink")

    charts = {"first.png": fail, **result_charts.charts_of(result)}
    monkeypatch.setattr(result_charts, "charts_of", lambda _: charts)
    assert [file.name for file in draw_charts(result, tmp_path)] == ["recall.png"]
    assert caplog.messages == ["The plot first.png of fruit cannot be drawn: RuntimeError: no ink"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install"):
        draw_charts(result, tmp_path)


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
