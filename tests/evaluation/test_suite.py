"""Suites: many data sets in one table; every row of the project's own resolves."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from hf_clip.evaluation import evaluate_retrieval, evaluate_zero_shot
from hf_clip.evaluation.suite import read_suite, run_suite
from hf_clip.prompts import load_prompts
from hf_clip.sources import open_source
from tests.helpers.squares import COLOURS, NAMES, SIZE, rows, write_parquet
from tests.helpers.toys import tiny_clip

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in tiny_clip(NAMES, SIZE):
        part.save_pretrained(folder)
    return folder


def labeled_rows() -> list[dict]:
    """Squares with two captions each, labeled by color and by its index."""
    content = []
    for row in rows(1):
        color = row["caption"].split(" ")[1]
        captions = {"caption": [row["caption"], f"{row['caption']}, once more"]}
        content.append({**row, **captions, "label": color, "number": list(COLOURS).index(color)})
    return content


def suite_file(folder, datasets: dict):
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({"datasets": datasets}, sort_keys=False))
    return file


def test_the_script_of_the_suite_prints_its_table(model_folder, tmp_path, monkeypatch, capsys):
    script = ROOT / "benchmarks/run_suite.py"
    output = tmp_path / "suite.json"
    arguments = ["--model", str(model_folder), "--only", "fashion", "emoji-twemoji", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    scores = json.loads(output.read_text())["scores"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert lines == [[name, f"{score:.3f}"] for name, score in scores.items()]
    assert list(scores) == ["fashion", "emoji-twemoji"]


def test_a_suite_is_one_table_beside_published_numbers(tmp_path):
    squares = str(write_parquet(tmp_path / "squares.parquet", labeled_rows()))
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(yaml.safe_dump({"templates": ["a {} square"], "classes": list(COLOURS)}))
    file = suite_file(
        tmp_path,
        {
            "squares": {"data": squares, "templates": ["a {} square"], "published": {"OpenAI": 0.5}},
            "numbers": {"data": squares, "label_column": "number", "prompts": str(prompts)},
            "captions": {"data": squares, "task": "retrieval", "metric": "image_to_text.recall_at_5"},
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
     ({"a": {"data": "x"}}, ["b"], "b: not in"), ({"a": {"data": "x", "task": "y"}}, None, "'y' is unknown")],
)  # fmt: skip
def test_a_suite_that_cannot_be_read(datasets, only, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_suite(suite_file(tmp_path, datasets), only)


def test_the_suite_of_the_project_reads_and_its_local_data_opens():
    file = ROOT / "benchmarks/suite.yaml"
    entries = read_suite(file)
    assert {"fashion", "emoji-twemoji", "imagenet", "coco-text-to-image"} <= {entry.name for entry in entries}
    for entry in entries:
        if entry.data.data.startswith(".."):
            open_source(str(file.parent / entry.data.data))
        if entry.prompts:
            assert load_prompts(entry.prompts).classes
        assert all(0 < number < 1 for number in entry.published.values())


# What stands behind the names on the Hub: whose prompts, and how many classes.
ON_THE_HUB = {
    "imagenet1k": ("ImageNet", 1000),
    "imagenetv2": ("ImageNet", 1000),
    "imagenet_sketch": ("ImageNet", 1000),
    "vtab-cifar10": ("CIFAR10", 10),
    "vtab-cifar100": ("CIFAR100", 100),
    "food101": ("Food101", 101),
    "mnist": ("MNIST", 10),
    "gtsrb": ("GTSRB", 43),
    "stl10": ("STL10", 10),
    "fgvc_aircraft": ("FGVCAircraft", 100),
    "country211": ("Country211", 211),
    "vtab-dtd": ("DescribableTextures", 47),
}


def data_on_the_hub(entry) -> datasets.IterableDatasetDict:
    """Two images of the first and the last class, or with five captions each, in the columns that the Hub has."""
    images = [row["image"] for row in rows(1)[:2]]
    columns = {"__key__": ["s0", "s1"], "__url__": ["a", "a"]}
    if entry.task == "retrieval":
        columns |= {"jpg": images, "txt": ["\n".join(f"{name} {one}" for one in range(5)) for name in NAMES[:2]]}
        wrong = {"txt": ["", ""]}
    else:
        columns |= {"webp": images, "cls": [0, len(load_prompts(entry.prompts).classes) - 1]}
        wrong = {"cls": [10**6] * 2}
    image = "jpg" if entry.task == "retrieval" else "webp"
    splits = {"train": columns | wrong, "test": columns}
    return datasets.IterableDatasetDict(
        {
            split: datasets.Dataset.from_dict(content).cast_column(image, datasets.Image()).to_iterable_dataset()
            for split, content in splits.items()
        }
    )


def test_every_row_of_the_suite_of_the_project_resolves(monkeypatch):
    """Its ids, splits, columns, class names, templates and metrics, on data made up after what the row says."""
    entries = {entry.name: entry for entry in read_suite(ROOT / "benchmarks/suite.yaml")}
    on_the_hub = {name: entry for name, entry in entries.items() if not entry.data.data.startswith("..")}
    by_id = {entry.data.data: entry for entry in on_the_hub.values()}
    assert len(on_the_hub) > 15 and all(name.startswith("clip-benchmark/wds_") for name in by_id)
    opened, templates = [], {}

    def load_dataset(name, configuration=None, *, streaming):
        opened.append(name)
        assert configuration is None and streaming
        return data_on_the_hub(by_id[name])

    def one_template_of(*args, **arguments):
        # All 80 of ImageNet's would take a minute.
        templates[arguments["title"]] = arguments["templates"]
        return evaluate_zero_shot(*args, **arguments | {"templates": arguments["templates"][:1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("hf_clip.evaluation.suite.evaluate_zero_shot", one_template_of)
    found = run_suite(*tiny_clip(NAMES, SIZE), on_the_hub.values())
    assert found.failed == {} and found.scores.keys() == on_the_hub.keys()
    assert opened == [entry.data.data for entry in on_the_hub.values()]
    for name, entry in on_the_hub.items():
        result = found.results[name]
        assert 0 <= found.scores[name] <= 1 and result["task"] == entry.task
        if entry.task == "retrieval":
            assert {found["candidates"] for found in (result["image_to_text"], result["text_to_image"])} == {2, 10}
        else:
            prompts = load_prompts(entry.prompts)
            known = ON_THE_HUB[entry.data.data.removeprefix("clip-benchmark/wds_")]
            assert (prompts.name, result["classes"]) == known
            assert (result["classes"], templates[name]) == (len(prompts.classes), prompts.templates)
            assert [row["label"] for row in result["per_class"]] == list(prompts.labels)


def test_a_default_means_the_same_number_everywhere(tmp_path):
    """One model, its own templates, all captions of an image: from Python, and from a suite."""
    model, processor = tiny_clip(NAMES, SIZE)
    model.config.zero_shot_templates = ["a {} square", "a drawing of a {}"]
    data = str(write_parquet(tmp_path / "squares.parquet", labeled_rows()))
    of_suite = run_suite(
        model,
        processor,
        read_suite(
            suite_file(
                tmp_path,
                {
                    "labels": {"data": data},
                    "captions": {"data": data, "task": "retrieval", "metric": "image_to_text.recall_at_1"},
                },
            )
        ),
    )
    classes, captions = (
        evaluate_zero_shot(model, processor, open_source(data)),
        evaluate_retrieval(model, processor, open_source(data)),
    )
    told = evaluate_zero_shot(model, processor, open_source(data), templates=model.config.zero_shot_templates)
    assert of_suite.scores["labels"] == classes.top_1 == told.top_1
    assert classes.templates == ("a {} square", "a drawing of a {}")
    assert '2 templates: "a {} square", ...' in classes.table().splitlines()
    assert of_suite.scores["captions"] == captions.metrics["image_to_text"]["recall_at_1"]
    assert captions.metrics["image_to_text"]["candidates"] == 48
    found = captions.to_dict()
    assert (found["captions"], found["captions_per_image"]) == ("all", [2, 2])
    assert "captions: all of each image, 2" in captions.table().splitlines()
    model.config.zero_shot_templates = None
    plain = evaluate_zero_shot(model, processor, open_source(data))
    assert plain.templates == ("a photo of a {}.",) and '1 template: "a photo of a {}."' in plain.table()
