"""Model cards: accepted by the Hub, true to what was measured, and proof against what names may hold."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hf_clip import HFCLIPTextConfig, HFCLIPVisionConfig
from hf_clip.hub import card_license, check_model_card, made_with
from hf_clip.hub.architecture_table import image_tower, text_tower
from tests.helpers.model_cards import DATA, FEW_SHOT, LABELS, PROBE, RETRIEVAL, ROBUSTNESS, ZERO_SHOT, card_of
from tests.helpers.toys import tiny_clip

HOSTILE = (
    "a | b\n---\nlicense: mit\n---\n# `x` *y* _z_ [l](u) <script>alert(1)</script> {{ card_data }} $m$ 日本 \"q\" 'r'"
)


def test_front_matter_is_what_the_hub_takes(saved):
    front, _ = card_of(saved)
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert front["library_name"] == "transformers"
    assert (front["license"], front["language"]) == ("cc-by-4.0", ["en"])
    assert not {"license_name", "eval_results", "model_name", "datasets", "base_model"} & front.keys()


def test_data_sets_and_the_model_of_the_start_are_named_by_their_ids_on_the_hub(saved):
    """Names that are none would lead nowhere."""
    data = [{**DATA[0], "dataset": "owner/drawings"}, DATA[1]]
    front, _ = card_of(saved, training_data=data, base_models=["openai/clip-vit-base-patch32"])
    assert front["datasets"] == ["owner/drawings"] and front["base_model"] == ["openai/clip-vit-base-patch32"]


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
    assert "skipped 3 (no caption)" in body.replace("\\", "")
    assert "nan" not in body.lower().replace("maintenance", "") and "None" not in body


def test_without_results_there_are_no_numbers(saved):
    front, body = card_of(saved, results=[])
    assert "model-index" not in front
    assert "was not evaluated" in body and "R@" not in body


def test_every_task_has_its_numbers_and_its_table(saved):
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
    assert "| fashion | 16 | 0.600 | 0.020 | 5 | 100 | 10 | - |" in body
    numbers = "| fashion | 0.500 | 0.250 | sketches | 0.300 | 0.280 | +0.020 | 100 | 10 |"
    assert f'{numbers} "a {{}}", "the {{}}", "{{}}", ... (4 templates) |' in body


def test_architecture_is_read_from_the_folder(saved):
    _, body = card_of(saved)
    model, _ = tiny_clip(LABELS)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"| parameters | {total:,} (" in body
    assert "ViT, 2 layers, width 32, 2 heads, patches of 8 pixels; 32 pixels a side" in body
    assert f"{model.logit_scale.exp().item():.2f}" in body


@pytest.mark.parametrize(
    "vision, described",
    [
        ({"tower": "convnet", "stem_width": 8, "stage_widths": [16, 32], "stage_depths": [1, 2], "hidden_size": 32,
          "norm_group_size": 8}, "convnet, 1 x 16 channels, 2 x 32 channels"),
        ({"tower": "resnet", "stem_width": 8, "stage_depths": [3, 4, 6, 3], "num_attention_heads": 4,
          "hidden_size": 256}, "ResNet, stages of 3, 4, 6, 3 blocks, width 8, pooled by 4 heads of attention"),
        ({"tower": "timm", "backbone": "resnet18", "projection_type": "mlp"}, "timm's resnet18"),
        ({"tower": "transformers", "pooling": "average",
          "tower_config": {"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 2}},
         "transformers' vit, 2 layers, width 48"),
    ],
)  # fmt: skip
def test_every_kind_of_image_tower_is_described(vision, described):
    assert image_tower(HFCLIPVisionConfig(**{"image_size": 64, **vision})) == described


def test_one_layer_is_one_layer():
    assert "1 layer, width 512, 8 heads" in text_tower(HFCLIPTextConfig(num_hidden_layers=1))


def test_a_text_tower_of_transformers_is_described():
    backbone = {"model_type": "xlm-roberta", "hidden_size": 24, "num_hidden_layers": 3}
    config = HFCLIPTextConfig(tower="transformers", pooling="mean", tower_config=backbone)
    assert text_tower(config) == "transformers' xlm-roberta, 3 layers, width 24"


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
    assert "note" not in body.split("The recipe:")[1].split("##")[0]
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
    with pytest.raises(ValueError, match="'english' is not an ISO 639 code"):
        card_of(saved, languages=["english"])
    with pytest.raises(ValueError, match="'a b' is not a name"):
        card_of(saved, training_data=[{"name": "x", "dataset": "a b"}])
    with pytest.raises(ValueError, match="`task=magic`"):
        card_of(saved, results=[{"task": "magic", "title": "x"}])
    assert (saved / "README.md").read_text(encoding="utf-8") == before
    for wrong, said in (("mit", "license is 'gpl'"), ("transformers", "library_name is 'timm'")):
        text = (
            before.replace("cc-by-4.0\n", "gpl\n", 1) if wrong == "mit" else before.replace(": transformers", ": timm")
        )
        with pytest.raises(ValueError, match=said):
            check_model_card(text)


def test_the_card_says_what_made_the_model(saved):
    _, body = card_of(saved)
    made = made_with()
    assert f"Trained with hf\\_clip {made['hf_clip']}".replace("\\", "") in body
    if "revision" in made:
        assert re.fullmatch(r"[0-9a-f]{40}( \+ changes)?", made["revision"]) and made["revision"] in body


def test_of_a_model_of_unknown_origin_nothing_is_claimed(saved):
    front, body = card_of(saved, training_data=[], results=[], languages=(), recipe={})
    assert not {"language", "license", "datasets", "model-index"} & front.keys()
    assert "The training data was not recorded." in body and "was not recorded there" in body
    assert "Trained with" not in body and "of the training data.\n" in body and "was not evaluated" in body
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
