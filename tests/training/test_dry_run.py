"""A dry run: what it says of the data and of a step is what the run meets, and it leaves nothing but its sheet."""

import json

import pytest

from hf_clip.training import load_recipe, train
from hf_clip.training.dry_run import dry_run
from hf_clip_cli import main as cli
from tests.helpers.squares import NAMES, recipe, rows, write_parquet, write_recipe


@pytest.fixture
def file(tmp_path):
    content = rows(2)
    content[3]["image"], content[5]["caption"] = None, None
    content[7]["image"]["bytes"] = b"no image"
    path = write_parquet(tmp_path / "train.parquet", content)
    changes = {"steps": 2, "augmentation": {"rotation": 10, "flip": 0.5}, "optimizer": {"warmup_steps": 1}}
    return write_recipe(tmp_path / "recipe.yaml", recipe(path, **changes))


def test_it_says_what_the_run_then_meets(file, tmp_path):
    config = load_recipe(file, ["data.max_bad_fraction=0.1"])
    found = dry_run(config)
    assert (found.pairs, found.pairs_read, found.steps) == (48, 48, 2)
    assert found.skipped.total() == 3 and found.skipped["no_caption"] == 1
    # The vocabulary has single letters for what it never saw; all fit.
    assert 5 < found.token_lengths.max() <= found.context == 16
    train(config, tmp_path / "run")
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert found.loss == first["loss"] and found.gradient_norm == first["gradient_norm"]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert sum(results["pairs_skipped"].values()) <= 3
    assert found.memory > 1e8 and found.step_seconds > 0


def test_the_command_prints_it_and_draws_what_the_model_sees(file, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert cli.main(["train", "--recipe", str(file), "--dry-run", "--sheet", str(tmp_path / "sheet.png")]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("Opened ")
    for text in ("48 an epoch, 48 read", "more than data.max_bad_fraction=0.05: the run would stop", "2 steps: about"):
        assert text in out
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "sheet.png"])
    for wrong, message in (
        (["--recipe", str(file)], "required: --output-dir"),
        (
            ["--recipe", str(file), "--output-dir", str(tmp_path / "x"), "--sheet", "a.png"],
            "--sheet is drawn by a dry",
        ),
        (["--resume", "--dry-run", "--output-dir", str(tmp_path)], "--dry-run is for a run that has not begun"),
    ):
        assert cli.main(["train", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert len(NAMES) == 24
