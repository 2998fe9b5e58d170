"""`hf-clip classify` and `hf-clip prompts`: formats, words, devices, and models that cannot be opened."""

import csv
import io
import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clip.conversion import ConversionError, loading
from hf_clip_cli import main as cli
from hf_clip_cli.classify import find_images
from hf_clip_cli.sheet import draw_sheet
from tests.helpers.mock_hub import running_hub, use_in_this_process
from tests.helpers.squares import NAMES, SIZE, encode, rows
from tests.helpers.toys import gray, tiny_clip

LABELS = NAMES[:4]
CLASSIFY = ["classify", "photos", "--labels", ",".join(LABELS), "--model", "model"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    model, processor = tiny_clip(NAMES, SIZE)
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    (place / "photos").mkdir()
    for index, row in enumerate(rows(1)[:3]):
        (place / f"photos/{index}.png").write_bytes(row["image"]["bytes"])
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)


def classify(capsys, *options: str, code: int = 0) -> str:
    assert cli.main([*CLASSIFY, *options]) == code
    return capsys.readouterr().out


def as_json(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_csv_has_the_numbers_of_json_lines(capsys):
    lines = as_json(classify(capsys, "--format", "jsonl", "--top-k", "2"))
    table = list(csv.DictReader(io.StringIO(classify(capsys, "--format", "csv", "--top-k", "2"))))
    assert list(table[0]) == ["image", "label_1", "score_1", "label_2", "score_2"]
    for row, line in zip(table, lines, strict=True):
        assert row["image"] == line["image"]
        for place, one in enumerate(line["labels"], 1):
            assert row[f"label_{place}"] == one["label"]
            assert float(row[f"score_{place}"]) == pytest.approx(one["score"], abs=1e-6)


def test_what_the_threshold_leaves_out_is_left_empty(capsys):
    [row, *_] = csv.DictReader(io.StringIO(classify(capsys, "--format", "csv", "--threshold", "1")))
    assert list(row.values()) == ["photos/0.png", *[""] * 6]
    assert classify(capsys, "--threshold", "1").splitlines()[1].split() == ["photos/0.png", "-"]
    assert as_json(classify(capsys, "--threshold", "1", "--format", "jsonl"))[0]["labels"] == []


def test_a_temperature_makes_scores_less_sure_and_keeps_their_order(capsys):
    plain, soft = (as_json(classify(capsys, "--format", "jsonl", *more)) for more in ((), ("--temperature", "1000")))
    for sure, unsure in zip(plain, soft, strict=True):
        assert [one["label"] for one in sure["labels"]] == [one["label"] for one in unsure["labels"]]
        assert unsure["labels"][0]["score"] == pytest.approx(1 / len(LABELS), abs=0.01) != sure["labels"][0]["score"]


def test_a_label_for_none_of_them_and_labels_scored_alone(capsys):
    lines = as_json(classify(capsys, "--format", "jsonl", "--top-k", "9", "--reject", "no square"))
    assert {one["label"] for one in lines[0]["labels"]} == {*LABELS, "no square"}
    assert sum(one["score"] for one in lines[0]["labels"]) == pytest.approx(1)
    alone = as_json(classify(capsys, "--format", "jsonl", "--top-k", "9", "--reject", "no square", "--multi-label"))
    odds = {one["label"]: one["score"] for one in lines[0]["labels"]}
    for one in alone[0]["labels"]:
        assert one["score"] == pytest.approx(odds[one["label"]] / (odds[one["label"]] + odds["no square"]), abs=1e-5)
    assert len(as_json(classify(capsys, "--format", "jsonl", "--multi-label"))) == 3


def test_words_of_a_data_set_or_a_file(capsys, tmp_path):
    command = ["classify", "photos/0.png", "--model", "model", "--format", "jsonl", "--top-k", "99"]
    assert cli.main([*command, "--prompts", "eurosat"]) == 0
    [line] = as_json(capsys.readouterr().out)
    assert len(line["labels"]) == 10 and "forest" in {one["label"] for one in line["labels"]}
    file = tmp_path / "own.yaml"
    file.write_text("templates: ['a {}', 'the {}']\nclasses: [[red square, crimson], blue]\n")
    assert cli.main([*command, "--prompts", str(file)]) == 0
    own = capsys.readouterr().out
    assert {one["label"] for one in as_json(own)[0]["labels"]} == {"red square", "blue"}
    assert cli.main([*command, "--prompts", str(file), "--labels", "red square,blue"]) == 0
    fewer_names = capsys.readouterr().out
    assert cli.main([*command, "--labels", "red square,blue", "--templates", "a {}", "the {}"]) == 0
    assert capsys.readouterr().out == fewer_names != own


def test_a_sheet_shows_the_images(capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    classify(capsys, "--sheet", str(sheet))
    with Image.open(sheet) as image:
        # Three of 160 pixels in a row, with margins of 8.
        assert image.size == (3 * 168 + 8, 160 + 8 + 28 + 8)
        reds = np.asarray(image)[..., 0].astype(int) - np.asarray(image)[..., 1] > 120
        assert reds[8:168].any() and not reds[172:].any()
    many = draw_sheet([("photos/0.png", [{"label": "a\nlabel " * 30, "score": 0.5}])] * 17)
    assert many.size == (5 * 168 + 8, 4 * (160 + 8 + 28) + 8)


def test_a_list_of_labels_with_a_byte_order_mark(capsys, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(LABELS), encoding="utf-8-sig")
    command = ["classify", "photos/0.png", "--labels", f"@{file}", "--model", "model", "--format", "jsonl"]
    assert cli.main([*command, "--top-k", "9"]) == 0
    assert {one["label"] for one in as_json(capsys.readouterr().out)[0]["labels"]} == set(LABELS)


def test_labels_that_are_cut_to_the_same_tokens_are_one_line_of_warning(capsys):
    long = "a very long story " * 40
    assert cli.main(["classify", "photos/0.png", "--labels", f"{long} one,{long} two", "--model", "model"]) == 0
    err = capsys.readouterr().err
    warning, templates = err.splitlines()
    assert (
        warning.startswith("hf-clip: labels 'a very long") and templates == 'hf-clip: 1 template: "a photo of a {}."'
    )


def test_names_of_files_that_are_no_text(capsys, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(encode(gray(3)))
    (tmp_path / "z.png").write_bytes(encode(gray(3)))
    for style in ("table", "csv", "jsonl"):
        command = ["classify", str(tmp_path), "--labels", "a,b", "--model", "model", "--format", style]
        assert cli.main(command) == 0
        out = capsys.readouterr().out
        assert "caf\\udce9.png" in out and "z.png" in out
    assert os.fsencode(as_json(out)[0]["image"]) == os.fsencode(tmp_path / name)


def test_control_characters_of_names_stay_out_of_the_terminal(capsys, tmp_path):
    name, labels = "a\n\x1b[31mb.png", tmp_path / "labels.txt"
    (tmp_path / name).write_bytes(encode(gray(3)))
    (tmp_path / "broken\x1b[31m.png").write_bytes(b"broken")
    labels.write_text("red\nwith \x1b[31m color\n")
    command = ["classify", str(tmp_path), "--labels", f"@{labels}", "--model", "model"]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert "a\\x0a\\x1b[31mb.png" in out and "with \\x1b[31m color" in out and len(out.splitlines()) == 2
    assert "broken\\x1b[31m.png" in err and "\x1b" not in out + err
    assert cli.main([*command, "--format", "jsonl"]) == 1
    assert as_json(capsys.readouterr().out)[0]["image"] == str(tmp_path / name)
    assert cli.main(["classify", "gone\x1b[31m", "--labels", "a,b", "--model", "model"]) == 2
    assert "gone\\x1b[31m" in capsys.readouterr().err


def test_each_image_is_read_once_however_links_lead_to_it(capsys, tmp_path, monkeypatch):
    (tmp_path / "nested").mkdir()
    for name in ("nested/a.png", "nested/z.png"):
        (tmp_path / name).write_bytes(encode(gray(3)))
    (tmp_path / "nested/loop").symlink_to(tmp_path / "nested")
    # Two names in one folder are two images, whatever they share.
    (tmp_path / "nested/b.png").symlink_to(tmp_path / "nested/a.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["nested/**/*.png"]) == ["nested/a.png", "nested/b.png", "nested/z.png"]
    assert find_images(["nested/z.png", "nested", "./nested/a.png"]) == [
        "nested/z.png",
        "nested/a.png",
        "nested/b.png",
    ]


def test_an_empty_name_is_not_the_working_folder(capsys):
    assert cli.main(["classify", "", "--labels", "a,b", "--model", "model"]) == 2
    assert "'' names no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--labels @photos/0.png", "photos/0.png is not a text file in UTF-8"),
        ("--labels @photos", "photos is not a text file in UTF-8"),
        ("", "there are no labels: give some with --labels"),
        ("--prompts eurosatt", "'eurosatt' is not a data set with known prompts. Nearest: EuroSAT"),
        ("--prompts gone.yaml", "there is no file gone.yaml"),
        ("--labels a --prompts eurosat --templates {}", "--prompts and --templates both"),
        ("--labels a --sheet gone/sheet.png", "there is no folder gone"),
        ("--labels a --sheet photos", "--sheet photos is a folder: name a file, such as photos/sheet.png"),
        ("--labels a,b --reject b", "--reject 'b' is one of the labels"),
        ("--labels 'something else,b' --multi-label", "--reject 'something else' is one of the labels"),
        ("--labels a --device cuda", "--device cuda cannot be used"),
        ("--labels a --device meta", "'meta' is not a device"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, options, message):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is such a device here")
    assert cli.main(["classify", "photos", "--model", "model", *shlex.split(options)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1


def spoil(config: dict | str | bytes | None = None, cut: str = "", changes: dict | None = None):
    def spoiled(folder: Path) -> None:
        if changes:
            there = json.loads((folder / "config.json").read_text())
            towers = {name: {**there[name], **changes} for name in ("text_config", "vision_config")}
            (folder / "config.json").write_text(json.dumps({**there, **towers, **changes}))
        if isinstance(config, bytes):
            (folder / "config.json").write_bytes(config)
        if cut:
            (folder / cut).write_bytes((folder / cut).read_bytes()[:3000])

    return spoiled


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param(spoil(b"{}"), id="empty settings"),
        pytest.param(spoil(b"[]"), id="a list"),
        pytest.param(spoil(b"\xff\x00{"), id="no text"),
        pytest.param(spoil(b'{"model_type": "bert"}'), id="another model"),
        pytest.param(spoil(b'{"model_type": "hf_clip", "text_config": "x"}'), id="settings of another shape"),
        pytest.param(spoil(changes={"projection_dim": 20}), id="another width"),
        pytest.param(spoil(cut="model.safetensors"), id="weights cut off"),
        pytest.param(spoil(cut="tokenizer.json"), id="tokenizer cut off"),
        pytest.param(lambda folder: (folder / "processor_config.json").unlink(), id="no processor"),
    ],
)
def test_a_model_that_cannot_be_opened_is_one_line_that_names_it(place, capsys, tmp_path, spoiled):
    shutil.copytree(place / "model", tmp_path / "spoiled")
    spoiled(tmp_path / "spoiled")
    command = ["classify", "photos/0.png", "--labels", "a,b", "--model", str(tmp_path / "spoiled")]
    assert cli.main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("hf-clip: ") and len(err.splitlines()) == 1 and str(tmp_path / "spoiled") in err


def test_offline_the_hub_is_not_asked(capsys):
    assert cli.main(["classify", "photos/0.png", "--labels", "a,b", "--model", "foo/bar"]) == 1
    err = capsys.readouterr().err
    assert "not in the Hub's cache" in err and "HF_HUB_OFFLINE" in err and len(err.splitlines()) == 1


def test_a_first_classification_asks_the_hub_once_and_fetches_each_file_once(place, tmp_path, monkeypatch):
    with running_hub({"owner/clip": place / "model"}) as hub:
        use_in_this_process(hub, monkeypatch, tmp_path)
        for requests in (1, 2):
            assert cli.main([*CLASSIFY[:-1], "owner/clip"]) == 0
            assert sum(count for (_, path), count in hub.requests.items() if path.startswith("/api/")) == requests
        assert len(hub.downloaded) == len(set(hub.downloaded)) > 3
        # The second time nothing else is asked for.
        assert max(count for (_, path), count in hub.requests.items() if not path.startswith("/api/")) == 1


def test_a_single_label_is_warned_of_in_flags(capsys):
    assert cli.main(["classify", "photos/0.png", "--labels", "a dog", "--model", "model"]) == 0
    err = capsys.readouterr().err
    assert "--labels holds a single label" in err and "or a --reject such as" in err


def test_a_classification_reads_the_weights_once(place, monkeypatch):
    read, kinds = loading.read_weights, []
    monkeypatch.setattr(
        loading, "read_weights", lambda *args, **options: kinds.append(options) or read(*args, **options)
    )
    monkeypatch.setattr("transformers.modeling_utils.safe_open", lambda *_, **__: pytest.fail("read another time"))
    assert cli.main(CLASSIFY) == 0
    # First their names and shapes alone.
    assert kinds == [{"on_meta": True}, {}]


def test_what_weights_alone_do_not_say_is_asked_for_in_flags_that_then_work(capsys, monkeypatch, tmp_path):
    """The first message about a checkpoint of OpenCLIP's training names the flag and value to give."""
    raised = ConversionError("w.pt: pass `architecture=open_clip/ViT-B-32` or `hidden_act=gelu`; `epoch` is a word.")
    monkeypatch.setattr("hf_clip_cli.models.load", lambda *_, **__: (_ for _ in ()).throw(raised))
    assert cli.main(CLASSIFY) == 1
    err = capsys.readouterr().err
    assert "pass --architecture open_clip/ViT-B-32 or --hidden-act gelu; `epoch` is a word" in err
    given = {}
    monkeypatch.setattr("hf_clip_cli.models.load", lambda *_, **options: given.update(options) or 1 / 0)
    more = "--architecture open_clip/ViT-B-32 --hidden-act gelu --revision v1 --dtype bfloat16 --device cpu"
    assert cli.main([*CLASSIFY, *more.split()]) == 1
    assert {key: str(value) for key, value in given.items()} == {
        "architecture": "open_clip/ViT-B-32", "hidden_act": "gelu", "revision": "v1", "dtype": "bfloat16",
        "device": "cpu", "base": "None", "text_cleaning": "None",
    }  # fmt: skip


def test_a_model_of_nan_is_an_error_and_no_row(place, capsys, tmp_path):
    model, processor = tiny_clip(NAMES, SIZE)
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    processor.save_pretrained(tmp_path / "nan")
    command = ["classify", "photos", "--labels", "a,b", "--model", str(tmp_path / "nan"), "--format", "jsonl"]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and "NaN or infinity" in err


def test_prompts_lists_data_sets_with_their_counts_and_shows_one(capsys):
    assert cli.main(["prompts"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["data", "set", "classes", "templates", "best"]
    assert ["ImageNet", "1000", "80", "7"] in lines and ["EuroSAT", "10", "3", "-"] in lines and len(lines) == 27 + 1
    assert cli.main(["prompts", "imagenet"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "ImageNet: 1000 classes, 80 templates"
    assert "  a bad photo of a {}." in shown and "     0  tench" in shown and "best templates" in shown
    assert cli.main(["prompts", "imagenett"]) == 2
    assert "Nearest: ImageNet" in capsys.readouterr().err
