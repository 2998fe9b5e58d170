"""transformers' own entrances take a saved folder: Auto classes, the stock pipeline, and code from the Hub."""

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
    HFCLIPSiglipConfig,
    HFCLIPSiglipModel,
    HFCLIPTextModel,
    HFCLIPTokenizer,
)
from tests.helpers.toys import tiny_clip

LABELS = ["a red square", "something blue", "green " * 100]


def make_image(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 32), color)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_clip(LABELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_parts_that_were_saved_apart_need_no_answer(tmp_path, monkeypatch):
    """A folder without a processor_config.json: transformers asked whether to trust the code that it names."""
    model, processor = tiny_clip(LABELS)
    for part in (model, processor.tokenizer, processor.image_processor):
        part.save_pretrained(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    ours = pipeline("zero-shot-image-classification", model=model, **parts)
    found, expected = (pipe(make_image(), candidate_labels=LABELS) for pipe in (classify, ours))
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


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
    scores = classify(make_image(), candidate_labels=LABELS, hypothesis_template=template)
    model, processor = HFCLIPModel.from_pretrained(folder), HFCLIPProcessor.from_pretrained(folder)
    inputs = processor(images=make_image(), text=[template.format(label) for label in LABELS], return_tensors="pt")
    assert inputs["input_ids"].shape == (3, 77)
    with torch.no_grad():
        cosines = model.encode_image(inputs["pixel_values"]) @ model.encode_text(inputs["input_ids"]).T
        expected = (model.logit_scale.exp() * cosines)[0].softmax(dim=0)
    assert [score["score"] for score in scores] == sorted((score["score"] for score in scores), reverse=True)
    found = {score["label"]: score["score"] for score in scores}
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    """A sigmoid model that pools its texts at the last of 64 tokens, so that padding to another length would show."""
    folder = tmp_path_factory.mktemp("siglip")
    model, processor = tiny_clip(LABELS)
    text = {**model.config.text_config.to_dict(), "pooling": "last", "is_causal": False}
    config = HFCLIPSiglipConfig(
        text_config={**text, "max_position_embeddings": 64},
        vision_config=model.config.vision_config,
        projection_dim=16,
        logit_bias_init_value=-2,
    )
    HFCLIPSiglipModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    # As SigLIP's tokenizers, which give no mask: its tokens see the padding.
    HFCLIPTokenizer.from_pretrained(folder, model_input_names=["input_ids"]).save_pretrained(folder)
    return folder


def test_auto_classes_know_sigmoid_models(siglip_folder):
    assert type(AutoConfig.from_pretrained(siglip_folder)) is HFCLIPSiglipConfig
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        assert type(auto_class.from_pretrained(siglip_folder)) is HFCLIPSiglipModel


def test_the_stock_pipeline_scores_sigmoid_models_by_sigmoid_and_pads_to_64(siglip_folder):
    classify = pipeline("zero-shot-image-classification", model=str(siglip_folder))
    assert type(classify.model) is HFCLIPSiglipModel
    scores = classify(make_image(), candidate_labels=LABELS[:2], hypothesis_template="{}")
    model = HFCLIPSiglipModel.from_pretrained(siglip_folder)
    processor = HFCLIPProcessor.from_pretrained(siglip_folder)
    padding = {"padding": "max_length", "max_length": 64}
    inputs = processor(images=make_image(), text=LABELS[:2], return_tensors="pt", **padding)
    with torch.no_grad():
        cosines = model.encode_image(inputs["pixel_values"]) @ model.encode_text(inputs["input_ids"]).T
        expected = (model.logit_scale.exp() * cosines + model.logit_bias)[0].sigmoid()
    found = {score["label"]: score["score"] for score in scores}
    assert [found[label] for label in LABELS[:2]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_public_names_are_there_and_others_are_refused_by_name():
    for name in hf_clip.__all__:
        assert getattr(hf_clip, name).__module__.startswith("hf_clip.")
        assert name in dir(hf_clip)
    with pytest.raises(AttributeError, match="no attribute 'HFClipModel'; it has .*HFCLIPModel"):
        hf_clip.HFClipModel  # noqa: B018
    with pytest.raises(ImportError, match="HFClipModel"):
        exec("from hf_clip import HFClipModel")
