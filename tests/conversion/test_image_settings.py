"""Settings of images in transformers' folders, of earlier years too: pixels are those of transformers' own class."""

import json

import numpy as np
import pytest
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_clip.conversion.preprocessing import load_image_processor
from tools.make_golden_pixels import image_of

OF_2021 = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
OF_2021 |= {"do_resize": True, "do_center_crop": True, "do_normalize": True}
OF_2021 |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
# What else such a file says, or says otherwise.
CLIP_SETTINGS = {
    "of 2021": {},
    "two names": {"image_processor_type": "CLIPFeatureExtractor"},
    "no name": {"feature_extractor_type": None},
    "lists": {"size": [32, 32], "crop_size": [32, 32]},
    "a resize beyond the crop, bilinear": {"size": 40, "resample": 2},
    "no crop": {"size": {"height": 32, "width": 32}, "do_center_crop": False, "crop_size": None},
    "a square by a switch": {"size": None, "crop_size": 224, "use_square_size": True},
    "not normalized": {"do_normalize": False},
    "nothing but a size": {"resample": None, "image_mean": None, "image_std": None, "do_normalize": None},
    "a factor": {"rescale_factor": 0.00392156862745098, "do_rescale": True, "do_convert_rgb": True},
    "names of arguments": {"_valid_processor_keys": ["images", "size"], "processor_class": "CLIPProcessor"},
}
OTHERS = {
    "ViTFeatureExtractor": ViTImageProcessorPil,
    "ViTImageProcessorFast": ViTImageProcessorPil,
    "BitImageProcessor": BitImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
    "OwlViTFeatureExtractor": OwlViTImageProcessorPil,
    "ChineseCLIPFeatureExtractor": ChineseCLIPImageProcessorPil,
}


def assert_same_pixels(settings, theirs, folder):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    ours = load_image_processor(folder)
    # Sides of which an even number of pixels is cropped: at odd ones transformers is a pixel off.
    for width, height, mode in [(64, 64, "RGB"), (80, 64, "L"), (48, 96, "RGB")]:
        # A ViT's class takes what it is given.
        image = image_of(width, height, mode).convert("RGB")
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])
        assert np.array_equal(ours(image, return_tensors="np")["pixel_values"], expected)
    # What is written is not named after their class.
    assert not {"feature_extractor_type", "_valid_processor_keys"} & ours.to_dict().keys()


@pytest.mark.parametrize("settings", CLIP_SETTINGS.values(), ids=CLIP_SETTINGS)
def test_clips_of_earlier_years(settings, tmp_path):
    settings = OF_2021 | settings
    # null says nothing here. Their class fails at some.
    said = {name: value for name, value in settings.items() if value is not None}
    assert_same_pixels(settings, CLIPImageProcessorPil(**said), tmp_path)


@pytest.mark.parametrize("is_bare", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_classes(kind, is_bare, tmp_path):
    """One number for a size means the shorter edge to some, and a square to others; so does what is not said."""
    settings = {} if is_bare else {"size": 32, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3]}
    if kind == "OwlViTFeatureExtractor":
        settings["rescale"] = True
    assert_same_pixels(settings | {"feature_extractor_type": kind}, OTHERS[kind](**settings), tmp_path)
