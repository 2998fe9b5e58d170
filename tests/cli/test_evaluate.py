"""`hf-clip eval`: every protocol from data to table, JSON, plots and card; what is wrong is said before the work."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_clip import HFCLIPModel
from hf_clip.evaluation import fit_temperature, per_template_accuracy, select_templates
from hf_clip.evaluation.cache import IMAGES_PER_FILE
from hf_clip.hub import check_model_card
from hf_clip.hub.card_updates import push_to_card
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.prompts import load_prompts
from hf_clip_cli import main as cli
from hf_clip_cli.running import make_parser
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import COLOURS, NAMES, SIZE, rows, write_parquet
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]
PROTOCOLS = ("zero-shot", "retrieval", "languages", "linear-probe", "few-shot", "robustness", "clip-score")
DATA = "--model model --data squares.parquet --batch-size 16"
SEVERAL = "--templates 'a {} square' 'a {} thing' '{}'"
TRAINED = f"{DATA} --where part=test --train-where part=train"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("eval")
    model, processor = tiny_clip(NAMES, SIZE)
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    content = [
        {
            **row,
            "label": (color := row["caption"].split(" ")[1]),
            "number": list(COLOURS).index(color),
            "several": [list(COLOURS).index(color), 0],
            "part": "test" if place_ % 3 == 0 else "train",
            "lang": "en" if place_ % 2 else "de",
        }
        for place_, row in enumerate(rows(3))
    ]
    write_parquet(place / "squares.parquet", content)
    words = [
        f"{color},{lang},{color} {word}" for color in COLOURS for lang, word in (("en", "square"), ("sv", "ruta"))
    ]
    (place / "words.csv").write_text("\n".join(["label,lang,caption", *words]))
    (place / "names.txt").write_text("\n".join(COLOURS), encoding="utf-8-sig")
    (place / "gap.txt").write_text("red\n\nblue\n")
    (place / "none.json").write_text("{}")
    (place / "deep.json").write_text("[" * 100_000)
    (place / "huge.json").write_text(f'[{{"top_1": 1{"0" * 400}, "shifted_top_1": 0.4}}]')
    (place / "photos").mkdir()
    (place / "photos/confusion.png").write_bytes(rows(1)[0]["image"]["bytes"])
    (place / "one.json").write_text('[{"top_1": 0.5, "shifted_top_1": 0.4}]')
    (place / "prompts.yaml").write_text(yaml.safe_dump({"templates": ["a {} square"], "classes": list(COLOURS)}))
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")


def evaluate(arguments: str, folder, code: int = 0) -> dict:
    output = folder / "result.json"
    assert cli.main(["eval", *shlex.split(arguments), "--output", str(output)]) == code
    return json.loads(output.read_text())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_help_of_a_protocol_fits_one_screen(protocol, capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", protocol, "--help"])
    text, example = capsys.readouterr().out.split("example: ")
    assert len(text.splitlines()) + 1 <= 40 and max(map(len, text.splitlines())) <= 80
    # It stands on the data that comes along.
    command, root = shlex.split(example), ROOT
    assert command[:3] == ["hf-clip", "eval", protocol]
    options = make_parser().parse_args(command[1:])
    assert all((root / data).is_file() for data in [*options.data, *(getattr(options, "train_data", None) or [])])


def test_an_example_of_the_help_works(tmp_path, monkeypatch, capsys):
    """The others take longer, of the same data and options."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/emoji").symlink_to(Path("model").absolute())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["eval", "zero-shot", "--help"])
    command = shlex.split(capsys.readouterr().out.split("example: ")[1])
    assert cli.main(command[1:]) == 0 and "2000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command_line", "plots"),
    [
        (f"zero-shot {DATA}", {"confusion.png", "calibration.png"}),
        (f"retrieval {DATA}", {"recall.png"}),
        (f"languages {DATA} --captions-data words.csv --key-column label --reference sv", {"languages.png"}),
        (f"linear-probe {TRAINED}", {"sweep.png"}),
        (f"few-shot {TRAINED} --shots 1 2 --num-seeds 2", {"few_shot.png"}),
        (f"zero-shot {DATA} {SEVERAL} --per-template", {"confusion.png", "calibration.png", "per_template.png"}),
        (f"robustness {DATA} --corruptions jpeg --severities 1 3", {"robustness.png"}),
        (f"robustness {DATA} --shifted-data squares.parquet", {"robustness.png"}),
    ],
)
def test_every_protocol_gives_a_table_json_and_plots(command_line, plots, tmp_path, capsys):
    result = evaluate(f"{command_line} --title 'my squares' --plots {tmp_path / 'plots'}", tmp_path)
    assert result["task"] == command_line.split(" ")[0]
    assert (result["title"], result["model"], result["data"]) == ("my squares", "model", ["squares.parquet"])
    assert capsys.readouterr().out.startswith("my squares")
    drawn = list((tmp_path / "plots").iterdir())
    assert {plot.name for plot in drawn} == plots
    for plot in drawn:
        image = Image.open(plot)
        assert 400 <= image.width <= 2000 and np.asarray(image.convert("L")).min() < 150


def test_numbers_get_names_from_a_file_or_from_prompts(tmp_path, capsys):
    by_word = evaluate(f"zero-shot {DATA} --templates 'a {{}} square'", tmp_path)
    # Words are sorted, numbers have the order of the file: the same images are right.
    numbers = f"zero-shot {DATA} --label-column number"
    by_file = evaluate(f"{numbers} --labels @names.txt --templates 'a {{}} square'", tmp_path)
    by_prompts = evaluate(f"{numbers} --prompts prompts.yaml", tmp_path)
    assert by_file["top_1"] == by_prompts["top_1"] == by_word["top_1"]
    assert [row["label"] for row in by_prompts["per_class"]] == list(COLOURS)
    assert by_prompts["templates"] == ["a {} square"]
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump({"templates": ["a {} square"], "classes": list(COLOURS)[:2]}))
    capsys.readouterr()
    # The flag that the names came from.
    assert cli.main(["eval", *shlex.split(f"{numbers} --prompts {few}")]) == 1
    assert "is beyond the 2 names of --prompts, whose indices are 0 to 1" in capsys.readouterr().err


def test_groups_and_languages(tmp_path):
    result = evaluate(f"zero-shot {DATA} --by part", tmp_path)
    assert set(result["by"]) == {"part", "lang"}
    counts = {column: {value: row["images"] for value, row in rows.items()} for column, rows in result["by"].items()}
    assert counts == {"part": {"test": 24, "train": 48}, "lang": {"de": 36, "en": 36}}
    weighed = sum(row["top_1"] * row["images"] for row in result["by"]["lang"].values()) / 72
    assert weighed == pytest.approx(result["top_1"])
    one = evaluate(f"zero-shot {DATA} --where lang=de", tmp_path)
    assert one["by"] == {} and one["top_1"] == pytest.approx(result["by"]["lang"]["de"]["top_1"])
    within = evaluate(f"retrieval {DATA} --where lang=de", tmp_path)["image_to_text"]
    assert evaluate(f"retrieval {DATA}", tmp_path)["by"]["lang"]["de"]["image_to_text"] == pytest.approx(within)
    probe = evaluate(f"linear-probe {TRAINED}", tmp_path)
    counts = [row["images"] for row in probe["by"]["lang"].values()]
    weighed = sum(row["top_1"] * row["images"] for row in probe["by"]["lang"].values()) / 24
    assert counts == [12, 12] and weighed == pytest.approx(probe["top_1"])


def unit_embeddings(place) -> tuple:
    """Model, processor, and embeddings and classes of all images, made here."""
    model, processor = tiny_clip(NAMES, SIZE)
    content = rows(3)
    pixels = processor(images=[row["image"] for row in content], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeddings = model.encode_image(pixels)
    classes = [sorted(COLOURS).index(row["caption"].split(" ")[1]) for row in content]
    return model, processor, embeddings, torch.tensor(classes)


def test_accuracy_is_measured_by_template(place, tmp_path, capsys):
    result = evaluate(
        f"zero-shot {DATA} {SEVERAL} --per-template --select-templates {tmp_path / 'few.yaml'}", tmp_path
    )
    templates, out = ["a {} square", "a {} thing", "{}"], capsys.readouterr().out
    model, processor, embeddings, classes = unit_embeddings(place)
    wanted = per_template_accuracy(model, processor, embeddings, classes, sorted(COLOURS), templates)
    assert result["per_template"] == json.loads(json.dumps(wanted.to_dict())) and wanted.table() in out
    alone = [evaluate(f"zero-shot {DATA} --templates {shlex.quote(one)}", tmp_path)["top_1"] for one in templates]
    assert [*result["per_template"]["templates"].values()] == alone and result["per_template"]["ensemble"] == result[
        "top_1"
    ]
    chosen = select_templates(model, processor, embeddings, classes, sorted(COLOURS), templates)
    assert [(row["template"], row["top_1"]) for row in result["selected_templates"]] == chosen
    # The file gives the ensemble that was chosen, on whatever data.
    assert load_prompts(tmp_path / "few.yaml").templates == tuple(template for template, _ in chosen)
    again = evaluate(f"zero-shot {DATA} --prompts {tmp_path / 'few.yaml'}", tmp_path)
    assert again["top_1"] == chosen[-1][1] and again["templates"] == [template for template, _ in chosen]
    by_number = f"zero-shot {DATA} --label-column number --labels @names.txt {SEVERAL}"
    evaluate(f"{by_number} --select-templates {tmp_path / 'few.yaml'}", tmp_path)
    again = evaluate(f"zero-shot {DATA} --label-column number --prompts {tmp_path / 'few.yaml'}", tmp_path)
    assert again["top_1"] == chosen[-1][1]


def test_the_temperature_is_found_and_used(place, tmp_path, capsys):
    # One that likes neither end: the model is untrained.
    command = f"zero-shot {DATA} --templates '{{}} {{}}'"
    before = evaluate(command, tmp_path)
    assert before["temperature"] == 1 and "calibration" not in before and "per_template" not in before
    found = evaluate(f"{command} --fit-temperature", tmp_path)["calibration"]
    assert found["error_before"] == pytest.approx(before["calibration_error"], abs=1e-6) and found["images"] == 72
    assert f"temperature {found['temperature']:.4g}: calibration error" in capsys.readouterr().out
    model, processor, embeddings, classes = unit_embeddings(place)
    logits = ZeroShotClassifier(model, processor, sorted(COLOURS), ["{} {}"]).logits(embeddings)
    assert found["temperature"] == pytest.approx(fit_temperature(logits, classes), rel=1e-3)
    assert found["temperature"] < 99
    after = evaluate(f"{command} --temperature {found['temperature']!r}", tmp_path)
    assert after["calibration_error"] == pytest.approx(found["error"], abs=1e-6)
    assert after["calibration_error"] != before["calibration_error"]
    moved = {key for key in after if after[key] != before[key]} - {"seconds", "by"}
    assert moved == {"temperature", "calibration_error"}


def test_several_models_are_one_table_and_one_plot(place, tmp_path, capsys):
    model, processor = tiny_clip(NAMES, SIZE)
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    data = f"--data squares.parquet --batch-size 16 --plots {tmp_path / 'plots'}"
    both = evaluate(f"zero-shot --model model {other} {data}", tmp_path)["results"]
    out = capsys.readouterr().out.splitlines()
    assert [plot.name for plot in (tmp_path / "plots").iterdir()] == ["comparison.png"]
    alone = [
        evaluate(f"zero-shot --model {name} --data squares.parquet --batch-size 16", tmp_path)
        for name in ("model", other)
    ]
    errors = [one["calibration_error"] for one in both]
    assert errors == [one["calibration_error"] for one in alone] and errors[0] != errors[1]
    assert out[1].split() == ["model", "top-1", "top-5", "mean", "per", "class"]
    for line, name, one in zip(out[2:4], ("model", other), alone, strict=True):
        assert line.split() == [name, *(f"{one[key]:.3f}" for key in ("top_1", "top_5", "mean_per_class"))]
    assert out[4:6] == [f'{name}: 1 template: "a photo of a {{}}."' for name in ("model", other)]
    assert cli.main(["eval", *shlex.split(f"zero-shot --model model model {data}")]) == 2
    assert "--model model is given twice" in capsys.readouterr().err


def test_models_of_flags_given_twice_are_all_evaluated(place, tmp_path):
    (tmp_path / "other").symlink_to(place / "model")
    (tmp_path / "models.txt").write_text(f"model\n{tmp_path / 'other'}\n")
    twice = evaluate(f"zero-shot {DATA} --model {tmp_path / 'other'}", tmp_path)
    assert [one["model"] for one in twice["results"]] == ["model", str(tmp_path / "other")]
    listed = evaluate(f"zero-shot --model @{tmp_path / 'models.txt'} --data squares.parquet", tmp_path)
    assert [one["model"] for one in listed["results"]] == ["model", str(tmp_path / "other")]


def test_a_result_that_cannot_be_written_is_printed_and_replaces_nothing(tmp_path, monkeypatch, capsys):
    first = evaluate(f"zero-shot {DATA}", tmp_path)
    capsys.readouterr()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_clip_cli.tasks.os.replace", full_disk)
    assert evaluate(f"zero-shot {DATA} --where part=test", tmp_path, code=1) == first
    out, err = capsys.readouterr()
    assert " 24 " in out and "--output: [Errno 28] No space left on device" in err
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_languages_of_captions_are_none_of_an_image(tmp_path, capsys):
    content = [{**row, "captions": ["a", row["caption"]], "lang": ["en", "de"]} for row in rows(1)]
    write_parquet(tmp_path / "many.parquet", [{k: v for k, v in row.items() if k != "caption"} for row in content])
    data = f"retrieval --model model --data {tmp_path / 'many.parquet'}"
    assert evaluate(data, tmp_path)["by"] == {}
    capsys.readouterr()
    assert cli.main(["eval", *shlex.split(f"{data} --by lang")]) == 1
    err = capsys.readouterr().err
    assert "column 'lang' holds a list of 2 (str), and one value is wanted: set --by to columns of single" in err


def test_the_second_data_set_has_flags_of_its_own(tmp_path, capsys):
    shifted = f"robustness {DATA} --where part=test --shifted-data squares.parquet"
    result = evaluate(f"{shifted} --shifted-where part=train", tmp_path)
    assert (result["images"], result["shifted_images"]) == (24, 48)
    for flags in ("--shifted-split dev", "--train-split dev"):
        role = flags[2:].partition("-")[0]
        task = shifted if role == "shifted" else f"linear-probe {TRAINED}"
        capsys.readouterr()
        assert cli.main(["eval", *shlex.split(f"{task} {flags}")]) == 1
        err = capsys.readouterr().err
        assert f"--{role}-" in err and " --split" not in err, err


def test_a_plot_that_cannot_be_drawn_loses_no_result(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr("hf_clip.evaluation.plots.result_charts.charts_of", lambda result: {"confusions.png": fail})
    result = evaluate(f"zero-shot {DATA} --plots {tmp_path / 'plots'}", tmp_path, code=1)
    out, err = capsys.readouterr()
    assert f"{result['top_1']:.3f}" in out and err.splitlines()[-1] == "hf-clip: plot: no font at all"


@pytest.mark.parametrize("by_name", [True, False])
def test_few_shot_stands_beside_zero_shot_where_classes_have_names(by_name, tmp_path, capsys):
    few = f"few-shot {TRAINED} --shots 1 2 --num-seeds 2 --plots {tmp_path}"
    if by_name:
        result = evaluate(few, tmp_path)
        alone = evaluate(f"zero-shot {DATA} --where part=test", tmp_path)
        assert result["zero_shot_top_1"] == alone["top_1"] and result["templates"] == alone["templates"]
        assert f"0{alone['top_1']:8.3f}   zero-shot" in capsys.readouterr().out
    result = evaluate(f"{few} --label-column number", tmp_path)
    assert result["zero_shot_top_1"] is None and result["templates"] == []
    assert "zero-shot needs the classes' names" in capsys.readouterr().out
    if by_name:
        named = evaluate(f"{few} --label-column number --labels @names.txt", tmp_path)
        assert named["zero_shot_top_1"] == alone["top_1"] and named["shots"] == result["shots"]


def test_several_labels(tmp_path, capsys):
    result = evaluate(
        f"zero-shot {DATA} --label-column several --multi-label --labels @names.txt --plots {tmp_path}", tmp_path
    )
    assert result["images"] == 72 and result["mean_per_class"] is None
    assert [row["images"] for row in result["per_class"]] == [72, *[12] * 5]
    # Every image is red too: that class's precision is 1 everywhere.
    assert result["per_class"][0]["average_precision"] == 1
    precisions = [row["average_precision"] for row in result["per_class"]]
    assert result["mean_average_precision"] == pytest.approx(np.mean(precisions))


def test_a_second_run_finds_the_features_of_the_first(tmp_path, monkeypatch):
    cache = f"--cache-dir {tmp_path / 'cache'}"
    first = evaluate(f"zero-shot {DATA} {cache}", tmp_path)
    encoded, encode = [], HFCLIPModel.encode_image

    def counted(model, pixel_values, **options):
        encoded.append(len(pixel_values))
        return encode(model, pixel_values, **options)

    monkeypatch.setattr(HFCLIPModel, "encode_image", counted)
    assert evaluate(f"zero-shot {DATA} {cache}", tmp_path)["top_1"] == first["top_1"]
    # The probe image of the cache's key, and none of the data's.
    assert encoded == [1]
    evaluate(f"zero-shot {DATA} {cache} --no-cache", tmp_path)
    assert sum(encoded) == 1 + first["images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"zero-shot {DATA} --output model", "--output model is a folder: name a file, such as model/result.json"),
        (f"zero-shot {DATA} --plots squares.parquet", "--plots squares.parquet is a file"),
        (f"zero-shot {DATA} --labels @gone.txt", "--labels: @gone.txt: there is no file gone.txt"),
        (
            f"zero-shot {DATA} {SEVERAL} --per-template --multi-label",
            "need one label an image",
        ),
        (
            f"zero-shot {DATA} {SEVERAL} --select-templates a/b.yaml",
            "a/b.yaml: there is no folder a",
        ),
        (f"zero-shot {DATA} {SEVERAL} --select-templates few.txt", "name a file that ends in .yaml"),
        (f"zero-shot {DATA} --labels @gap.txt", "line 2 is empty"),
        (f"zero-shot {DATA} --prompts nothing", "--prompts nothing: 'nothing' is not a data set with known prompts"),
        (f"zero-shot {DATA} --prompts CIFAR10 --templates 'a {{}}'", "both give templates"),
        (f"zero-shot {DATA} --templates nothing", "--templates 'nothing' has no '{}'"),
        (f"zero-shot {DATA} --by color", "--by color: squares.parquet has the columns image, caption"),
        (f"linear-probe {DATA}", "linear-probe trains: say on what, with --train-data"),
        (f"few-shot {DATA} --train-where part", "--train-where 'part' is not COLUMN=VALUE"),
        (f"robustness {DATA} --shifted-data squares.parquet --corruptions jpeg", "two measurements"),
        (f"linear-probe {DATA} --train-where part=train", "would be tested on rows that it trains on"),
        (f"few-shot {DATA} --train-data squares.parquet", "would be tested on rows that it trains on"),
        (f"robustness {DATA} --corruptions fog", "'fog' is no corruption: use gaussian_noise, shot_noise"),
        (f"robustness {DATA} --severities 6", "'6' is not a whole number from 1 to 5"),
        (f"zero-shot {DATA} --plots photos", "--plots photos/confusion.png exists and is not a plot in PNG"),
        (f"zero-shot {DATA} --revision v1 --push-to-card", "give it without --revision"),
        (f"robustness {DATA} --baselines names.txt", "name the second with --shifted-data"),
        (f"robustness {DATA} --shifted-data squares.parquet --baselines names.txt", "is no JSON list of objects"),
        (
            f"robustness {DATA} --shifted-data squares.parquet --baselines deep.json",
            "deep.json is no JSON list of obj",
        ),
        (
            f"robustness {DATA} --shifted-data squares.parquet --baselines huge.json",
            "huge.json is no JSON list of obj",
        ),
        (f"robustness {DATA} --shifted-data squares.parquet --baselines none.json", "0 baselines make no line"),
        (f"robustness {DATA} --shifted-data squares.parquet --baselines one.json", "1 baselines make no line"),
        (f"zero-shot {DATA} --plots names.txt/plots", "--plots names.txt/plots cannot be made (Not a directory)"),
        (
            f"zero-shot {DATA} --cache-dir names.txt",
            "--cache-dir names.txt is a file: name a folder",
        ),
        ("zero-shot --model owner/model --data squares.parquet --push-to-card", "there is no token"),
        ("zero-shot --model squares.parquet --data squares.parquet --push-to-card", "is a file, which has no card"),
    ],
)
def test_wrong_usage_is_told_before_the_model_is_loaded(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("hf_clip_cli.models.open_model", lambda *_: pytest.fail("The model was loaded."))
    assert cli.main(["eval", *shlex.split(arguments)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1


def test_numbers_without_names_are_told_the_option(capsys):
    assert cli.main(["eval", *shlex.split(f"zero-shot {DATA} --label-column number")]) == 1
    assert "--labels" in capsys.readouterr().err


def test_templates_of_the_model_are_compared_only_if_there_are_several(capsys):
    assert cli.main(["eval", *shlex.split(f"zero-shot {DATA} --per-template")]) == 2
    assert "compare templates: give two or more with --templates, or --prompts" in capsys.readouterr().err


def evaluate_on_this_rank(place: str, folder: str) -> list[str]:
    """What the command prints for three protocols on this process of several."""
    os.chdir(place)
    printed = []
    for protocol in (f"zero-shot {DATA}", f"retrieval {DATA}", f"linear-probe {TRAINED}"):
        buffer = io.StringIO()
        with contextlib.redirect_stdout(buffer):
            output = Path(folder) / f"{protocol.split(' ')[0]}.json"
            arguments = shlex.split(f"{protocol} --device cpu --no-cache --output {output}")
            assert cli.main(["eval", *arguments]) == 0
        printed.append(buffer.getvalue())
    return printed


def test_started_by_a_launcher_two_processes_write_what_one_writes(place, tmp_path, capsys):
    """The command as users start it: two processes by torchrun, whose first one alone prints and writes."""
    content = [{**row, "label": row["caption"].split(" ")[1]} for row in rows(12)]
    content[7]["image"] = content[280]["image"] = {"bytes": b"broken", "path": None}
    # More than one share of images, and the last one short.
    assert IMAGES_PER_FILE < len(content) < 2 * IMAGES_PER_FILE
    data = write_parquet(tmp_path / "many.parquet", content)
    arguments = shlex.split(f"zero-shot --model model --data {data} --device cpu --no-cache --title squares")
    one = evaluate(shlex.join(arguments), tmp_path) | {"seconds": 0}
    printed = capsys.readouterr().out
    start = [*warm_python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*start, *warm_python(), "-m", "hf_clip", "eval", *arguments, "--output", tmp_path / "two.json"]
    completed = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
    assert completed.returncode == 0, completed.stderr
    assert json.loads((tmp_path / "two.json").read_text()) | {"seconds": 0} == one
    assert completed.stdout == printed and printed.startswith("squares\n") and one["images"] == 286


def test_two_processes_give_what_one_gives_and_one_of_them_prints(place, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = evaluate_on_this_rank(str(place), str(tmp_path / "one"))
    two, nothing = run_on_ranks(evaluate_on_this_rank, 2, str(place), str(tmp_path / "two"))
    assert (two, nothing) == (one, ["", "", ""])
    for file in (tmp_path / "one").iterdir():
        results = [json.loads((tmp_path / count / file.name).read_text()) | {"seconds": 0} for count in ("one", "two")]
        assert results[0] == results[1]


# Cards


def test_results_stand_in_the_card_and_are_replaced(place, tmp_path, capsys):
    for protocol in (f"zero-shot {DATA}", f"few-shot {TRAINED} --shots 1 2 --num-seeds 2", f"zero-shot {DATA}"):
        result = evaluate(f"{protocol} --title 'my {protocol.split(' ')[0]}' --push-to-card", tmp_path)
    card = check_model_card((place / "model/README.md").read_text())
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found["my zero-shot", "accuracy"] == pytest.approx(result["top_1"], abs=1e-4)
    assert len(card.data.eval_results) == len(found)
    assert {name for name, _ in found} == {"my zero-shot", "my few-shot"}
    # What people wrote stays.
    (place / "model/README.md").write_text((place / "model/README.md").read_text() + "\nA sentence of mine.\n")
    push_to_card(place / "model", {**result, "top_1": 0.125})
    text = (place / "model/README.md").read_text()
    assert "A sentence of mine." in text
    values = {
        one.metric_type: one.metric_value for one in ModelCard(text).data.eval_results if "zero" in one.dataset_name
    }
    assert values["accuracy"] == 0.125


def test_commands_of_the_page_are_as_it_says(tmp_path, monkeypatch, capsys):
    root = ROOT
    page = (root / "docs/evaluation.md").read_text(encoding="utf-8")
    commands = [shlex.split(one) for one in re.findall(r"^    (?:.*-m hf_clip|hf-clip) ([^#\n]+)", page, re.M)]
    assert {command[1] for command in commands if command[0] == "eval"} == set(PROTOCOLS)
    for command in commands:
        make_parser().parse_args(command)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/emoji").symlink_to(Path("model").absolute())
    (tmp_path / "examples").symlink_to(root / "examples")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        # The others take longer, or stand for data of the reader's.
        if command[1] == "zero-shot" and "runs/emoji" in command:
            assert cli.main(command) == 0
    assert (tmp_path / "runs/plots/confusion.png").is_file() and "top-1 of 2 templates" in capsys.readouterr().out
