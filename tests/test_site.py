"""The documentation site builds strictly, holds every verb and public name, and asks nothing of other servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clip
from hf_clip.training.recipe_reference import field_texts
from hf_clip_cli.running import VERBS

ROOT = Path(__file__).parents[1]
# What people look for, each answered somewhere.
SOUGHT = (
    "LoRA",
    "ONNX",
    "quantize",
    "FastAPI",
    "wandb",
    "tensorboard",
    "dtype",
    "numpy",
    "batch size",
    "multi-GPU",
    "SLURM",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


@pytest.mark.slow
def test_every_page_verb_and_public_name_is_in_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), page.name
    assert (site / "changelog.html").is_file()
    command = (site / "cli.html").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"hf-clip {verb}" in command
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in hf_clip.__all__:
        assert re.search(rf'<h3 id="[\w.]+\.{name}" class="doc doc-heading"', api), name
    # A docstring and the meaning of an argument are on the page.
    assert "Unit embeddings of images" in api and "images encoded at once" in api
    # So is each field of a config.
    for kind in (hf_clip.HFCLIPTextConfig, hf_clip.HFCLIPVisionConfig, hf_clip.HFCLIPConfig, hf_clip.HFCLIPCoCaConfig):
        for name, text in field_texts(sys.modules[kind.__module__])[kind.__name__].items():
            assert f'id="{kind.__module__}.{kind.__name__}.{name}"' in api, text


@pytest.mark.slow
def test_the_site_is_shown_without_asking_another_server(site):
    fetched = re.compile(r"<(?:script|img|iframe|link)[^>]*?(?:src|href)=\"?(https?:)?//", re.I)
    for page in site.glob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_what_people_look_for_is_answered():
    text = "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert not [word for word in SOUGHT if word.lower() not in text.lower()]
