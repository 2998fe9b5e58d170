"""What the README says holds: its recipe, and the commands, targets and files that it names. Its Python is run from
the wheel, by tests/test_packaging.py.
"""

import re
import shlex
from pathlib import Path

from hf_clip.training import load_recipe
from hf_clip_cli.running import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_recipe_of_the_readme_is_one(tmp_path):
    [recipe] = blocks("yaml")
    file = tmp_path / "my.yaml"
    file.write_text(recipe)
    assert load_recipe(file).model.start_from == "openai/clip-vit-base-patch32"
    assert len(recipe.splitlines()) <= 9


def test_commands_of_the_readme_parse_and_its_files_are_there():
    commands = re.findall(r"^    (?:hf-clip|torchrun .*? -m hf_clip) ([^#\n]+)", README, re.M)
    assert {"classify", "train", "plan", "eval", "convert", "push"} <= {command.split()[0] for command in commands}
    for command in commands:
        make_parser().parse_args(shlex.split(command))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z]+)", README)) - {"no"} <= targets
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for folder in re.findall(r"^\| `([\w/]+/)`", README, re.M):
        assert (ROOT / folder).is_dir(), folder


def test_a_newcomer_meets_the_fields_words():
    words = ("embedding", "batch_size", "frozen", "Multi-GPU", "fine-tune", "cosine similarity", "zero-shot")
    assert not [word for word in words if word not in README]
    order = ("pip install .", "ZeroShotClassifier", "embed_images", "hf-clip train", "hf-clip eval", "## Two commands")
    assert sorted(order, key=README.index) == list(order)
