"""`hf-clip push --space`: a Space whose page gives the scores of the package, without the package."""

import importlib.util
import re

import huggingface_hub
import numpy as np
import pytest
import yaml
from PIL import Image

from hf_clip import HFCLIPModel, HFCLIPProcessor, ZeroShotClassifier
from hf_clip_cli import main as cli
from tests.helpers.mock_hub import TOKEN, running_hub, use_in_this_process
from tests.helpers.squares import NAMES, SIZE
from tests.helpers.toys import tiny_clip

pytestmark = pytest.mark.slow

NAME = "someone/tiny"
TEMPLATES = ["{}", "a {} square"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model, processor = tiny_clip(NAMES, SIZE)
    model.config.zero_shot_templates = TEMPLATES
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_space_is_pushed_beside_the_model_and_its_page_gives_the_same_scores(
    model_folder, tmp_path, monkeypatch, capsys
):
    with running_hub({}, tmp_path / "hub") as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The model's own push is tested beside this one.
        monkeypatch.setattr("hf_clip.hub.push.push", lambda source, repo_id, **_: f"{hub.url}/{repo_id}")
        assert cli.main(["push", str(model_folder), NAME, "--private", "--space"]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{hub.url}/{NAME}", f"{hub.url}/spaces/{NAME}"]
        assert hub.private[f"spaces/{NAME}"]
        there = hub.repositories[f"spaces/{NAME}"]
    assert {file.name for file in there.iterdir()} == {"app.py", "requirements.txt", "README.md"}
    about = yaml.safe_load((there / "README.md").read_text().split("---\n")[1])
    assert (about["sdk"], about["app_file"], about["models"]) == ("gradio", "app.py", [NAME])
    needed = (there / "requirements.txt").read_text().splitlines()
    assert {re.match(r"[\w-]+", line)[0] for line in needed} >= {"torch", "transformers", "pillow"}
    assert not any("hf" in line and "clip" in line for line in needed)
    _check_page(there / "app.py", model_folder)


def _check_page(file, model_folder) -> None:
    spec = importlib.util.spec_from_file_location("space_app", file)
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert (app.MODEL_ID, app.TEMPLATES) == (NAME, TEMPLATES)
    model, processor = HFCLIPModel.from_pretrained(model_folder).eval(), HFCLIPProcessor.from_pretrained(model_folder)
    shown = app.Shown(model, processor)
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(4)]
    found = shown.classify(images[0], ", ".join(NAMES[:3]), "")
    wanted = ZeroShotClassifier(model, processor, NAMES[:3], TEMPLATES, cache=False).predict(images[:1])[0]
    assert {one["label"]: one["score"] for one in wanted} == pytest.approx(found, abs=1e-5)
    gallery = [(image, None) for image in images]
    hits = shown.search(gallery, shown.take(gallery), "", images[2])
    assert len(hits) == 4 and hits[0] == (images[2], "1.000")
    assert len(shown.search(gallery, shown.take(gallery), NAMES[0], None)) == 4
    with pytest.raises(app.gr.Error, match="Give an image"):
        shown.classify(None, "a", "")
    # The page is whole: every event has its inputs and outputs.
    assert len(app.build(shown).fns) == 4


def test_a_space_shows_the_main_branch(model_folder, capsys):
    assert cli.main(["push", str(model_folder), NAME, "--space", "--revision", "other"]) == 2
    assert "drop --revision" in capsys.readouterr().err
