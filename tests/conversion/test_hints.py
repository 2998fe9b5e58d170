"""What a caller says of a source that says it itself: accepted where both agree, else both values are shown."""

import pytest
import torch

from hf_clip import HFCLIPConfig, load
from tests.helpers.checkpoints import TEXTS, openai_model, openai_state
from tests.helpers.toys import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hints")
    for part in tiny_clip(TEXTS):
        part.save_pretrained(folder)
    return folder


def test_what_agrees_with_a_folder_is_no_error(folder):
    config = load(folder)[0].config
    config.text_config.attention_dropout = 0.1
    hints = {"hidden_act": "quick_gelu", "config": config, "source_format": "hf_clip"}
    for name, value in hints.items():
        assert load(folder, **{name: value})[0].config.text_config.attention_dropout == 0.0
    assert load(folder, **hints)[0].source_format == "hf_clip"


@pytest.mark.parametrize(
    ("option", "change", "problem"),
    [
        ("hidden_act", "gelu", "`hidden_act=gelu` contradicts .* and has quick_gelu: drop it"),
        ("source_format", "open_clip", "`source_format=open_clip` contradicts .* is of the format hf_clip"),
        (
            "architecture",
            "ViT-B/16",
            r"`architecture=ViT-B/16` \(vision_config.\w+=\d+\) contradicts .* has \d+",
        ),
        ("config", {"image_size": 48}, r"\(vision_config.image_size=48\) .* has 32: pass `image_size=48` instead"),
        ("config", {"num_hidden_layers": 3}, r"`config` \(vision_config.num_hidden_layers=3\) contradicts .* has 2"),
    ],
)
def test_what_contradicts_a_folder_is_shown_beside_what_it_says(folder, option, change, problem):
    if option == "config":
        config = load(folder)[0].config
        for name, value in change.items():
            setattr(config.vision_config, name, value)
        change = config
    with pytest.raises(ValueError, match=problem) as error:
        load(folder, **{option: change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"image_size": 0}, "`image_size=0`: pass 1 to 16384 pixels"),
        ({"image_size": 10**9}, "`image_size=1000000000`: pass 1 to"),
        ({"image_size": 48.0}, "`image_size=48.0` is of type float: pass a number of pixels"),
        ({"image_size": True}, "`image_size=True` is of type bool"),
        ({"preprocessing": [1]}, r"`preprocessing=\[1\]` is of type list: pass a dictionary"),
        ({"config": {}}, "`config={}` is of type dict: pass an HFCLIPConfig"),
        ({"architecture": 3}, "`architecture=3` is of type int: pass its name"),
        ({"tokenizer": 3}, "`tokenizer=3` is of type int: pass a tokenizer"),
        ({"adapter": "keep"}, "`adapter=keep` is for an adapter of PEFT"),
    ],
)
def test_what_no_source_could_be_loaded_with_is_the_callers(folder, options, problem):
    with pytest.raises(ValueError, match=problem) as error:
        load(folder, **options)
    assert "\n" not in str(error.value) and "fetch it again" not in str(error.value)


def test_a_name_agrees_with_a_folder_of_that_architecture(folder, monkeypatch):
    config = HFCLIPConfig.from_pretrained(folder)
    monkeypatch.setattr(HFCLIPConfig, "from_architecture", classmethod(lambda cls, name: config))
    assert load(folder, architecture="ViT-B-32")[0].config.vision_config.image_size == 32


def test_an_archive_of_openais_takes_what_it_is(tmp_path):
    torch.save(openai_state(openai_model()), tmp_path / "archive.pt")
    model, _ = load(tmp_path / "archive.pt")
    again, _ = load(tmp_path / "archive.pt", hidden_act="quick_gelu", source_format="openai", config=model.config)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="`source_format=transformers` contradicts .* of the format openai"):
        load(tmp_path / "archive.pt", source_format="transformers")
