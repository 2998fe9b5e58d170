"""What a user installs: the wheel holds the package and its command, with their data, and nothing else."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import hf_clip
from tests.helpers.mock_hub import running_hub
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[1]
EXTRAS = {"captions", "eval", "train", "search", "ray", "export", "app", "demo", "test", "docs", "dev"}
# Of versions that others of these have no use for: boto wants a python-dateutil before 3.
UNPINNED = {"s3"}
NOT_BUILT_FROM = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info", "*.parquet")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel's content, built offline from a copy of the tree: a build leaves its traces in the source."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_BUILT_FROM)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(folder / "tree")]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def metadata(unpacked):
    (found,) = unpacked.glob("*.dist-info")
    return Parser().parsestr((found / "METADATA").read_text(encoding="utf-8"))


def files_under(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_beside_it(unpacked):
    beside = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert beside == {"hf_clip", "hf_clip_cli"}


@pytest.mark.slow
def test_every_module_and_data_file_is_in_the_wheel(unpacked):
    beside = {f"{folder}/{name}" for folder in ("conversion", "training") for name in files_under(ROOT / folder)}
    in_tree = files_under(ROOT / "hf_clip") | beside
    assert files_under(unpacked / "hf_clip") == in_tree
    assert files_under(unpacked / "hf_clip_cli") == files_under(ROOT / "cli")


def test_metadata(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("hf-clip", hf_clip.__version__)
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS | UNPINNED
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
    plain = {Requirement(line).name for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert {"torch", "transformers"} <= plain
    assert not {"datasets", "accelerate", "torchvision", "timm"} & plain
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= {
        line.partition(",")[0] for line in metadata.get_all("Project-URL")
    }
    assert "Programming Language :: Python :: 3.14" in metadata.get_all("Classifier") and metadata["Keywords"]
    # The package index has none of the repository's files.
    assert not re.search(r"\]\((?!http|#)", metadata.get_payload())


@pytest.mark.slow
def test_the_command_runs_from_the_installed_files_alone(unpacked, tmp_path):
    (found,) = unpacked.glob("*.dist-info")
    entries = configparser.ConfigParser()
    entries.read(found / "entry_points.txt")
    module, _, function = entries["console_scripts"]["hf-clip"].partition(":")
    script = f"""
import sys
sys.path.insert(0, {str(unpacked)!r})
import {module}, hf_clip.training
for imported in (sys.modules[{module!r}], hf_clip.training):
    assert imported.__file__.startswith({str(unpacked)!r}), imported.__file__
sys.argv = ["hf-clip", "--help"]
sys.exit({module}.{function}())
"""
    run = subprocess.run([*warm_python("libraries"), "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "train" in run.stdout


def transformers_clip(folder: Path) -> Path:
    """A small CLIP of random weights as transformers saves its own, for the Hub."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=dict(tower), vision_config=tower | {"image_size": 32}, projection_dim=8))
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPProcessor(
        CLIPImageProcessorPil(**size), CLIPTokenizerFast.from_pretrained(openai_tokenizer(folder))
    )
    processor.save_pretrained(folder)
    return folder


def openai_tokenizer(folder: Path) -> Path:
    hf_clip.HFCLIPTokenizer().save_pretrained(folder)
    return folder


README_RUNS = r"""
import json, re, shlex, sys
sys.path.insert(0, sys.argv[1])
readme = open(sys.argv[2], encoding="utf-8").read()
import hf_clip
assert hf_clip.__file__.startswith(sys.argv[1]), hf_clip.__file__
names = {}
for code in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S):
    exec(compile(code, "README.md", "exec"), names)
assert names["image_embeds"].shape == (1, names["text_embeds"].shape[1])
assert names["similarity"].shape == (1, 2) and abs(names["image_embeds"].norm() - 1) < 1e-6
from hf_clip_cli.main import main
[classify] = [line for line in readme.splitlines() if line.startswith("    hf-clip classify ")]
sys.exit(main(shlex.split(classify, comments=True)[1:]))
"""


@pytest.mark.slow
def test_the_readme_runs_word_for_word_from_the_installed_wheel(unpacked, tmp_path):
    """Its Hub id is served by a mock of the Hub, with a small random model behind it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "photos").symlink_to(ROOT / "examples/emoji")
    demo = tmp_path / "runs/emoji"
    for part in tiny_clip(["a red apple", "a snowman"]):
        part.save_pretrained(demo)
    script = tmp_path / "walk.py"
    script.write_text(README_RUNS)
    peer = transformers_clip(tmp_path / "peer")
    with running_hub({"openai/clip-vit-base-patch32": peer}) as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run(
            [*warm_python("libraries"), str(script), str(unpacked), str(ROOT / "README.md")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^'?(photos/)?.*apple\.png.* a (dog|cat|bird)", run.stdout, re.M), run.stdout
    # Each file is fetched once, by whatever of the walk comes first.
    assert max(Counter(hub.downloaded).values()) == 1


def test_constraints_pin_all_that_the_extras_bring():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)
    if importlib.metadata.version("transformers") != versions["transformers"]:
        pytest.skip(
            "other versions are installed (make test-oldest, make test-newest), which may bring other packages"
        )
    pinned = {canonicalize_name(name) for name in versions}
    waiting, seen = [("hf-clip", extra) for extra in EXTRAS], set()
    while waiting:
        name, extra = asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        assert name in pinned | {"hf-clip"}, f"{name} is in no line of constraints.txt: add the version tested."
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            # Pinned by its parent already: what a GPU build of torch brings.
            if applies and "==" not in str(requirement.specifier):
                child = canonicalize_name(requirement.name)
                waiting += [(child, wanted) for wanted in ("", *requirement.extras)]
