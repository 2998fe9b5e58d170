"""Folders of OpenCLIP's: loaded here they are what they are there, and they come back unchanged."""

import json

import torch
from safetensors.torch import load_file

from hf_clip.conversion import convert, load
from tests.helpers.checkpoints import IMAGES, TEXTS, unit_embeddings
from tests.helpers.peers import load_open_clip

TOLERANCE = 1e-5


def assert_near(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= TOLERANCE


def assert_like_open_clip(folder, peer):
    """Embeddings and token ids of a folder, as loaded here and as OpenCLIP has them; returns the loaded ones."""
    model, processor = load(folder)
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    theirs = load_open_clip().get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert torch.equal(padded(inputs["input_ids"], theirs), theirs)
    embeddings = unit_embeddings(peer, inputs["pixel_values"], theirs)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    assert_near(unit_embeddings(model, inputs["pixel_values"], **text), embeddings)
    assert model.logit_scale.item() == peer.logit_scale.item()
    return model, processor


def padded(input_ids, theirs):
    """Our ids with the padding that the peer puts behind them, where only that differs."""
    longer = theirs.clone()
    longer[:, : input_ids.shape[1]] = input_ids
    return longer


def assert_returns_to_open_clip(folder, peer, tmp_path):
    """Through our own format and back every tensor is the same, and OpenCLIP makes the same model of the result."""
    convert(folder, to="hf_clip", output_dir=tmp_path / "ours")
    convert(tmp_path / "ours", to="open_clip", output_dir=tmp_path / "back")
    again = load_open_clip().create_model(f"local-dir:{tmp_path / 'back'}").eval()
    before, after = (load_file(place / "open_clip_model.safetensors") for place in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name].reshape(before[name].shape)) for name in before)
    one, other = (load_open_clip().get_tokenizer(f"local-dir:{place}")(TEXTS) for place in (folder, tmp_path / "back"))
    assert torch.equal(one, other)
    pixel_values = load(folder)[1](images=IMAGES, return_tensors="pt")["pixel_values"]
    assert_near(unit_embeddings(again, pixel_values, other), unit_embeddings(peer, pixel_values, one))
    settings, same = dict(peer.visual.preprocess_cfg), dict(again.visual.preprocess_cfg)
    assert json.dumps(settings, sort_keys=True) == json.dumps(same, sort_keys=True)
