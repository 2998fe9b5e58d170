"""transformers' common model tests, bound to this package's classes and to CLIP's own, model by model.

`tools/peer_suite.py` puts this file beside those tests, as `tests/test_cases.py`; it runs nowhere else.
"""

import unittest

import torch
import transformers

import hf_clip
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
# The end token has a low id, which stays in a vocabulary that a test makes smaller.
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 5}
# A test that wants seven texts would else add some of random ids, without an end token.
BATCH, TOKENS, SIDE, PATCH, VOCABULARY = 7, 7, 16, 4, 99


class Tester:
    """What the common tests ask of a model's tester."""

    is_training = False
    batch_size = BATCH
    hidden_size = projection_dim = 32
    num_hidden_layers, num_attention_heads = TOWER["num_hidden_layers"], TOWER["num_attention_heads"]

    def __init__(self, test: type, config_class: type):
        self.test, self.config_class = test, config_class

    def get_config(self):
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs()


class VisionTester(Tester):
    image_size, patch_size, num_channels = SIDE, PATCH, 3
    seq_length = (SIDE // PATCH) ** 2 + 1
    fields = {**TOWER, "projection_dim": 32, "image_size": SIDE, "patch_size": PATCH}

    def inputs(self):
        return {"pixel_values": floats_tensor([BATCH, 3, SIDE, SIDE])}


class TextTester(Tester):
    seq_length, vocab_size = TOKENS, VOCABULARY
    fields = {**TOWER, "projection_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 64, **IDS}

    def inputs(self):
        input_ids = ids_tensor([BATCH, TOKENS], VOCABULARY).clamp(min=6)
        mask = torch.ones_like(input_ids)
        # None ends at the last position but one, whose id a test replaces: ours refuse a text without its end token.
        for row, length in enumerate((7, 4, 5, 7, 5, 7, 7)):
            input_ids[row, length - 1] = IDS["eos_token_id"]
            mask[row, length:] = 0
        return {"input_ids": input_ids, "attention_mask": mask}


class DualTester(Tester):
    is_training = True
    fields = {"text_config": TextTester.fields, "vision_config": VisionTester.fields, "projection_dim": 32}
    seq_length, image_size, patch_size = TOKENS, SIDE, PATCH

    def __init__(self, test: type, config_class: type):
        super().__init__(test, config_class)
        self.text_model_tester, self.vision_model_tester = TextTester(test, None), VisionTester(test, None)

    def inputs(self):
        return {**self.text_model_tester.inputs(), **self.vision_model_tester.inputs(), "return_loss": True}


class ClassifierTester(DualTester):
    seq_length = VisionTester.seq_length

    def inputs(self):
        return self.vision_model_tester.inputs()


class _Common(ModelTesterMixin):
    maker: type
    config_class: type

    def setUp(self):
        self.model_tester = self.maker(self, self.config_class)


class _Vision(_Common):
    maker, test_resize_embeddings = VisionTester, False


class _Text(_Common):
    maker = TextTester


class _Dual(_Common):
    # As transformers has it for its own: the towers' tests look at attentions.
    maker, has_attentions, _is_composite = DualTester, False, True


class _Classifier(_Common):
    maker, has_attentions, _is_composite, test_resize_embeddings = ClassifierTester, False, True, False

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        # Which classes take labels is known by their names in transformers.
        return {**inputs, "labels": torch.zeros(BATCH, dtype=torch.long)} if return_labels else inputs


class OursVision(_Vision, unittest.TestCase):
    config_class = hf_clip.HFCLIPVisionConfig
    all_model_classes = (hf_clip.HFCLIPVisionModel, hf_clip.HFCLIPVisionModelWithProjection)


class TheirsVision(_Vision, unittest.TestCase):
    config_class = transformers.CLIPVisionConfig
    all_model_classes = (transformers.CLIPVisionModel, transformers.CLIPVisionModelWithProjection)


class OursText(_Text, unittest.TestCase):
    config_class = hf_clip.HFCLIPTextConfig
    all_model_classes = (hf_clip.HFCLIPTextModel, hf_clip.HFCLIPTextModelWithProjection)


class TheirsText(_Text, unittest.TestCase):
    config_class = transformers.CLIPTextConfig
    all_model_classes = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)


class OursDual(_Dual, unittest.TestCase):
    config_class = hf_clip.HFCLIPConfig
    all_model_classes = (hf_clip.HFCLIPModel,)


class TheirsDual(_Dual, unittest.TestCase):
    config_class = transformers.CLIPConfig
    all_model_classes = (transformers.CLIPModel,)


class OursClassifier(_Classifier, unittest.TestCase):
    config_class = hf_clip.HFCLIPConfig
    all_model_classes = (hf_clip.HFCLIPForImageClassification,)


class TheirsClassifier(_Classifier, unittest.TestCase):
    config_class = transformers.CLIPConfig
    all_model_classes = (transformers.CLIPForImageClassification,)


del _Common, _Vision, _Text, _Dual, _Classifier
