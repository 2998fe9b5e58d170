"""Devices that compute wrongly: compared with the CPU by the doctor, and once at the first use of a doubted device."""

import json
import logging

import pytest
import torch

from hf_clip import HFCLIPModel, embed_images, embed_texts
from hf_clip.model import device_check_hf_clip as module
from hf_clip_cli.main import main
from tests.helpers.checkpoints import TEXTS
from tests.helpers.toys import tiny_clip


@pytest.fixture
def pair(monkeypatch):
    """A model that computes wrongly where it is, and rightly as a copy."""
    model, processor = tiny_clip(TEXTS)
    encode = HFCLIPModel.encode_text

    def wrong_here(self, *args, **options):
        embeddings = encode(self, *args, **options)
        return embeddings.roll(1, dims=-1) if self is model else embeddings

    monkeypatch.setattr(HFCLIPModel, "encode_text", wrong_here)
    return model, processor


def test_what_a_device_computes_is_compared_with_the_cpu(pair):
    check = module.compare_with_cpu(*pair)
    assert check.images == 0 and check.texts > 0.1 and not check.is_passed and "computes WRONG" in str(check)
    assert not pair[0].training
    right = module.compare_with_cpu(*tiny_clip(TEXTS))
    assert (right.images, right.texts) == (0, 0) and right.is_passed and "computes correctly" in str(right)
    half, processor = tiny_clip(TEXTS)
    assert 0 < module.compare_with_cpu(half.to(torch.bfloat16), processor).texts < 0.03


def test_the_first_use_of_a_doubted_device_warns_once_and_others_cost_nothing(pair, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    embed_texts(*pair, TEXTS)
    assert "largest difference" not in caplog.text and "_device_checked" not in vars(pair[0])
    monkeypatch.setattr(module, "DOUBTED", {"cpu"})
    for _ in range(2):
        embed_texts(*pair, TEXTS)
        embed_images(*pair, module.sample_images()[:1])
    assert caplog.text.count("computes WRONG: use another device") == 1


def test_the_doctor_says_whether_a_model_runs_right(tmp_path, capsys):
    for part in tiny_clip(TEXTS):
        part.save_pretrained(tmp_path)
    assert main(["doctor", "--model", str(tmp_path), "--device", "cpu"]) == 0
    assert "cpu: largest difference from the CPU 0.0e+00 of image embeddings" in capsys.readouterr().out
    assert main(["doctor", "--model", str(tmp_path), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_passed"] is True
