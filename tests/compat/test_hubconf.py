"""`hubconf.py`: what `torch.hub.load` finds in a clone."""

import importlib.util
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

import hf_clip
from tests.helpers.checkpoints import openai_model, write_openai_archive
from tests.helpers.counts import soak_count
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
# As where the package is not installed.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
root, cache = sys.argv[1:]
model, preprocess = torch.hub.load(root, "ViT_B_32", source="local", device="cpu", download_root=cache)
tokenize = torch.hub.load(root, "tokenize", source="local")
print(model.encode_text(tokenize(["a cat"])).shape, type(preprocess).__name__, sys.modules["hf_clip"].__file__)
"""


def test_torch_hub_takes_a_clone(tmp_path, monkeypatch):
    """The packages beside `hf_clip` in it are found where an installed one is not."""
    write_openai_archive(tmp_path / "ViT-B-32.pt", openai_model())
    monkeypatch.setattr(hf_clip, "__path__", list(hf_clip.__path__))
    found = importlib.util.find_spec
    seen = {"hf_clip.conversion": lambda name: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: seen.get(name, found)(name))
    load = partial(torch.hub.load, str(ROOT), source="local")
    model, preprocess = load("ViT_B_32", device="cpu", download_root=str(tmp_path))
    assert str(ROOT) in hf_clip.__path__ and type(preprocess).__name__ == "Preprocess"
    assert model.encode_text(load("tokenize")(["a cat"])).shape == (1, 40)


@pytest.mark.slow
@pytest.mark.skipif(not soak_count(0, 1), reason="starts a Python without the package for seconds: make soak")
def test_torch_hub_takes_a_clone_that_is_not_installed(tmp_path):
    write_openai_archive(tmp_path / "ViT-B-32.pt", openai_model())
    command = [*warm_python("libraries"), "-c", SCRIPT, str(ROOT), str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["torch.Size([1,", "40])", "Preprocess", str(ROOT / "hf_clip/__init__.py")]


def test_entry_points_have_openais_names():
    import hubconf

    assert {"RN50", "RN50x64", "ViT_B_32", "ViT_L_14", "ViT_L_14_336px", "tokenize"} <= set(vars(hubconf))
    assert hubconf.ViT_B_16.__doc__.startswith("ViT-B/16")
