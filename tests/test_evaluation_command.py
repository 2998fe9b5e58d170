"""`hf-clip eval`: every protocol from data to table, JSON, plots and card; what is wrong is said before the work."""

import contextlib
import io
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_clip import cli
from hf_clip.evaluation import evaluate_zero_shot
from hf_clip.evaluation.card import push_to_card
from hf_clip.evaluation.suite import read_suite, run_suite
from hf_clip.hub import check_model_card
from hf_clip.prompts import load_prompts
from hf_clip.sources import open_source
from tests.ranks import run_on_ranks
from tests.squares import COLOURS, NAMES, SIZE, rows, write_parquet
from tests.toys import tiny_clip

PROTOCOLS = ("zero-shot", "retrieval", "linear-probe", "few-shot", "robustness")
DATA = "--model model --data squares.parquet --batch-size 16"
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
            "label": (colour := row["caption"].split(" ")[1]),
            "number": list(COLOURS).index(colour),
            "several": [list(COLOURS).index(colour), 0],
            "part": "test" if place_ % 3 == 0 else "train",
            "lang": "en" if place_ % 2 else "de",
        }
        for place_, row in enumerate(rows(3))
    ]
    write_parquet(place / "squares.parquet", content)
    (place / "names.txt").write_text("\n".join(COLOURS), encoding="utf-8-sig")
    (place / "gap.txt").write_text("red\n\nblue\n")
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
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("command_line", "plots"),
    [
        (f"zero-shot {DATA}", {"confusion.png", "calibration.png"}),
        (f"retrieval {DATA}", {"recall.png"}),
        (f"linear-probe {TRAINED}", {"sweep.png"}),
        (f"few-shot {TRAINED} --shots 1 2 --seeds 2", {"few_shot.png"}),
        (f"robustness {DATA} --corruption jpeg --severity 1 --severity 3", {"robustness.png"}),
        (f"robustness {DATA} --shifted-data squares.parquet", {"robustness.png"}),
    ],
)
def test_every_protocol_gives_a_table_json_and_plots(command_line, plots, tmp_path, capsys):
    result = evaluate(f"{command_line} --title 'my squares' --plots {tmp_path / 'plots'}", tmp_path)
    assert result["protocol"] == command_line.split(" ")[0]
    assert (result["title"], result["model"], result["data"]) == ("my squares", "model", ["squares.parquet"])
    assert capsys.readouterr().out.startswith("my squares")
    drawn = list((tmp_path / "plots").iterdir())
    assert {plot.name for plot in drawn} == plots
    for plot in drawn:
        picture = Image.open(plot)
        assert 400 <= picture.width <= 2000 and np.asarray(picture.convert("L")).min() < 150


def test_numbers_get_names_from_a_file_or_from_prompts(tmp_path):
    by_word = evaluate(f"zero-shot {DATA} --template 'a {{}} square'", tmp_path)
    # Words are sorted, numbers have the order of the file: the same pictures are right.
    numbers = f"zero-shot {DATA} --label-column number"
    by_file = evaluate(f"{numbers} --label-names names.txt --template 'a {{}} square'", tmp_path)
    by_prompts = evaluate(f"{numbers} --prompts prompts.yaml", tmp_path)
    assert by_file["top_1"] == by_prompts["top_1"] == by_word["top_1"]
    assert [row["label"] for row in by_prompts["per_class"]] == list(COLOURS)
    assert by_prompts["templates"] == ["a {} square"]


def test_groups_and_languages(tmp_path):
    result = evaluate(f"zero-shot {DATA} --by part", tmp_path)
    assert set(result["by"]) == {"part", "lang"}
    counts = {column: {value: row["pictures"] for value, row in rows.items()} for column, rows in result["by"].items()}
    assert counts == {"part": {"test": 24, "train": 48}, "lang": {"de": 36, "en": 36}}
    weighed = sum(row["top_1"] * row["pictures"] for row in result["by"]["lang"].values()) / 72
    assert weighed == pytest.approx(result["top_1"])
    one = evaluate(f"zero-shot {DATA} --where lang=de", tmp_path)
    assert one["by"] == {} and one["top_1"] == pytest.approx(result["by"]["lang"]["de"]["top_1"])
    within = evaluate(f"retrieval {DATA} --where lang=de", tmp_path)["image_to_text"]
    assert evaluate(f"retrieval {DATA}", tmp_path)["by"]["lang"]["de"]["image_to_text"] == pytest.approx(within)


def test_several_labels(tmp_path, capsys):
    result = evaluate(
        f"zero-shot {DATA} --label-column several --multi-label --label-names names.txt --plots {tmp_path}", tmp_path
    )
    assert result["pictures"] == 72 and result["mean_per_class"] is None
    assert [row["pictures"] for row in result["per_class"]] == [72, *[12] * 5]
    # Every picture is red too: that class's precision is 1 everywhere.
    assert result["per_class"][0]["average_precision"] == 1
    precisions = [row["average_precision"] for row in result["per_class"]]
    assert result["mean_average_precision"] == pytest.approx(np.mean(precisions))


def test_a_second_run_finds_the_features_of_the_first(tmp_path, monkeypatch):
    cache = f"--cache-dir {tmp_path / 'cache'}"
    first = evaluate(f"zero-shot {DATA} {cache}", tmp_path)
    monkeypatch.setattr("hf_clip.modeling_hf_clip.HFCLIPModel.encode_image", None)
    assert evaluate(f"zero-shot {DATA} {cache}", tmp_path)["top_1"] == first["top_1"]
    assert cli.main(["eval", *shlex.split(f"zero-shot {DATA} {cache} --no-cache")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"zero-shot {DATA} --output model", "--output model is a folder: name a file, such as model/result.json"),
        (f"zero-shot {DATA} --plots squares.parquet", "--plots squares.parquet is a file"),
        (f"zero-shot {DATA} --label-names gone.txt", "--label-names gone.txt"),
        (f"zero-shot {DATA} --label-names gap.txt", "line 2 is empty"),
        (f"zero-shot {DATA} --prompts nothing", "--prompts nothing: 'nothing' is not a data set with known prompts"),
        (f"zero-shot {DATA} --prompts CIFAR10 --template 'a {{}}'", "both give templates"),
        (f"zero-shot {DATA} --template nothing", "--template 'nothing' has no '{}'"),
        (f"zero-shot {DATA} --by colour", "--by colour: squares.parquet has the columns image, caption"),
        (f"linear-probe {DATA}", "linear-probe trains: say on what, with --train-data"),
        (f"few-shot {DATA} --train-where part", "--train-where 'part' is not COLUMN=VALUE"),
        (f"robustness {DATA} --shifted-data squares.parquet --corruption jpeg", "two measurements"),
        (f"robustness {DATA} --baselines names.txt", "name the second with --shifted-data"),
        (f"robustness {DATA} --shifted-data squares.parquet --baselines names.txt", "is no JSON list of objects"),
        ("zero-shot --model owner/model --data squares.parquet --push-to-card", "there is no token"),
        ("zero-shot --model squares.parquet --data squares.parquet --push-to-card", "is a file, which has no card"),
    ],
)
def test_wrong_usage_is_told_before_the_model_is_loaded(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_load", lambda *_: pytest.fail("The model was loaded."))
    assert cli.main(["eval", *shlex.split(arguments)]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1


def test_numbers_without_names_are_told_the_option(capsys):
    assert cli.main(["eval", *shlex.split(f"zero-shot {DATA} --label-column number")]) == 1
    assert "--label-names FILE" in capsys.readouterr().err


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
    for protocol in (f"zero-shot {DATA}", f"few-shot {TRAINED} --shots 1 2 --seeds 2", f"zero-shot {DATA}"):
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


# Suites


def suite_file(folder, datasets: dict):
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({"datasets": datasets}, sort_keys=False))
    return file


def test_a_suite_is_one_table_beside_published_numbers(place, tmp_path):
    squares = str(place / "squares.parquet")
    file = suite_file(
        tmp_path,
        {
            "squares": {"data": squares, "templates": ["a {} square"], "published": {"OpenAI": 0.5}},
            "numbers": {"data": squares, "label_column": "number", "prompts": str(place / "prompts.yaml")},
            "captions": {"data": squares, "protocol": "retrieval", "metric": "image_to_text.recall_at_5"},
            "gone": {"data": "gone.parquet"},
        },
    )
    model = tiny_clip(NAMES, SIZE)
    result = run_suite(*model, read_suite(file), tmp_path)
    by_hand = evaluate_zero_shot(*model, open_source(squares), templates=["a {} square"]).top_1
    assert result.scores["squares"] == result.scores["numbers"] == by_hand
    assert result.scores["captions"] == result.results["captions"]["image_to_text"]["recall_at_5"]
    lines = result.table().splitlines()
    assert lines[1].split() == ["squares", f"{by_hand:.3f}", "0.500"]
    assert lines[4].startswith("gone") and "not evaluated" in lines[4]
    json.dumps(result.to_dict())
    assert [entry.name for entry in read_suite(file, ["captions"])] == ["captions"]


@pytest.mark.parametrize(
    ("datasets", "only", "said"),
    [({"a": {"data": "x", "colum": 1}}, None, "a has unknown keys: colum"), ({"a": {}}, None, "a has no `data`"),
     ({"a": {"data": "x"}}, ["b"], "b: not in"), ({"a": {"data": "x", "protocol": "y"}}, None, "'y' is unknown")],
)  # fmt: skip
def test_a_suite_that_cannot_be_read(datasets, only, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_suite(suite_file(tmp_path, datasets), only)


def test_the_suite_of_the_project_reads_and_its_local_data_opens():
    file = Path(cli.__file__).parents[1] / "benchmarks/suite.yaml"
    entries = read_suite(file)
    assert {"fashion", "emoji-twemoji", "imagenet", "coco-text-to-image"} <= {entry.name for entry in entries}
    for entry in entries:
        if entry.data.startswith(".."):
            open_source(str(file.parent / entry.data))
        if entry.prompts:
            assert load_prompts(entry.prompts).classes
        assert all(0 < number < 1 for number in entry.published.values())
