"""`hf-clip compare` and `hf-clip average`: finished runs side by side, and mixtures of what they trained."""

import json
import re

import pytest
from PIL import Image

from hf_clip import load
from hf_clip.training import load_recipe, train
from hf_clip_cli import main as cli
from tests.helpers.quick_ends import end_quickly
from tests.helpers.squares import NAMES, recipe, rows, write_parquet, write_recipe
from tests.helpers.toys import tiny_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs from one start, evaluated at the start too."""
    place = tmp_path_factory.mktemp("runs")
    model, processor = tiny_clip(NAMES, image_size=16, num_hidden_layers=1)
    model.save_pretrained(place / "start")
    processor.save_pretrained(place / "start")
    held_out = write_parquet(place / "held_out.parquet", rows(1, first_seed=50))
    content = recipe(
        write_parquet(place / "train.parquet", rows(2)),
        steps=6,
        eval_every=3,
        eval_at_start=True,
        model={"start_from": str(place / "start")},
        checkpoints={"best": "held_out.text_to_image.recall_at_1"},
        evaluations={"held_out": {"data": [str(held_out)], "during_training": True}},
    )
    file = write_recipe(place / "recipe.yaml", content)
    with pytest.MonkeyPatch.context() as patch:
        end_quickly(patch)
        train(load_recipe(file), place / "a/run")
        train(load_recipe(file, ["seed=1", "steps=4", "checkpoints.best=null"]), place / "b/run")
    return place


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(each) for each in arguments])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_runs_stand_side_by_side_with_their_start(place, tmp_path, capsys):
    code, out, _ = run(capsys, "compare", place / "a/run", place / "b/run", "--plot", tmp_path / "plot.png")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["before", "training", "a/run", "b/run", "change"]
    found = [json.loads((place / name / "run/results.json").read_text()) for name in "ab"]
    columns = [found[0]["evaluations_at_start"], found[0]["evaluations"], found[1]["evaluations"]]
    values = [each["held_out"]["image_to_text"]["recall_at_1"] for each in columns]
    [line] = [line for line in lines if line.startswith("held_out, image to text R@1")]
    assert line.split()[-4:] == [*(f"{value:.4f}" for value in values), f"{values[-1] - values[0]:+.4f}"]
    assert any(line.split() == ["steps", "-", "6", "4"] for line in lines)
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 1600
    code, out, _ = run(capsys, "compare", place / "a/run", "--json")
    assert code == 0 and json.loads(out)["runs"] == ["before training", "run"]
    for wrong, message in (
        (place / "start", "holds no finished run: there is no results.json"),
        (place / "nowhere", "is no folder: give what"),
    ):
        code, _, err = run(capsys, "compare", wrong)
        assert code > 0 and message in err and err.count("\n") == 1


def test_a_mixture_is_picked_by_the_runs_own_evaluation(place, tmp_path, capsys):
    arguments = ["average", place / "start", place / "a/run", "--wise-ft", "--fractions", "0", "0.5", "1"]
    code, out, err = run(capsys, *arguments, "--output-dir", tmp_path / "mixed")
    assert code == 0 and err.count("held_out.text_to_image.recall_at_1") == 3
    written = json.loads((tmp_path / "mixed/mixture.json").read_text())
    assert [entry["weights"][1] for entry in written["curve"]] == [0, 0.5, 1]
    values = [entry["numbers"][written["by"]] for entry in written["curve"]]
    assert written["best"]["numbers"][written["by"]] == max(values)
    found = json.loads((place / "a/run/results.json").read_text())
    # Its ends are the start and what the run exported.
    ends = [found["evaluations_at_start"], found["evaluations"]]
    assert [values[0], values[-1]] == [each["held_out"]["text_to_image"]["recall_at_1"] for each in ends]
    assert load(tmp_path / "mixed")[0].config.projection_dim == 16
    assert (tmp_path / "mixed/mixture.png").stat().st_size > 5000


def test_averages_by_weights_and_greedy_soups_are_written(place, tmp_path, capsys):
    models = [place / "start", place / "a/run", place / "b/run"]
    assert run(capsys, "average", *models, "--output-dir", tmp_path / "mean")[0] == 0
    mean, starts = (load(folder)[0].state_dict() for folder in (tmp_path / "mean", place / "start"))
    others = [load(folder)[0].state_dict() for folder in models[1:]]
    name = "visual_projection.weight"
    assert (mean[name] - (starts[name] + others[0][name] + others[1][name]) / 3).abs().max() < 1e-6
    arguments = ["average", *models, "--greedy", "--by", "held_out.image_to_text.recall_at_1"]
    code, out, err = run(capsys, *arguments, "--output-dir", tmp_path / "soup")
    assert code == 0 and "held_out.image_to_text.recall_at_1" in out
    assert len(err.splitlines()) == 5 and "0 + 0 + 1: held_out" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "One MODEL is no average"),
        (["start", "a/run", "b/run", "--wise-ft"], "--wise-ft mixes two models"),
        (["start", "a/run", "--weights", "1"], "--weights has 1 numbers for 2 models"),
        (["start", "a/run", "--weights", "1", "1", "--greedy"], "are three ways to find weights: give one"),
        (["a/run", "start", "--wise-ft"], "is no run with a recipe.yaml: name the evaluations by --recipe"),
        (["start", "b/run", "--wise-ft"], "--by is not given, and .* has no checkpoints.best"),
        (
            ["start", "a/run", "--wise-ft", "--by", "held_out.top_1"],
            "--by held_out.top_1 is no number of the",
        ),
        (["start", "a/run", "--by", "x"], "--by says what --wise-ft or --greedy picks by"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(place, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    code, _, err = run(capsys, "average", *arguments, "--output-dir", tmp_path / "out")
    assert code > 0 and err.count("\n") == 1
    assert re.search(message, err), err
