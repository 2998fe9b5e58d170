"""Embeddings of labels are kept between programs, for one state of the model, in one bounded folder."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from hf_clip import HFCLIPModel, ZeroShotClassifier
from hf_clip.model import label_cache_hf_clip, zero_shot_hf_clip
from hf_clip.model.label_cache_hf_clip import VARIABLE, cache_folder
from tests.helpers.toys import tiny_clip

LABELS = [["red", "crimson"], "blue", "a thing that is green"]
TEMPLATES = ["a photo of a {}.", "{}"]


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Grows with every batch of texts that a classifier encodes."""
    sizes, encode = [], zero_shot_hf_clip.encode_batch

    def counting(model, batch):
        sizes.append(len(batch.positions))
        return encode(model, batch)

    monkeypatch.setattr(zero_shot_hf_clip, "encode_batch", counting)
    return sizes


@pytest.fixture
def pair():
    return tiny_clip(["red blue green", "a photo of a thing"])


def embeddings(pair, cache, labels=LABELS, templates=TEMPLATES, **options) -> torch.Tensor:
    return ZeroShotClassifier(*pair, labels, templates, cache=cache, **options).class_embeddings


def test_a_second_program_encodes_no_label(pair, encoded, tmp_path):
    first = embeddings(pair, tmp_path)
    count = len(encoded)
    model, processor = pair
    again = HFCLIPModel(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(embeddings((again, processor), str(tmp_path)), first) and len(encoded) == count > 0
    # A tensor like any other.
    embeddings(pair, tmp_path).requires_grad_().sum().backward()
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def change_weight(model, processor):
    with torch.no_grad():
        model.text_model.encoder.layers[1].mlp.fc1.bias[0] += 1e-3


def change_act(model, processor):
    model.text_model.encoder.layers[0].mlp.activation_fn = torch.nn.ReLU()


CHANGES = {
    "weight": change_weight,
    "dtype": lambda model, processor: model.to(torch.bfloat16),
    "padding": lambda model, processor: setattr(processor, "text_padding", "max_length"),
    "hook": lambda model, processor: model.text_projection.register_forward_hook(
        lambda _, given, output: output.flip(1)
    ),
    "activation": change_act,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_state_has_other_embeddings(change, pair, encoded, tmp_path):
    embeddings(pair, tmp_path)
    count = len(encoded)
    CHANGES[change](*pair)
    found = embeddings(pair, tmp_path)
    assert len(encoded) > count
    torch.testing.assert_close(found, embeddings(pair, False), rtol=0, atol=0)


def test_other_words_have_other_embeddings(pair, encoded, tmp_path):
    seen = set()
    for options in (
        {},
        {"labels": LABELS[:2]},
        {"labels": [*LABELS[::-1]]},
        {"labels": ["red", "crimson", *LABELS[1:]]},
        {"templates": TEMPLATES[:1]},
        {"rejection": "something else"},
        {"tokenizer_kwargs": {"max_length": 4}},
    ):
        count = len(encoded)
        embeddings(pair, tmp_path, **options)
        assert len(encoded) > count, options
        seen.add(len(list(tmp_path.iterdir())))
    assert max(seen) == 7


def test_the_other_tower_and_the_scale_change_nothing(pair, encoded, tmp_path):
    embeddings(pair, tmp_path)
    count = len(encoded)
    with torch.no_grad():
        pair[0].logit_scale += 1
        pair[0].visual_projection.weight += 1
    embeddings(pair, tmp_path)
    assert len(encoded) == count


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "folder"])
def test_a_damaged_entry_is_made_again(damage, pair, encoded, tmp_path):
    expected = embeddings(pair, tmp_path)
    (file,) = tmp_path.iterdir()
    content, count = bytearray(file.read_bytes()), len(encoded)
    if damage == "cut":
        file.write_bytes(content[:-9])
    elif damage == "bit":
        content[-200] ^= 4
        file.write_bytes(content)
    elif damage == "header":
        file.write_bytes(b"\0" * 40)
    else:
        file.unlink()
        file.mkdir()
    damaged = None if damage == "folder" else file.read_bytes()
    assert torch.equal(embeddings(pair, tmp_path), expected) and len(encoded) > count
    if damage != "folder":
        assert file.read_bytes() != damaged
        count = len(encoded)
        embeddings(pair, tmp_path)
        assert len(encoded) == count


def test_labels_of_equal_tokens_are_named_from_the_cache_too(pair, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="labels 'red' and 'Red' become the same tokens"):
            embeddings(pair, tmp_path, labels=["red", "Red"])


def test_where_it_lies_and_how_it_is_turned_off(pair, encoded, tmp_path, monkeypatch):
    of_hub = partial(label_cache_hf_clip.cached_assets_path, assets_dir=tmp_path / "assets")
    monkeypatch.setattr(label_cache_hf_clip, "cached_assets_path", of_hub)
    standard = tmp_path / "assets/hf_clip/labels/default"
    assert cache_folder() == cache_folder(True) == standard
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" and cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.setenv(VARIABLE, "0")
    assert cache_folder() is None and cache_folder(True) == standard
    monkeypatch.delenv(VARIABLE)
    # A few labels are sooner encoded than looked up; many are kept unless told otherwise.
    embeddings(pair, None)
    assert not list(standard.iterdir())
    many = [f"label {index}" for index in range(128)]
    embeddings(pair, False, labels=many)
    assert not list(standard.iterdir())
    embeddings(pair, None, labels=many)
    assert len(list(standard.iterdir())) == 1


def test_what_was_used_longest_ago_makes_room(pair, encoded, tmp_path, monkeypatch):
    for index, labels in enumerate((["red", "blue"], ["green", "blue"], ["red", "green"])):
        embeddings(pair, tmp_path, labels=labels)
        for file in tmp_path.iterdir():
            if file.stat().st_mtime > 1e6:
                os.utime(file, (index, index))
    size = next(tmp_path.iterdir()).stat().st_size
    embeddings(pair, tmp_path, labels=["red", "blue"])
    monkeypatch.setattr(label_cache_hf_clip, "MAX_BYTES", 3 * size)
    embeddings(pair, tmp_path, labels=["blue", "blue green"])
    assert len(list(tmp_path.iterdir())) == 3
    count = len(encoded)
    embeddings(pair, tmp_path, labels=["red", "blue"])
    assert len(encoded) == count
    embeddings(pair, tmp_path, labels=["green", "blue"])
    assert len(encoded) > count


def test_a_folder_that_cannot_be_written_ends_nothing(pair, tmp_path):
    (tmp_path / "file").write_text("")
    expected = embeddings(pair, False)
    assert torch.equal(embeddings(pair, tmp_path / "file"), expected)
    assert torch.equal(embeddings(pair, Path("/proc/none")), expected)
