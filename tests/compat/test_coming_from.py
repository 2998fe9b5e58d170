"""What docs/coming_from.md says runs: its program, and the new line of every pair."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import hf_clip
from hf_clip.compat import clip
from tests.helpers.checkpoints import openai_model, write_openai_archive

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming_from.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images and OpenAI's cache, in which a small model has the name of a large one."""
    cache = tmp_path / "clip"
    cache.mkdir()
    write_openai_archive(cache / "ViT-B-32.pt", openai_model())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 32), "red").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip, "_CACHE", str(cache))
    return cache


@pytest.mark.slow
def test_the_program_and_every_new_line_run(place):
    names: dict = {}
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(program, "coming_from.md", "exec"), names)  # noqa: S102
    assert names["similarity"].shape == (2,)

    small = hf_clip.load(place / "ViT-B-32.pt")

    def load(*arguments, **options):
        inspect.signature(hf_clip.load).bind(*arguments, **options)
        return small

    names = {name: getattr(hf_clip, name) for name in ("ZeroShotClassifier", "embed_images", "embed_texts")}
    names |= {"load": load}
    pairs = re.findall(r"^\| `?(.*?)`? \| `(.*)` \|$", PAGE[PAGE.index("## Line by line") :], re.M)
    new = [line for _, line in pairs if line != "hf_clip"]
    assert len(new) == 17
    with torch.no_grad():
        for line in new:
            exec(line, names)  # noqa: S102
    assert names["image_embeds"].shape == (1, 40) and names["scores"].shape == (1, 1)
