"""What the pages say runs: their Python in order, and of docs/checkpoints.md every command whose source is there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

from hf_clip import load
from hf_clip_cli import main as cli
from hf_clip_cli.running import make_parser
from tests.helpers.checkpoints import openai_model, openai_state
from tests.helpers.toys import tiny_clip

ROOT = Path(__file__).parents[1]
CHECKPOINTS = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small model in OpenAI's format, under the name of a large one."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    torch.save(openai_state(openai_model()), tmp_path / "ViT-B-32.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_of_the_page_runs_in_order(place):
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", CHECKPOINTS, re.M | re.S):
        exec(compile(code, "checkpoints.md", "exec"), names)  # noqa: S102
    assert names["similarity"].shape == (1, 2)
    assert names["verification"].is_passed


@pytest.mark.parametrize("page", ["index", "zero-shot", "embeddings", "fine-tuning"])
def test_python_of_the_pages_for_users_runs_in_order(page, tmp_path, monkeypatch, capsys):
    """Their Hub id and the demo's model are folders of a small random one here."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("openai/clip-vit-base-patch32", "runs/emoji"):
        for part in tiny_clip(["an apple", "a fire engine"]):
            part.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    content = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    codes = re.findall(r"^```python\n(.*?)^```", content, re.M | re.S)
    for code in codes:
        exec(compile(code, f"{page}.md", "exec"), names)  # noqa: S102
    assert codes and ("similarity" not in content or names["similarity"].shape == (1, 2))
    assert page != "fine-tuning" or load("runs/adapter", base="runs/emoji")[0] is not None


def test_commands_of_the_page_run(place):
    """In order, as each takes up what the one before wrote. Those that need other weights are parsed."""
    commands = [shlex.split(line)[1:] for line in CHECKPOINTS.splitlines() if line.startswith("    hf-clip ")]
    run = [command for command in commands if Path(command[1]).exists() or command[1].startswith("runs/")]
    assert len(run) >= 4
    for command in commands:
        make_parser().parse_args(command)
    for command in run:
        assert cli.main(command) == 0
    assert (place / "runs/openai/model.pt").is_file()


def test_the_recipe_reference_is_of_the_present_keys():
    spec = importlib.util.spec_from_file_location("make_recipe_reference", ROOT / "tools/make_recipe_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    assert written == script.page(), "run: python tools/make_recipe_reference.py"


def test_links_between_the_pages_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
