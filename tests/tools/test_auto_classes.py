"""transformers' Auto classes and pipelines on parts of a model: towers, classifiers, maps, one side alone."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoModelForImageClassification,
    AutoModelForTextEncoding,
    pipeline,
)
from transformers.models.auto import auto_factory

from hf_clip import (
    HFCLIPBackbone,
    HFCLIPForImageClassification,
    HFCLIPTextModel,
    HFCLIPVisionConfig,
    HFCLIPVisionModel,
    embed_images,
    embed_texts,
)
from hf_clip.model.modeling_hf_clip import HFCLIPSiglipForImageClassification, with_other_loss
from tests.helpers.toys import tiny_clip

TEXTS = ["a red square", "something blue, and long", "green"]
IMAGES = [Image.new("RGB", (40, 32), color) for color in ("red", "blue")]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(TEXTS)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in clip:
        part.save_pretrained(folder)
    return folder


def test_a_text_encoder_of_both_folders(clip, folder, tmp_path):
    HFCLIPTextModel.from_pretrained(folder).save_pretrained(tmp_path)
    ids = clip[1](text=TEXTS, return_tensors="pt")["input_ids"]
    for source in (folder, tmp_path):
        tower = AutoModelForTextEncoding.from_pretrained(source)
        assert type(tower) is HFCLIPTextModel
        torch.testing.assert_close(tower(ids).pooler_output, clip[0].text_model(ids).pooler_output)


def test_a_classifier_of_a_sigmoid_model(clip, tmp_path):
    sigmoid = with_other_loss(clip[0], -10.0)
    sigmoid.save_pretrained(tmp_path)
    classifier, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert type(classifier) is HFCLIPSiglipForImageClassification
    assert isinstance(classifier, HFCLIPForImageClassification)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    classifier.save_pretrained(tmp_path / "own")
    assert (
        type(AutoModelForImageClassification.from_pretrained(tmp_path / "own")) is HFCLIPSiglipForImageClassification
    )


def test_a_backbone_gives_maps_of_layers(clip, folder, tmp_path, monkeypatch):
    # It asks the Hub whether there is such a repository, and takes folders for names of timm's.
    monkeypatch.setattr(auto_factory, "hf_api", lambda: SimpleNamespace(repo_exists=lambda name: True))
    HFCLIPVisionModel.from_pretrained(folder).save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 48, 32)
    with torch.no_grad():
        states = clip[0].vision_model(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
        for source in (folder, tmp_path):
            backbone = AutoBackbone.from_pretrained(str(source), out_features=["stem", "stage2"])
            assert type(backbone) is HFCLIPBackbone and backbone.channels == [32, 32]
            maps = backbone(pixels).feature_maps
            assert [tuple(one.shape) for one in maps] == [(2, 32, 6, 4)] * 2
            # The third row and second column of patches, behind the class token.
            torch.testing.assert_close(maps[1][:, :, 2, 1], states[2][:, 1 + 2 * 4 + 1])
            torch.testing.assert_close(maps[0][:, :, 0, 0], states[0][:, 1])
    assert AutoBackbone.from_config(HFCLIPVisionConfig(num_hidden_layers=2)).out_features == ["stage2"]
    backbone.save_pretrained(tmp_path / "own")
    assert HFCLIPBackbone.from_pretrained(tmp_path / "own").out_features == ["stem", "stage2"]
    with pytest.raises(ValueError, match="tower='resnet'"):
        resnet = {"stem_width": 8, "stage_depths": [1, 1, 1, 1], "hidden_size": 256, "num_attention_heads": 4}
        AutoBackbone.from_config(HFCLIPVisionConfig(tower="resnet", image_size=32, **resnet))


def test_the_model_takes_one_side_alone(clip):
    model, processor = clip
    inputs = processor(text=TEXTS, images=IMAGES, return_tensors="pt")
    both = model(**inputs)
    texts, images = model(input_ids=inputs["input_ids"]), model(pixel_values=inputs["pixel_values"])
    assert set(texts) == {"text_embeds", "text_model_output"} and set(images) == {
        "image_embeds",
        "vision_model_output",
    }
    torch.testing.assert_close(texts.text_embeds, both.text_embeds)
    torch.testing.assert_close(images.image_embeds, both.image_embeds)
    with pytest.raises(ValueError, match="both missing"):
        model()
    with pytest.raises(ValueError, match="3 texts in `input_ids` and 0 images"):
        model(input_ids=inputs["input_ids"], return_loss=True)


def test_pipelines_of_features_give_embeddings(clip, folder):
    texts = pipeline("feature-extraction", model=str(folder))(TEXTS, return_tensors=True)
    torch.testing.assert_close(torch.cat(texts), embed_texts(*clip, TEXTS))
    images = pipeline("image-feature-extraction", model=str(folder))(IMAGES, return_tensors=True)
    torch.testing.assert_close(torch.cat(images), embed_images(*clip, IMAGES))
