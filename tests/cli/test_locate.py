"""`hf-clip locate`, evaluations by masks and groups, and decisions from data to answers, as a user calls them."""

import io
import json
import shlex

import numpy as np
import pytest
from PIL import Image

from hf_clip_cli import main as cli
from hf_clip_cli.outputs import is_decisions, is_sheet
from tests.helpers.squares import COLOURS, NAMES, rows, write_parquet
from tests.helpers.trained import trained_clip

pytestmark = pytest.mark.slow

LOCATE = "locate photos --labels red blue --templates 'a {} square' --model model"
ZERO_SHOT = "eval zero-shot --model model --data squares.parquet --templates 'a {} square' --no-cache"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("locate")
    model, processor = trained_clip()
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    mask = io.BytesIO()
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(mask, "PNG")
    content = [
        {
            **row,
            "label": row["caption"].split(" ")[1],
            "corner": row["caption"].split(" at the ")[1],
            "mask": {"bytes": mask.getvalue(), "path": None},
        }
        for row in rows(3)
    ]
    write_parquet(place / "squares.parquet", content)
    (place / "photos").mkdir()
    for index, row in enumerate(content[:2]):
        (place / f"photos/{index}.png").write_bytes(row["image"]["bytes"])
    (place / "broken.png").write_bytes(b"x")
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")


def test_locate_prints_boxes_and_draws_a_sheet(capsys, tmp_path):
    sheet = tmp_path / "found.png"
    assert cli.main(shlex.split(f"{LOCATE} --format jsonl --sheet {sheet}")) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == ["photos/0.png", "photos/1.png"] and "a {} square" in err
    for line in lines:
        assert line["boxes"]
        for one in line["boxes"]:
            box = one["box"]
            assert one["label"] in ("red", "blue") and 0.5 <= one["score"] <= 1
            assert 0 <= box["xmin"] < box["xmax"] <= 16 and 0 <= box["ymin"] < box["ymax"] <= 16
    # Two images side by side with what was found in them, and a legend.
    assert is_sheet(sheet) and Image.open(sheet).size == (2 * (2 * 224 + 4 + 16), 224 + 16 + 16 + 8)
    assert cli.main(shlex.split(f"{LOCATE.replace('photos', 'photos broken.png')} --threshold 1.0")) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == ["photos/0.png  -", "photos/1.png  -"]
    assert "broken.png: " in err and "1 of 3 images could not be read" in err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("locate gone.png --labels a b --model model", "gone.png: there is no such image"),
        ("locate photos --model model", "there are no labels"),
        (f"{LOCATE} --reject red", "--reject 'red' is one of the labels"),
        (f"{LOCATE} --attention clear", "invalid choice: 'clear'"),
        (f"{LOCATE} --scales 0", "--scales: 0 is no side of a window"),
        (f"{LOCATE} --sheet photos/0.png", "is what IMAGE photos/0.png reads"),
        ("classify photos --model model --decisions gone", "there is no file gone"),
        ("classify photos --model model --decisions squares.parquet --top-k 2", "of its own: drop --top-k"),
        ("classify photos --model model --decisions squares.parquet --sheet a.png", "drop --sheet"),
        (f"{ZERO_SHOT} --save a.safetensors", "say how wrong they may be, with --operating-point fpr=0.01"),
        (f"{ZERO_SHOT} --operating-point 0.01", "'0.01' is no operating point: write fpr=0.01"),
        (f"{ZERO_SHOT} --operating-point fnr=0.01", "has no fpr"),
        (f"{ZERO_SHOT} --operating-point fpr=0.01 --save a.bin", "name a file that ends in .safetensors"),
        ("eval groups --model model --data squares.parquet --by corner", "groups needs class names: give --labels"),
        ("eval groups --model model --data squares.parquet --labels a b", "--by"),
        ("eval segmentation --model model --data squares.parquet", "segmentation needs class names"),
        ("ask photos/0.png", "a CLIP scores statements and answers no questions"),
        ("generate 'a dog'", "a CLIP makes no images: diffusion models do"),
        ("detect photos", "transformers' Owlv2ForObjectDetection is one"),
        ("moderate photos", "--operating-point fpr=0.01 --save decisions.safetensors"),
    ],
)
def test_what_cannot_be_done_is_one_line(command, message, capsys):
    assert cli.main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1 and out == ""


def test_decisions_go_from_labeled_images_to_answers(capsys, tmp_path):
    file, result = tmp_path / "decisions.safetensors", tmp_path / "result.json"
    command = f"{ZERO_SHOT} --operating-point fpr=0.1,fnr=0.05 --by corner --save {file} --output {result}"
    assert cli.main(shlex.split(command)) == 0
    out = capsys.readouterr().out
    assert (
        "operating points: 0.1 false positives and 0.05 false negatives allowed" in out and "corner: top left" in out
    )
    assert f"decisions: {file}" in out and is_decisions(file)
    points = json.loads(result.read_text())["operating_points"]
    assert {row["label"] for row in points["concepts"]} == set(COLOURS) and sum(points["images"]) == 72
    # Its own file is replaced.
    assert cli.main(shlex.split(command)) == 0
    classify = f"classify photos --model model --decisions {file}"
    capsys.readouterr()
    assert cli.main(shlex.split(f"{classify} --format jsonl")) == 0
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        assert {one["answer"] for one in line["decisions"]} <= {"yes", "no", "look at it"}
        assert {one["label"] for one in line["decisions"]} == set(COLOURS)
    assert cli.main(shlex.split(f"{classify} --format csv")) == 0
    assert capsys.readouterr().out.splitlines()[0] == "image,label,answer,score"
    assert cli.main(shlex.split(classify.replace("photos", "photos broken.png"))) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "image         answers" and "broken.png" in err and len(out.splitlines()) == 3


def test_eval_segmentation_and_groups_print_tables_and_write_json(capsys, tmp_path):
    result, words = tmp_path / "result.json", "--templates 'a {} square'"
    command = f"eval segmentation --model model --data squares.parquet --labels red blue {words} --output {result}"
    assert cli.main(shlex.split(command)) == 0
    assert "mean IoU" in capsys.readouterr().out
    content = json.loads(result.read_text())
    assert content["task"] == "segmentation" and content["images"] == 72
    assert [row["pixels"] for row in content["per_class"]] == [72 * 240, 72 * 16]
    command = f"eval groups --model model --data squares.parquet --labels red,blue {words} --by corner label"
    assert cli.main(shlex.split(f"{command} --no-cache --output {result}")) == 0
    assert "how often each label comes first" in capsys.readouterr().out
    by = json.loads(result.read_text())["by"]
    assert (
        by["label"]["red"][0]["rate"] > 0.9
        and sum(rows[0]["images"] for rows in by["corner"].values()) == len(NAMES) * 3
    )
