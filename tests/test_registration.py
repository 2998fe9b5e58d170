"""transformers' own entrances take a saved folder: Auto classes, the stock pipeline, and code from the Hub."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    pipeline,
)

import hf_clip
from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPTextModel,
    HFCLIPTokenizer,
)
from tests.toys import tiny_clip

LABELS = ["a red square", "something blue", "green " * 100]


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 32), colour)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_clip(LABELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("auto_class", "expected"),
    [
        (AutoConfig, HFCLIPConfig),
        (AutoModel, HFCLIPModel),
        (AutoModelForZeroShotImageClassification, HFCLIPModel),
        (AutoModelForImageClassification, HFCLIPForImageClassification),
        (AutoProcessor, HFCLIPProcessor),
        (AutoTokenizer, HFCLIPTokenizer),
        (AutoImageProcessor, HFCLIPImageProcessor),
    ],
)
def test_auto_classes_give_ours(auto_class, expected, folder):
    assert type(auto_class.from_pretrained(folder)) is expected


def test_a_text_tower_saved_alone_is_known_by_its_type(folder, tmp_path):
    HFCLIPTextModel.from_pretrained(folder).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is HFCLIPTextModel
    hf_clip.HFCLIPVisionConfig.from_pretrained(folder).save_pretrained(tmp_path / "vision")
    assert type(AutoConfig.from_pretrained(tmp_path / "vision")) is hf_clip.HFCLIPVisionConfig


def test_transformers_clip_stays_transformers_own(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CLIPConfig


def test_the_stock_pipeline_scores_as_the_model_does(folder):
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    assert type(classify.model) is HFCLIPModel
    template = "a drawing of {}"
    # One of the labels has more than 77 tokens.
    scores = classify(picture(), candidate_labels=LABELS, hypothesis_template=template)
    model, processor = HFCLIPModel.from_pretrained(folder), HFCLIPProcessor.from_pretrained(folder)
    inputs = processor(images=picture(), text=[template.format(label) for label in LABELS], return_tensors="pt")
    assert inputs["input_ids"].shape == (3, 77)
    with torch.no_grad():
        cosines = model.encode_image(inputs["pixel_values"]) @ model.encode_text(inputs["input_ids"]).T
        expected = (model.logit_scale.exp() * cosines)[0].softmax(dim=0)
    assert [score["score"] for score in scores] == sorted((score["score"] for score in scores), reverse=True)
    found = {score["label"]: score["score"] for score in scores}
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)


def test_public_names_are_there_and_others_are_refused_by_name():
    for name in hf_clip.__all__:
        assert getattr(hf_clip, name).__module__.startswith("hf_clip.")
        assert name in dir(hf_clip)
    with pytest.raises(AttributeError, match="no attribute 'HFClipModel'; it has .*HFCLIPModel"):
        hf_clip.HFClipModel  # noqa: B018
    with pytest.raises(ImportError, match="HFClipModel"):
        exec("from hf_clip import HFClipModel")


LOAD_REMOTE_CODE = """
import sys
import torch

sys.modules["hf_clip"] = None  # importing it raises ImportError
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

folder = sys.argv[1]
kind = AutoModel if sys.argv[2] == "AutoModel" else AutoModelForZeroShotImageClassification
model = kind.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
from PIL import Image

picture = Image.new("RGB", (40, 32), "red")
inputs = processor(images=picture, text=["a red square", "something blue"], return_tensors="pt")
with torch.no_grad():
    torch.save(dict(model(**inputs).items(), **inputs), sys.argv[3])
assert type(model).__module__.startswith("transformers_modules")
"""


def test_a_pushed_folder_loads_where_the_package_is_not_installed(tmp_path):
    """`register_for_auto_class` copies the modules; they must need nothing but each other."""
    saved, elsewhere = tmp_path / "saved", tmp_path / "elsewhere"
    program = tmp_path / "save.py"
    program.write_text(SAVE_WITH_CODE)
    run_python(program, saved)
    auto_map = json.loads((saved / "config.json").read_text())["auto_map"]
    assert set(auto_map) >= {"AutoConfig", "AutoModel"}
    shutil.move(saved, elsewhere)
    program.write_text(LOAD_REMOTE_CODE)
    run_python(program, elsewhere, "AutoModel", tmp_path / "outputs.pt", cwd=tmp_path)
    found = torch.load(tmp_path / "outputs.pt", weights_only=False)
    model, processor = HFCLIPModel.from_pretrained(elsewhere), HFCLIPProcessor.from_pretrained(elsewhere)
    inputs = processor(images=picture(), text=LABELS[:2], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    assert torch.equal(found["input_ids"], inputs["input_ids"])
    torch.testing.assert_close(found["pixel_values"], inputs["pixel_values"], rtol=0, atol=0)
    for field in ("image_embeds", "text_embeds", "logits_per_image"):
        torch.testing.assert_close(found[field], expected[field], rtol=0, atol=0)


SAVE_WITH_CODE = """
import sys

import hf_clip
from tests.toys import tiny_clip

model, processor = tiny_clip(["a red square", "something blue"])
hf_clip.HFCLIPConfig.register_for_auto_class()
hf_clip.HFCLIPModel.register_for_auto_class("AutoModel")
hf_clip.HFCLIPImageProcessor.register_for_auto_class()
hf_clip.HFCLIPTokenizer.register_for_auto_class()
hf_clip.HFCLIPProcessor.register_for_auto_class()
model.save_pretrained(sys.argv[1])
processor.save_pretrained(sys.argv[1])
"""


def run_python(program, *args, cwd=None) -> None:
    command = [sys.executable, str(program), *map(str, args)]
    completed = subprocess.run(command, cwd=cwd, env=None, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
