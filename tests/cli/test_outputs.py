"""What a verb reads is never written over, by whatever name; what is of another kind only where that is asked for."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from hf_clip import prompts
from hf_clip_cli import main as cli
from hf_clip_cli.outputs import PROMPT_KEYS, Outputs, is_prompts, is_result, is_sheet
from hf_clip_cli.sheet import write_sheet
from hf_clip_cli.usage import UsageError

RESULT = {"model": "m/n", "data": ["x"], "title": "t", "top_1": 0.5}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Data, a model's folder and images, with links of both kinds to them; nothing of it can be opened."""
    for name in ("model", "photos", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "x.parquet").write_text("data")
    os.link(tmp_path / "x.parquet", tmp_path / "hard.json")
    (tmp_path / "soft.json").symlink_to("x.parquet")
    (tmp_path / "data/rows.jsonl").write_text("{}\n")
    (tmp_path / "linked").symlink_to("data")
    (tmp_path / "model/config.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.png")
    os.link(tmp_path / "photos/a.png", tmp_path / "hard.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "settings.json").write_text('{"a": 1}')
    (tmp_path / "baselines.json").write_text('[{"top_1": 0.5, "shifted_top_1": 0.4}]')
    (tmp_path / "own.yaml").write_text("templates:\n- a {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVAL = "eval retrieval --model model --data x.parquet"
FOLDER = "eval zero-shot --model model --data data"
CLASSIFY = "classify photos --labels a b --model model"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{EVAL} --output x.parquet", "--output x.parquet is what --data x.parquet reads: name another file"),
        (f"{EVAL} --output x.parquet --overwrite", "is what --data x.parquet reads"),
        (f"{EVAL} --output soft.json --overwrite", "--output soft.json is what --data x.parquet reads"),
        (f"{EVAL} --output hard.json --overwrite", "--output hard.json is what --data x.parquet reads"),
        (f"{EVAL} --output ./data/../x.parquet --overwrite", "is what --data x.parquet reads"),
        ("eval retrieval --model model --data x.* --output x.parquet", "is what --data x.parquet reads"),
        ("eval zero-shot --model x.parquet --data data --output x.parquet --overwrite", "is what --model x.parquet"),
        (f"{FOLDER} --output data/rows.jsonl --overwrite", "is what --data data reads"),
        ("eval zero-shot --model model --data linked --output data/rows.jsonl --overwrite", "is what --data linked"),
        (f"{FOLDER} --output model/config.json --overwrite", "is what --model model reads"),
        (f"{FOLDER} --plots data", "--plots data is in what --data data reads: name another folder"),
        (f"{FOLDER} --plots linked/plots", "is in what --data data reads"),
        (f"{FOLDER} --cache-dir data/cache", "--cache-dir data/cache is in what --data data reads"),
        (f"{FOLDER} --plots model", "--plots model is in what --model model reads"),
        ("eval zero-shot --model model --data photos/*.png --plots photos", "holds what --data photos/a.png reads"),
        (f"{FOLDER} --labels @labels.txt --output labels.txt --overwrite", "is what @FILE labels.txt reads"),
        (f"{FOLDER} --prompts own.yaml --select-templates own.yaml --overwrite", "is what --prompts own.yaml reads"),
        (
            "eval robustness --model model --data data --shifted-data x.parquet --baselines baselines.json "
            "--output baselines.json --overwrite",
            "is what --baselines baselines.json reads",
        ),
        # Of another kind.
        (f"{EVAL} --output notes.txt", "--output notes.txt exists and is not a result in JSON: name another file, or"),
        (f"{EVAL} --output settings.json", "settings.json exists and is not a result in JSON"),
        (f"{EVAL} --output holiday.png", "holiday.png exists and is not a result in JSON"),
        (f"{EVAL} --output model", "--output model is a folder: name a file, such as model/result.json"),
        (f"{FOLDER} --templates {{}} a{{}} --select-templates own2.yaml", "exists and is not templates in YAML"),
        (f"{EVAL} --plots notes.txt", "--plots notes.txt is a file: name a folder"),
        ("convert model --to openai --output-dir model", "--output-dir model is in what SOURCE model reads"),
        ("convert model --to openai --output-dir photos", "photos is not empty: give a folder that is empty"),
        ("convert x.parquet --to openai --output-dir x.parquet", "x.parquet is a file: name a folder"),
    ],
)
def test_a_file_that_must_not_be_replaced_is_refused_before_the_work(place, command, message, capsys):
    (place / "own2.yaml").write_text("steps: 3\n")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert cli.main(command.split()) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("sheet", ["photos/a.png", "hard.png", "holiday.png", "labels.txt", "photos"])
def test_a_sheet_replaces_no_image_of_the_users(place, sheet, capsys):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert cli.main([*CLASSIFY.split(), "--sheet", sheet]) == 2
    assert f"--sheet {sheet} " in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_what_the_command_wrote_itself_may_be_replaced(place):
    outputs = Outputs()
    outputs.reads("--data", ["data", "owner/name", "gone/*.tar"])
    outputs.file("--output", Path("result.json"), "a result in JSON")
    outputs.file("--output", Path("new.json"), "a result in JSON")
    outputs.file("--output", Path("/dev/null"), "a result in JSON")
    Path("empty").touch()
    outputs.file("--output", Path("empty"), "a result in JSON")
    # A result in a folder of data is no data; a new file there replaces nothing.
    Path("data/result.json").write_text(json.dumps({"results": [RESULT]}))
    outputs.file("--output", Path("data/result.json"), "a result in JSON")
    outputs.folder("--plots", Path("plots/more"))
    write_sheet([("photos/a.png", [{"label": "a", "score": 0.5}])], Path("sheet.png"))
    outputs.file("--sheet", Path("sheet.png"), "a sheet in PNG")
    outputs.file("--select-templates", Path("own.yaml"), "templates in YAML")
    assert is_result(Path("result.json")) and is_sheet(Path("sheet.png")) and is_prompts(Path("own.yaml"))
    assert not is_result(Path("settings.json")) and not is_sheet(Path("holiday.png"))
    Outputs(overwrite=True).file("--output", Path("notes.txt"), "a result in JSON")
    with pytest.raises(UsageError, match="there is no folder gone"):
        outputs.file("--output", Path("gone/x.json"), "a result in JSON")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "replaced"),
    [
        ("name: x\nsource: chosen\ntemplates:\n- a {}\nclasses:\n- a\n", True),
        ("\ufefftemplates: ['a {}']\n", True),
        # As a run keeps its recipe.
        ("steps: 3\ndata:\n  train: [a.parquet]\ntemplates:\n- a photo of a {}\n", False),
        ("templates:\n", False),
        ("? [a]\n: 1\ntemplates:\n- a {}\n", False),
        ("templates:\n- " + "[" * 3000 + "]" * 3000, False),
        ("|\n templates:\n", False),
    ],
)
def test_templates_replace_templates_and_no_recipe(tmp_path, content, replaced):
    (tmp_path / "x.yaml").write_text(content, encoding="utf-8")
    assert is_prompts(tmp_path / "x.yaml") is replaced


def test_the_command_knows_the_keys_of_prompts():
    assert set(PROMPT_KEYS) == prompts._KEYS


def test_links_among_folders_that_go_round_are_followed_once(place):
    (place / "data/again").symlink_to(place / "data")
    outside = place / "outside.json"
    outside.write_text("[]")
    outputs = Outputs(overwrite=True)
    outputs.reads("--data", ["data"])
    outputs.file("--output", outside, "a result in JSON")
    (place / "data/in.json").symlink_to(outside)
    with pytest.raises(UsageError, match="outside.json is what --data data reads"):
        outputs.file("--output", outside, "a result in JSON")
