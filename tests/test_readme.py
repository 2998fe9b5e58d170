"""What the README says runs: its Python in order, and the commands and files that it names."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from hf_clip import HFCLIPConfig, HFCLIPImageProcessor, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer
from hf_clip.training import load_recipe
from hf_clip_cli.running import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder like a checkout after `make demo`, its model tiny and untrained."""
    os.symlink(ROOT / "examples", tmp_path / "examples")
    tokenizer = HFCLIPTokenizer.train(["a red apple", "a snowman"], vocab_size=520, model_max_length=32)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"tower": "convnet", "stem_width": 4, "stage_widths": [16], "stage_depths": [1], "hidden_size": 16}
    torch.manual_seed(0)
    model = HFCLIPModel(HFCLIPConfig(text_config=text, vision_config=vision | {"image_size": 32}, projection_dim=8))
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    model.save_pretrained(tmp_path / "runs/emoji")
    HFCLIPProcessor(HFCLIPImageProcessor(**size), tokenizer).save_pretrained(tmp_path / "runs/emoji")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_of_the_readme_runs_in_order(checkout):
    names: dict = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["similarity"].shape == (1, 2)
    assert names["image_embeds"].norm(dim=-1).item() == pytest.approx(1, abs=1e-6)
    assert (checkout / "runs/ours/model.safetensors").is_file()


def test_recipe_of_the_readme_is_one(tmp_path):
    for index, recipe in enumerate(blocks("yaml")):
        file = tmp_path / f"{index}.yaml"
        file.write_text(recipe)
        assert load_recipe(file).model.architecture == "ViT-B/32"


def test_commands_of_the_readme_are_ones():
    """Every `hf-clip` line parses, every make target exists, every file linked to is there."""
    commands = [line.strip() for line in README.splitlines() if line.startswith("    hf-clip ")]
    assert commands
    for command in commands:
        make_parser().parse_args(shlex.split(command, comments=True)[1:])
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z]+)", README)) - {"no"} <= targets
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_no_placeholder_is_left():
    assert "{{" not in README
