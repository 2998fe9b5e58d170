"""Model cards: accepted by the Hub, true to what was measured, and proof against what names may hold."""

import difflib
import json
import math
import re
import shutil
from collections import Counter

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip import HFCLIPTextConfig, HFCLIPVisionConfig
from hf_clip.hub import CardFacts, adapt_card, card_license, check_model_card, made_with, put_results, write_model_card
from hf_clip.hub.architecture_table import image_tower, text_tower
from tests.helpers.counts import soak_count
from tests.helpers.toys import tiny_clip

LABELS = ["a red square", "something blue"]
DATA = [
    {
        "name": "Drawings",
        "file": "drawings.parquet",
        "images": 1200,
        "license": "Apache-2.0",
        "attribution": "A, Inc.",
    },
    {"name": "Stamps", "file": "stamps.parquet", "images": 34, "license": "CC-BY-4.0", "source": "npm:@x/y@1.2"},
]
RETRIEVAL = {
    "task": "retrieval",
    "title": "unseen style, seen concepts",
    "image_to_text": {
        "recall_at_1": 0.61234,
        "recall_at_5": 0.8,
        "recall_at_10": None,
        "median_rank": 1.0,
        "chance_at_1": 0.0006,
        "queries": 1675,
        "candidates": 1644,
    },
    "text_to_image": {"recall_at_1": 0.5, "median_rank": math.nan, "queries": 1644, "candidates": 1675},
    "skipped": {"no_caption": 3},
    "seconds": 2.0,
}
ZERO_SHOT = {
    "task": "zero-shot",
    "title": "fashion",
    "top_1": 0.345,
    "top_5": None,
    "mean_per_class": 0.333,
    "chance": 0.1,
    "images": 2000,
    "classes": 10,
    "templates": ["a {}"],
    "skipped": {},
}
HOSTILE = (
    "a | b\n---\nlicense: mit\n---\n# `x` *y* _z_ [l](u) <script>alert(1)</script> {{ card_data }} $m$ 日本 \"q\" 'r'"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards") / "tiny model"
    model, processor = tiny_clip(LABELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def card_of(folder, *, runs_snippets: bool = False, **changes) -> tuple[dict, str]:
    """The front matter and the body of a card; the snippets are run where their output matters."""
    known = {"training_data": DATA, "results": [RETRIEVAL, ZERO_SHOT], "languages": ["en"], "recipe": {"steps": 3}}
    facts = {"model_name": "tiny", **known, **changes}
    path = write_model_card(folder, CardFacts(**facts), runs_snippets=runs_snippets)
    text = path.read_text(encoding="utf-8")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.S).groups()
    return yaml.safe_load(front), body


def test_front_matter_is_what_the_hub_takes(saved):
    front, _ = card_of(saved)
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert front["library_name"] == "transformers"
    assert (front["license"], front["language"]) == ("cc-by-4.0", ["en"])
    assert front["datasets"] == ["drawings", "stamps"]
    assert "license_name" not in front and "eval_results" not in front and "model_name" not in front


def test_results_survive_the_hubs_own_reading_and_keep_their_counts(saved):
    front, _ = card_of(saved)
    name, results = model_index_to_eval_results(front["model-index"])
    assert name == "tiny" and eval_results_to_model_index(name, results) == front["model-index"]
    found = {(item.dataset_name, item.metric_name): (item.metric_value, item.metric_args) for item in results}
    assert found == {
        ("unseen style, seen concepts", "image to text R@1"): (0.6123, {"queries": 1675, "candidates": 1644}),
        ("unseen style, seen concepts", "image to text R@5"): (0.8, {"queries": 1675, "candidates": 1644}),
        ("unseen style, seen concepts", "image to text median rank"): (1.0, {"queries": 1675, "candidates": 1644}),
        ("unseen style, seen concepts", "text to image R@1"): (0.5, {"queries": 1644, "candidates": 1675}),
        ("fashion", "top-1 accuracy"): (0.345, {"images": 2000, "classes": 10}),
        ("fashion", "mean per-class accuracy"): (0.333, {"images": 2000, "classes": 10}),
    }


def test_results_of_one_data_set_are_not_merged(saved):
    unseen = {**RETRIEVAL, "title": "unseen style, unseen concepts", "dataset": "owner/emoji"}
    front, _ = card_of(saved, results=[{**RETRIEVAL, "dataset": "owner/emoji"}, unseen])
    assert [entry["dataset"]["name"] for entry in front["model-index"][0]["results"]] == [
        RETRIEVAL["title"],
        unseen["title"],
    ]
    with pytest.raises(ValueError, match="a title of its own"):
        card_of(saved, results=[RETRIEVAL, RETRIEVAL])


def test_tables_give_the_numbers_and_a_dash_where_nothing_was_measured(saved):
    _, body = card_of(saved)
    assert "| unseen style, seen concepts | image to text | 0.612 | 0.800 | - | 1 | 1,675 | 1,644 | 0.0006 |" in body
    assert "| unseen style, seen concepts | text to image | 0.500 | - | - | - | 1,644 | 1,675 | - |" in body
    assert '| fashion | 0.345 | - | 0.333 | 0.100 | 2,000 | 10 | "a {}" |' in body
    assert "left out 3 (no caption)" in body.replace("\\", "")
    assert "nan" not in body.lower().replace("maintenance", "") and "None" not in body


def test_without_results_there_are_no_numbers(saved):
    front, body = card_of(saved, results=[])
    assert "model-index" not in front
    assert "was not evaluated" in body and "R@" not in body


def test_architecture_is_read_from_the_folder(saved):
    _, body = card_of(saved)
    model, _ = tiny_clip(LABELS)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"| parameters | {total:,} (" in body
    assert "ViT, 2 layers, width 32, 2 heads, patches of 8 pixels; 32 pixels a side" in body
    assert f"{model.logit_scale.exp().item():.2f}" in body


def test_recipe_training_and_plots_are_shown(saved):
    (saved / "a plot.png").write_bytes(b"")
    _, body = card_of(
        saved,
        recipe={"optimizer": {"learning_rate": 2e-3, "note": None}, "batch_size": 4096},
        training={"seconds": 280.5, "device": "cpu"},
        plots=[("a plot.png", "Loss [by step]")],
        evaluation_data=[{"name": "Twemoji", "license": "CC-BY-4.0"}],
    )
    assert "| optimizer.learning_rate | 0.002 |" in body and "| batch_size | 4,096 |" in body
    assert "note" not in body.split("## Recipe")[1].split("##")[0]
    assert "| seconds | 280.5 |" in body
    assert "![Loss \\[by step\\]](a%20plot.png)" in body
    assert "| Twemoji | CC-BY-4.0 |" in body


def test_names_cannot_break_out_of_the_card(saved):
    hostile = [{"name": HOSTILE, "license": "MIT", "attribution": HOSTILE}]
    front, body = card_of(
        saved,
        model_name=HOSTILE,
        training_data=hostile,
        results=[{**RETRIEVAL, "title": HOSTILE}, {**ZERO_SHOT, "templates": [HOSTILE + "{}"]}],
        recipe={HOSTILE: HOSTILE},
        example_labels=[HOSTILE],
    )
    shown = " ".join(HOSTILE.split())
    assert front["license"] == "mit" and front["model-index"][0]["name"] == shown
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == shown
    prose = re.sub(r"```.*?```", "", body, flags=re.S)
    assert "<script" not in prose.replace("\\<", "") and "[l](u)" not in prose and "\n---\n" not in prose
    # Rows of a table keep their number of cells.
    for table in re.findall(r"(?:^\|.*\n?)+", prose, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    # The same text, once the escapes are read.
    assert shown in re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", prose)


@pytest.mark.parametrize(
    "licenses, declared, said",
    [
        (["Apache-2.0"], "apache-2.0", "All of the data comes under Apache-2.0"),
        (["Apache-2.0", "CC-BY-4.0", "MIT"], "cc-by-4.0", "most demanding of these, cc-by-4.0"),
        (["CC-BY-4.0", "CC-BY-SA-4.0"], "cc-by-sa-4.0", "CC-BY-4.0, CC-BY-SA-4.0"),
        (["Unicode-3.0", "MIT"], "other", "MIT, Unicode-3.0"),
        (["MIT", None], None, "not known"),
        ([], None, "Nor is its license known"),
    ],
)
def test_license_is_the_most_demanding_of_the_data(licenses, declared, said):
    chosen, sentence = card_license([{"license": license} for license in licenses])
    assert chosen == declared and said in sentence


def test_a_license_without_a_name_on_the_hub_is_named(saved):
    front, body = card_of(
        saved, training_data=[{"name": "x", "license": "Unicode-3.0"}, {"name": "y", "license": "MIT"}]
    )
    assert (front["license"], front["license_name"]) == ("other", "unicode-3.0-and-mit")
    front, body = card_of(saved, training_data=[{"name": "x"}])
    assert "license" not in front and "none is declared" in body


def test_what_is_missing_is_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="'loss.png' is not in"):
        card_of(saved, plots=[("loss.png", "Loss")])
    with pytest.raises(FileNotFoundError, match="no config.json"):
        card_of(tmp_path)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        card_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_the_hub_would_refuse_is_refused_before_it_is_written(saved):
    card_of(saved)
    before = (saved / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="'english' is no ISO 639 code"):
        card_of(saved, languages=["english"])
    with pytest.raises(ValueError, match="'a b' is no name"):
        card_of(saved, training_data=[{"name": "x", "dataset": "a b"}])
    with pytest.raises(ValueError, match="protocol 'magic'"):
        card_of(saved, results=[{"task": "magic", "title": "x"}])
    assert (saved / "README.md").read_text(encoding="utf-8") == before
    for wrong, said in (("mit", "license is 'gpl'"), ("transformers", "library_name is 'timm'")):
        text = (
            before.replace("cc-by-4.0\n", "gpl\n", 1) if wrong == "mit" else before.replace(": transformers", ": timm")
        )
        with pytest.raises(ValueError, match=said):
            check_model_card(text)


def snippets(text: str) -> list[tuple[str, str]]:
    """(code, what the card says that it prints)"""
    return re.findall(r"```python\n(.*?)\n```\n\nIt prints\n\n```text\n(.*?)\n```", text, re.S)


def test_snippets_print_what_the_card_says(saved, monkeypatch, capsys):
    _, body = card_of(saved, runs_snippets=True, example_labels=LABELS, example_template="a drawing of {}")
    monkeypatch.chdir(saved.parent)
    (saved.parent / "example.png").write_bytes((saved / "example.png").read_bytes())
    found = snippets(body)
    assert len(found) == body.count("```python") == 3
    for code, printed in found:
        exec(code, {})
        assert capsys.readouterr().out.rstrip() == printed
    # The stock pipeline and the classifier agree.
    assert found[0][1] == found[1][1] and {line.split(" ", 1)[1] for line in found[0][1].splitlines()} == set(LABELS)


def test_a_snippet_that_does_not_run_is_no_card(saved):
    card_of(saved)
    before = (saved / "README.md").read_text(encoding="utf-8")
    (saved / "broken.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="does not run"):
        card_of(saved, runs_snippets=True, example_image="broken.png")
    assert (saved / "README.md").read_text(encoding="utf-8") == before


def test_the_widget_shows_the_snippets_example(saved):
    front, _ = card_of(saved, example_labels=LABELS)
    assert front["widget"] == [
        {"src": "example.png", "candidate_labels": "a red square, something blue", "example_title": "a red square"}
    ]
    assert (saved / "example.png").is_file()
    # The widget takes labels apart at commas.
    assert "widget" not in card_of(saved, example_labels=["black, white", "red"])[0]


PROBE = {
    "task": "linear-probe",
    "title": "fashion",
    "top_1": 0.8,
    "top_5": None,
    "mean_per_class": 0.79,
    "penalty": 0.1,
    "train_images": 500,
    "images": 100,
    "classes": 10,
}
FEW_SHOT = {
    "task": "few-shot",
    "title": "fashion",
    "shots": [
        {"shots": 1, "mean": 0.4, "standard_deviation": None},
        {"shots": 16, "mean": 0.6, "standard_deviation": 0.02},
    ],
    "num_seeds": 5,
    "images": 100,
    "classes": 10,
}
ROBUSTNESS = {
    "task": "robustness",
    "title": "fashion",
    "top_1": 0.5,
    "corrupted_top_1": 0.25,
    "shifted_title": "sketches",
    "shifted_top_1": 0.3,
    "expected_top_1": 0.28,
    "effective_robustness": 0.02,
    "images": 100,
    "classes": 10,
}


def test_every_protocol_has_its_numbers_and_its_table(saved):
    front, body = card_of(saved, results=[RETRIEVAL, ZERO_SHOT, PROBE, FEW_SHOT, ROBUSTNESS])
    found = {
        (entry["task"]["type"], metric["type"]): metric["value"]
        for entry in front["model-index"][0]["results"]
        if entry["dataset"]["name"] == "fashion"
        for metric in entry["metrics"]
    }
    assert found == {
        ("zero-shot-image-classification", "accuracy"): 0.345,
        ("zero-shot-image-classification", "mean_per_class_accuracy"): 0.333,
        ("zero-shot-image-classification", "corrupted_accuracy"): 0.25,
        ("zero-shot-image-classification", "shifted_accuracy"): 0.3,
        ("zero-shot-image-classification", "effective_robustness"): 0.02,
        ("image-classification", "accuracy"): 0.8,
        ("image-classification", "mean_per_class_accuracy"): 0.79,
        ("image-classification", "accuracy_1_shot"): 0.4,
        ("image-classification", "accuracy_16_shot"): 0.6,
        ("image-classification", "accuracy_16_shot_deviation"): 0.02,
    }
    assert "| fashion | 0.800 | - | 0.790 | 0.1 | 500 | 100 | 10 |" in body
    assert "| fashion | 16 | 0.600 | 0.020 | 5 | 100 | 10 |" in body
    assert "| fashion | 0.500 | 0.250 | sketches | 0.300 | 0.280 | +0.020 | 100 | 10 |" in body


EVERY = [RETRIEVAL, ZERO_SHOT, PROBE, FEW_SHOT, ROBUSTNESS]


def parts(text: str) -> tuple[dict, list[str]]:
    """A card's model-index by (task, title, metric), and the lines of its body."""
    card = ModelCard(text)
    values = {(one.task_type, one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert len(values) == len(card.data.eval_results)
    return values, card.text.splitlines()


def changed(before: list[str], after: list[str]) -> list[str]:
    """Lines that went (-) and came (+)."""
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return [f"{line[0]} {line[1:]}" for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


@pytest.mark.parametrize(
    ("result", "key"),
    [*zip(EVERY, ("image_to_text", "top_1", "top_1", "shots", "corrupted_top_1"), strict=True)],
    ids=[result["task"] for result in EVERY],
)
def test_what_is_measured_again_stands_in_its_own_place(saved, result, key):
    card_of(saved, results=EVERY)
    text = (saved / "README.md").read_text(encoding="utf-8") + "\nA line of mine: 0.345 | `x` *y*\n"
    assert put_results(text, EVERY, "tiny") == text
    others = {"image_to_text": {**RETRIEVAL["image_to_text"], "recall_at_1": 0.7}}
    others["shots"] = [FEW_SHOT["shots"][0], {**FEW_SHOT["shots"][1], "mean": 0.7}]
    again = {**result, key: others.get(key, 0.7)}
    updated = put_results(text, [again], "tiny")
    assert put_results(updated, [again], "tiny") == updated and put_results(updated, [result], "tiny") == text
    (values, lines), (new_values, new_lines) = parts(text), parts(updated)
    assert [new_values[one] for one in values if values[one] != new_values[one]] == [0.7]
    came, gone = sorted(changed(lines, new_lines))
    assert gone.startswith(f"- | {result['title']} |") and came.startswith(f"+ | {result['title']} |")
    assert "0.700" in came and len(lines) == len(new_lines) and list(values) == list(new_values)


def test_results_come_into_a_card_that_has_none_or_others(saved):
    card_of(saved, results=[])
    text = put_results((saved / "README.md").read_text(encoding="utf-8"), [ZERO_SHOT], "tiny")
    assert "was not evaluated" not in text and "| fashion | 0.345 |" in text and "R@k is the share" in text
    assert put_results(text, [ZERO_SHOT], "tiny") == text
    assert list(parts(text)[0].values()) == [0.345, 0.333]
    both = put_results(text, [RETRIEVAL], "tiny")
    assert all(line.startswith("+ ") for line in changed(parts(text)[1], parts(both)[1]))
    assert both.index("| unseen style") < both.index("Each number was measured") < both.index("## Architecture")
    # A second evaluation of a protocol is a row more.
    other = put_results(both, [{**ZERO_SHOT, "title": "photos"}], "tiny")
    # Titles of other letters are told apart too.
    more = put_results(other, [{**ZERO_SHOT, "title": title} for title in ("日本の写真", "中国的照片")], "tiny")
    assert len(parts(more)[0]) == len(parts(other)[0]) + 4
    [line] = changed(parts(both)[1], parts(other)[1])
    assert line.startswith("+ | photos | 0.345 |") and other.count("| zero-shot |") == both.count("| zero-shot |") == 1


def test_fewer_numbers_leave_none_of_the_old():
    text = put_results("", [FEW_SHOT, PROBE], "tiny")
    fewer = {**FEW_SHOT, "shots": FEW_SHOT["shots"][:1]}
    values, lines = parts(put_results(text, [fewer], "tiny"))
    assert [metric for _, _, metric in values] == ["accuracy_1_shot", "accuracy", "mean_per_class_accuracy"]
    assert sum(line.startswith("| fashion |") for line in lines) == 2


def test_images_that_were_left_out_are_told_until_they_are_not():
    text = put_results("# A model\n", [ZERO_SHOT, PROBE], "tiny")
    some = put_results(text, [{**ZERO_SHOT, "skipped": {"broken": 3}}], "tiny")
    assert sorted(changed(parts(text)[1], parts(some)[1])) == ["+ ", "+ - fashion, zero-shot: left out 3 (broken)."]
    more = put_results(some, [{**ZERO_SHOT, "skipped": {"broken": 4, "no_label": 1}}, PROBE], "tiny")
    assert "left out 4 (broken), 1 (no label)." in more and more.count("left out") == 1
    assert put_results(more, [ZERO_SHOT], "tiny") == text


THEIRS = """---
# My own notes
license: openrail  # not in our list
library_name: open_clip
model-index:
- name: theirs
  results:
  - task: {type: image-classification}
    dataset: {type: owner/birds, name: Birds}
    metrics:
    - {type: accuracy, value: 0.9, verified: false}
    source: {url: https://example.org, name: elsewhere}
tags: [vision]
---
# Theirs

```text
| zero-shot | top-1 | top-5 | mean per class | chance | images | classes | templates |
| --- | --- | --- | --- | --- | --- | --- | --- |
```

## Results

Good ones.

## More

The end, without a last line's end."""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_card_of_someone_elses_gets_the_results_and_keeps_all_else(newline):
    before = THEIRS.replace("\n", newline)
    after = put_results(before, [ZERO_SHOT], "tiny")
    assert put_results(after, [ZERO_SHOT], "tiny") == after and after.count("\n") == after.count(newline)
    lines = changed(before.split(newline), after.split(newline))
    gone = [line for line in lines if line[0] == "-"]
    # The model-index is written again; what it says stays.
    assert all(line[2:5] in ("  -", "   ") for line in gone)
    data, was = (yaml.safe_load(text.split("---")[1]) for text in (after, before))
    [model], [old] = data.pop("model-index"), was.pop("model-index")
    assert data == was and model["results"][0] == old["results"][0] and len(model["results"]) == 2
    good, more = after.index("Good ones."), after.index("## More")
    assert good < after.index("| fashion | 0.345 |") < more and "# My own notes" in after and "# not in our" in after


@pytest.mark.parametrize(
    "text", ["---\nmodel-index: 3\n---\n", "---\nmodel-index: [a, b]\n---\n", "---\na: [\n---\n", "---\n- a\n---\n"]
)
def test_a_card_that_cannot_be_added_to(text):
    with pytest.raises(ValueError, match="front matter has no model-index that can be added to"):
        put_results(text, [ZERO_SHOT], "tiny")


TABLE = put_results("", [ZERO_SHOT], "tiny").split("## Results")[1].split("\n\n")[1].split("\n")
NOTE = "- fashion, zero-shot: left out 3 (broken)."
LINES = [*TABLE, f"\n{NOTE}\n", "", "", "## Results", "# Title", "---", "```", "~~~~", "text", "| x |"]


@settings(deadline=None, max_examples=soak_count(100, 2000))
@given(st.lists(st.sampled_from(LINES), max_size=12).map("\n".join), st.sampled_from([{}, {"broken": 2}]))
def test_whatever_a_card_holds_pushing_twice_is_pushing_once(body, skipped):
    result = {**ZERO_SHOT, "skipped": skipped, "top_1": 0.999}
    once = put_results(f"---\ntags: [a]\n---\n{body}", [result], "tiny")
    assert put_results(once, [result], "tiny") == once
    gone = Counter(line for line in body.split("\n") if line) - Counter(once.split("\n"))
    # Nothing goes but what was measured before.
    assert all(line.startswith(("| fashion |", "- fashion, zero-shot: left out")) for line in gone)
    assert "| fashion | 0.999 |" in once


def test_a_card_is_adapted_to_its_name_on_the_hub_and_to_no_more(saved):
    card_of(saved, example_labels=LABELS, example_template="a drawing of {}")
    path = saved / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nA line of the user.\n", encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    adapt_card(saved, "owner/name")
    after = path.read_text(encoding="utf-8")
    assert "A line of the user." in after
    assert all('"owner/name"' in code and "a red square" in code for code, _ in snippets(after))
    assert "a drawing of {}" in after
    # All but the section of use is as it was.
    without = [re.sub(r"^## Use\n.*?(?=^## )", "", text, flags=re.M | re.S) for text in (before, after)]
    assert without[0] == without[1]


def test_a_card_of_someone_elses_keeps_its_text(saved):
    path = saved / "README.md"
    path.write_text("---\nlicense: openrail\ntags:\n- vision\n---\n\n# Theirs\n\n## Use\nof it\n", encoding="utf-8")
    path.write_text(path.read_text().replace("## Use\n", "## How to\n"))
    adapt_card(saved, "owner/name")
    card = ModelCard.load(path)
    assert (card.data.license, card.data.library_name, card.data.tags) == ("openrail", "transformers", ["vision"])
    assert card.text.strip() == "# Theirs\n\n## How to\nof it"


@pytest.mark.parametrize(
    "vision, described",
    [
        ({"tower": "convnet", "stem_width": 8, "stage_widths": [16, 32], "stage_depths": [1, 2], "hidden_size": 32,
          "norm_group_size": 8}, "convnet, 1 x 16 channels, 2 x 32 channels"),
        ({"tower": "resnet", "stem_width": 8, "stage_depths": [3, 4, 6, 3], "num_attention_heads": 4,
          "hidden_size": 256}, "ResNet, stages of 3, 4, 6, 3 blocks, width 8, pooled by 4 heads of attention"),
        ({"tower": "timm", "backbone": "resnet18", "projection_type": "mlp"}, "timm's resnet18"),
        ({"tower": "transformers", "pooling": "average",
          "backbone_config": {"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 2}},
         "transformers' vit, 2 layers, width 48"),
    ],
)  # fmt: skip
def test_every_kind_of_image_tower_is_described(vision, described):
    assert image_tower(HFCLIPVisionConfig(**{"image_size": 64, **vision})) == described


def test_a_text_tower_of_transformers_is_described():
    backbone = {"model_type": "xlm-roberta", "hidden_size": 24, "num_hidden_layers": 3}
    config = HFCLIPTextConfig(tower="transformers", pooling="mean", backbone_config=backbone)
    assert text_tower(config) == "transformers' xlm-roberta, 3 layers, width 24"


def test_the_card_says_what_made_the_model(saved):
    _, body = card_of(saved)
    made = made_with()
    assert f"Made with hf\\_clip {made['hf_clip']}".replace("\\", "") in body
    if "revision" in made:
        assert re.fullmatch(r"[0-9a-f]{40}( \+ changes)?", made["revision"]) and made["revision"] in body


def test_of_a_model_of_unknown_origin_nothing_is_claimed(saved):
    front, body = card_of(saved, training_data=[], results=[], languages=(), recipe={})
    assert not {"language", "license", "datasets", "model-index"} & front.keys()
    assert "The training data was not recorded." in body and "was not recorded there" in body
    assert "Made with" not in body and "trained on.\n" in body and "was not evaluated" in body
    assert "\n\n\n" not in body


def test_scores_are_told_as_the_model_gives_them(saved, tmp_path):
    assert "Scores are relative to the labels offered" in card_of(saved)[1]
    shutil.copytree(saved, tmp_path / "model")
    config = json.loads((saved / "config.json").read_text())
    sigmoid = {"model_type": "hf_clip_siglip", "logit_bias_init_value": -10.0}
    (tmp_path / "model/config.json").write_text(json.dumps(config | sigmoid))
    body = card_of(tmp_path / "model")[1]
    assert "Each label is scored by itself" in body and "relative to the labels offered" not in body


def test_every_number_of_the_prose_is_a_fact_of_the_folder(saved):
    """What the template says of every model holds no number: only the paper's, the folder's and the versions'."""
    body = card_of(saved, results=[], training_data=[], recipe={})[1]
    prose = re.sub(r"```.*?```|^\|.*?$|^This repository was written.*?$", "", body, flags=re.S | re.M)
    config = json.loads((saved / "config.json").read_text())
    known = {"2103.00020", "2021", "7.1", "77", "32", str(config["projection_dim"])}
    assert set(re.findall(r"\d[\d.]*\d|\d", prose)) <= known


def test_the_card_reads_as_written(saved):
    front, body = card_of(saved)
    card = ModelCard.load(saved / "README.md")
    assert card.data.to_dict() == front
    assert "{{" not in body and "{%" not in body and "\n\n\n" not in body
    json.dumps(front)
