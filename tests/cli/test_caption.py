"""`hf-clip caption`: a table, JSON lines and a new column, all resumed; `hf-clip eval captions`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_clip import caption_images, load
from hf_clip_cli import main as cli
from hf_clip_cli.usage import printable
from tests.helpers.squares import NAMES, rows, write_parquet
from tests.helpers.toys import tiny_clip, tiny_coca


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and four photos, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    model, processor = tiny_coca(NAMES)
    model.save_pretrained("model")
    processor.save_pretrained("model")
    (tmp_path / "photos").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(f"photos/{index}.png")
    (tmp_path / "photos/9.png").write_bytes(b"none")
    return tmp_path


@pytest.fixture
def expected(place):
    files = [f"photos/{index}.png" for index in range(3)]
    return dict(zip(files, caption_images(*load("model"), files, max_new_tokens=6, num_beams=2), strict=True))


CAPTION = ["caption", "photos", "--model", "model", "--max-tokens", "6", "--beams", "2", "--dtype", "float32"]


def test_captions_as_table_and_json_lines(expected, capsys):
    assert cli.main(CAPTION) == 1
    out, err = capsys.readouterr()
    head, *lines = out.splitlines()
    assert head.split() == ["image", "caption"]
    # Random weights write letters that no terminal has.
    assert [line.split(None, 1)[-1].strip() for line in lines] == [printable(text) for text in expected.values()]
    assert "photos/9.png" in err and "1 of 4 images could not be read" in err
    assert cli.main([*CAPTION, "--format", "jsonl"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["image"]: row["caption"] for row in rows} == expected


def test_a_stopped_run_goes_on(expected, place, capsys):
    # A line of JSON may hold what other texts end lines with.
    kept = "kept\u2028\x85so"
    first = json.dumps({"image": "photos/0.png", "caption": kept}, ensure_ascii=False)
    (place / "out.jsonl").write_text(f'{first}\n{{"image": "photos/1.png", "capt')
    assert cli.main([*CAPTION, "--output", "out.jsonl"]) == 1
    assert "has 1 already, 3 are left" in capsys.readouterr().err
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().split("\n") if line]
    assert {row["image"]: row["caption"] for row in rows} == expected | {"photos/0.png": kept}


def test_a_new_column_of_a_data_set(place, capsys, monkeypatch):
    content = rows(1)[:5]
    content[2]["image"]["bytes"] = b"none"
    write_parquet(place / "data.parquet", content)
    command = ["caption", "data.parquet", "--model", "model", "--output", "out.parquet", "--batch-size", "2"]
    from hf_clip.captions import column

    # It ends while it writes; the captions are kept.
    monkeypatch.setattr(column, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(command) == 1 and not (place / "out.parquet").exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    kept = place / "out.parquet.captions.jsonl"
    lines = kept.read_text().splitlines()
    assert len(lines) == 6
    kept.write_text("\n".join(lines[:3]) + "\n" + lines[3][:2])
    assert (
        cli.main([*command, "--max-tokens", "3"]) == 1
        and "of another model, data or options" in capsys.readouterr().err
    )
    assert cli.main(command) == 1
    table = pq.read_table(place / "out.parquet")
    assert table.column_names == ["image", "caption", "keywords", "generated_caption"] and not kept.exists()
    assert table["caption"].to_pylist() == [row["caption"] for row in content]
    texts = table["generated_caption"].to_pylist()
    assert texts == [json.loads(line) for line in lines[1:]]
    assert texts[2] is None and all(isinstance(text, str) for text in texts[:2] + texts[3:])
    assert cli.main(command) == 2 and "out.parquet exists" in capsys.readouterr().err


def test_evaluation_of_captions(place, capsys):
    write_parquet(place / "data.parquet", rows(1)[:6])
    command = [
        "eval",
        "captions",
        "--model",
        "model",
        "--data",
        "data.parquet",
        "--max-tokens",
        "4",
        "--output",
        "r.json",
    ]
    assert cli.main(command) == 0
    assert "BLEU-4" in capsys.readouterr().out
    result = json.loads((place / "r.json").read_text())
    assert result["images"] == 6 and {"bleu_4", "rouge_l", "cider_d", "exact"} <= result.keys()
    assert result["examples"][0]["references"] == [rows(1)[0]["caption"]]


def test_what_cannot_be_captioned_is_said(place, capsys):
    model, processor = tiny_clip(NAMES)
    model.save_pretrained("plain")
    processor.save_pretrained("plain")
    assert cli.main(["caption", "photos", "--model", "plain"]) == 1
    assert "which writes no captions" in capsys.readouterr().err
    assert cli.main([*CAPTION, "--output", "out.csv"]) == 2
    assert cli.main([*CAPTION, "--output", "photos/0.png.jsonl"]) == 1
    (place / "notes.jsonl").write_text("hello\n")
    capsys.readouterr()
    assert cli.main([*CAPTION, "--output", "notes.jsonl"]) == 2
    assert (
        "notes.jsonl is no file of captions" in capsys.readouterr().err
        and (place / "notes.jsonl").read_text() == "hello\n"
    )
