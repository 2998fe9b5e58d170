"""Configs: transformers' files read as ours, the published architectures, and errors that say how to fix them."""

import inspect
import json
import math
import re
import sys
import time

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import BertConfig, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, SiglipConfig, SiglipVisionConfig

from hf_clip import (
    HFCLIPCoCaConfig,
    HFCLIPConfig,
    HFCLIPModel,
    HFCLIPSiglipConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)
from hf_clip.training.recipe_reference import field_texts

# Counts of parameters of OpenAI's published models, by both spellings of their names.
PUBLISHED = {
    ("ViT-B/32", "ViT-B-32"): 151_277_313,
    ("ViT-B/16", "ViT-B-16"): 149_620_737,
    ("ViT-L/14", "ViT-L-14"): 427_616_513,
    ("ViT-L/14@336px", "ViT-L-14-336"): 427_944_193,
}

# What `config.json` of 2022 held for ViT-L/14, in short: whole towers under `..._config_dict`, null beside them, an
# end id that the vocabulary does not use, generation parameters, and null for what was left open.
FIRST_FORMAT = {
    "_commit_hash": None,
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": None,
    "text_config_dict": {
        "architectures": None,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_length": 20,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "pad_token_id": 1,
        "problem_type": None,
        "projection_dim": 512,
        "temperature": 1.0,
        "torch_dtype": None,
        "transformers_version": "4.21.0.dev0",
    },
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": None,
    "vision_config_dict": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}


def shared_fields(config) -> dict:
    return {key: value for key, value in config.to_dict().items() if key not in ("model_type", "transformers_version")}


def test_a_config_of_transformers_clip_is_read_as_ours(tmp_path):
    theirs = CLIPConfig(
        text_config={"hidden_size": 48, "num_attention_heads": 4, "eos_token_id": 99, "hidden_act": "gelu"},
        vision_config={"hidden_size": 64, "patch_size": 16, "num_attention_heads": 2, "layer_norm_eps": 1e-6},
        projection_dim=24,
        logit_scale_init_value=3.0,
    )
    theirs.save_pretrained(tmp_path)
    ours = HFCLIPConfig.from_pretrained(tmp_path)
    assert (ours.model_type, ours.projection_dim, ours.logit_scale_init_value) == ("hf_clip", 24, 3.0)
    for tower, tower_class in (("text_config", HFCLIPTextConfig), ("vision_config", HFCLIPVisionConfig)):
        ours_tower, theirs_tower = getattr(ours, tower), getattr(theirs, tower)
        assert type(ours_tower) is tower_class
        expected = {**shared_fields(theirs_tower), "projection_dim": 24}
        assert {key: getattr(ours_tower, key) for key in expected} == expected
        # A tower alone, from the same folder.
        assert tower_class.from_pretrained(tmp_path).to_dict() == ours_tower.to_dict()


@pytest.mark.parametrize(
    ("theirs", "ours_class"), [(CLIPTextConfig, HFCLIPTextConfig), (CLIPVisionConfig, HFCLIPVisionConfig)]
)
def test_a_tower_config_of_transformers_is_read_as_ours(theirs, ours_class, tmp_path):
    theirs(hidden_size=96, num_attention_heads=6, projection_dim=7).save_pretrained(tmp_path)
    ours = ours_class.from_pretrained(tmp_path)
    assert (ours.model_type, ours.hidden_size, ours.projection_dim) == (ours_class.model_type, 96, 7)


def test_the_first_format_of_2022_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIRST_FORMAT))
    config = HFCLIPConfig.from_pretrained(tmp_path)
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers, text.eos_token_id) == (768, 12, 12, 2)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (1024, 24, 14, 224)
    assert config.projection_dim == text.projection_dim == vision.projection_dim == 768
    # A tower alone has the dual encoder's projection, not the 512 that stands beside it in the file.
    assert HFCLIPTextConfig.from_pretrained(tmp_path).projection_dim == 768
    assert HFCLIPVisionConfig.from_pretrained(tmp_path).hidden_size == 1024
    config.save_pretrained(tmp_path / "ours")
    assert HFCLIPConfig.from_pretrained(tmp_path / "ours").to_dict() == config.to_dict()


def test_the_towers_follow_a_projection_that_a_file_leaves_at_its_default(tmp_path):
    # transformers writes only what differs from its defaults, and 512 is one.
    CLIPConfig(text_config={"projection_dim": 64}, projection_dim=512).save_pretrained(tmp_path)
    assert HFCLIPTextConfig.from_pretrained(tmp_path).projection_dim == 512


# What `config.json` of SigLIP's largest model holds on the Hub: only what differs from SigLIP's defaults.
SO400M = {
    "model_type": "siglip",
    "text_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_text_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}


def test_a_config_of_siglip_is_read_as_ours(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SO400M))
    theirs, ours = (kind.from_pretrained(tmp_path) for kind in (SiglipConfig, HFCLIPConfig))
    assert (type(ours), ours.model_type, ours.projection_dim) == (HFCLIPSiglipConfig, "hf_clip_siglip", 1152)
    assert HFCLIPSiglipConfig.from_pretrained(tmp_path).to_dict() == ours.to_dict()
    for tower, tower_class in (("text_config", HFCLIPTextConfig), ("vision_config", HFCLIPVisionConfig)):
        expected = shared_fields(getattr(theirs, tower))
        expected.pop("vision_use_head", None)
        ours_tower = getattr(ours, tower)
        assert {key: getattr(ours_tower, key) for key in expected} == expected
        assert ours_tower.projection_type == "none"
        # A tower alone, from the same folder.
        assert tower_class.from_pretrained(tmp_path).to_dict() == ours_tower.to_dict()
    # 384 pixels are 27 patches of 14, and six pixels more.
    assert (ours.vision_config.crops_remainder, ours.vision_config.pooling) == (True, "attention")
    assert (ours.text_config.is_causal, ours.text_config.pooling) == (False, "last")
    ours.save_pretrained(tmp_path / "ours")
    again = HFCLIPConfig.from_pretrained(tmp_path / "ours")
    assert type(again) is HFCLIPSiglipConfig and again.to_dict() == ours.to_dict()


def test_other_models_configs_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_type='bert'` cannot be read: use a folder of hf_clip, .*siglip"):
        HFCLIPConfig.from_pretrained(tmp_path)
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_type='hf_clip'` is no HFCLIPSiglipConfig"):
        HFCLIPSiglipConfig.from_pretrained(tmp_path)
    CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_type='hf_clip_vision_model'` is no HFCLIPConfig"):
        HFCLIPConfig.from_pretrained(tmp_path)
    SiglipVisionConfig(vision_use_head=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`vision_use_head=False` leaves"):
        HFCLIPVisionConfig.from_pretrained(tmp_path)


def test_a_bias_of_the_logits_is_a_sigmoid_models():
    assert HFCLIPSiglipConfig(logit_bias_init_value=-3).logit_bias_init_value == -3
    with pytest.raises(ValueError, match="`logit_bias_init_value=None` in a config of type hf_clip_siglip"):
        HFCLIPSiglipConfig(logit_bias_init_value=None)
    with pytest.raises(ValueError, match="`logit_bias_init_value=-10.*` .*their config is HFCLIPSiglipConfig"):
        HFCLIPConfig(logit_bias_init_value=-10)


def test_towers_without_a_projection_must_agree_on_their_width():
    fields = {"vision_config": {"projection_type": "none"}, "text_config": {"projection_type": "none"}}
    with pytest.raises(ValueError, match="`text_config` has no projection .*512 dim.*projection_dim=768`: set .*=512"):
        HFCLIPConfig(**fields, projection_dim=768)
    fields["text_config"]["projection_size"] = 768
    assert HFCLIPConfig(**fields, projection_dim=768).text_config.pooled_size == 768


def test_round_trip(tmp_path):
    config = HFCLIPConfig(
        text_config={"hidden_size": 64, "vocab_size": 1000, "eos_token_id": 999},
        vision_config={
            "tower": "convnet",
            "hidden_size": 48,
            "image_size": 64,
            "stem_width": 16,
            "stage_widths": [32, 48],
            "stage_depths": [1, 2],
            "pool_grid": 2,
        },
        projection_dim=96,
        logit_scale_init_value=math.log(10),
    )
    config.save_pretrained(tmp_path)
    again = HFCLIPConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert type(again.vision_config) is HFCLIPVisionConfig
    assert HFCLIPVisionConfig.from_pretrained(tmp_path).to_dict() == config.vision_config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "hf_clip"


def test_the_temperature_starts_where_the_papers_does():
    assert math.exp(-HFCLIPConfig().logit_scale_init_value) == pytest.approx(0.07)


@pytest.mark.slow
@pytest.mark.parametrize(("names", "count"), PUBLISHED.items())
def test_published_architectures_have_their_published_size(names, count):
    shapes = []
    for name in (*names, names[1].lower(), names[1].replace("-", "_")):
        config = HFCLIPConfig.from_architecture(name)
        shapes.append(config.to_dict())
        assert config.text_config.eos_token_id == 49407
    assert all(shape == shapes[0] for shape in shapes)
    with torch.device("meta"):
        model = HFCLIPModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    side = config.vision_config.image_size
    logits = model(torch.zeros(2, 77, dtype=torch.long, device="meta"), torch.zeros(3, 3, side, side, device="meta"))
    assert logits.logits_per_image.shape == (3, 2)


def test_overrides_replace_single_values():
    config = HFCLIPConfig.from_architecture("ViT-B/16", projection_dim=256, vision_config={"image_size": 32})
    assert (config.projection_dim, config.text_config.projection_dim) == (256, 256)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (32, 16)
    # The file's own shape is as it was.
    assert HFCLIPConfig.from_architecture("ViT-B/16").vision_config.image_size == 224


def test_an_override_of_a_field_that_the_architecture_leaves_open():
    config = HFCLIPConfig.from_architecture("ViT-B/32", logit_scale_init_value=2.0, id2label={0: "cat", 1: "dog"})
    assert (config.logit_scale_init_value, config.num_labels) == (2.0, 2)
    text = HFCLIPTextConfig(hidden_size=64, vocab_size=100)
    assert HFCLIPConfig.from_architecture("ViT-B/32", text_config=text).text_config.vocab_size == 100


RESNET = {
    "tower": "resnet",
    "hidden_size": 2048,
    "stem_width": 64,
    "stage_depths": [3, 4, 6, 3],
    "num_attention_heads": 32,
}
CONVNET = {
    "tower": "convnet",
    "hidden_size": 48,
    "image_size": 64,
    "stem_width": 16,
    "stage_widths": [32, 48],
    "stage_depths": [1, 1],
    "norm_group_size": 16,
}


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (HFCLIPTextConfig, {"hidden_size": 100, "num_attention_heads": 8}, "hidden_size=100.*num_attention_heads=8"),
        (HFCLIPVisionConfig, {"hidden_size": 100}, "hidden_size=100.*multiple of the number of heads"),
        (HFCLIPVisionConfig, {"image_size": 230, "patch_size": 16}, "set image_size=224"),
        (HFCLIPVisionConfig, {"image_size": 8, "patch_size": 16}, "image_size=8.*set image_size=16"),
        (HFCLIPTextConfig, {"projection_dim": 0}, "projection_dim=0 must be 1 or more"),
        (HFCLIPTextConfig, {"num_attention_heads": 0}, "num_attention_heads=0 must be 1 or more"),
        (HFCLIPVisionConfig, {"patch_size": -1}, "patch_size=-1 must be 1 or more"),
        (
            HFCLIPTextConfig,
            {"tower": "vit"},
            "tower='vit' is not known: use one of 'clip', 'class_token', 'transformers'",
        ),
        (HFCLIPTextConfig, {"pooling": "class"}, "pooling='class'.*'eos', 'last', 'first', 'mean'"),
        (HFCLIPTextConfig, {"hidden_act": "swish"}, "hidden_act='swish'.*'quick_gelu', 'gelu', 'gelu_pytorch_tanh'"),
        (HFCLIPTextConfig, {"projection_type": "mpl"}, "projection_type='mpl'.*'linear', 'mlp', 'none'"),
        (HFCLIPTextConfig, {"projection_type": "none", "projection_bias": True}, "projection_bias=True has no proj"),
        (
            HFCLIPVisionConfig,
            {"tower": "rnn"},
            "tower='rnn'.*'vit', .*'naflex', 'resnet', .*'timm'",
        ),
        (HFCLIPVisionConfig, {"pooling": "mean"}, "pooling='mean'.*'class', 'average', 'attention'"),
        (HFCLIPVisionConfig, {"has_class_token": False}, "has_class_token=False: pool by 'average' or 'attention'"),
        (HFCLIPVisionConfig, {"projection_type": "conv"}, "projection_type='conv'.*'linear', 'mlp'"),
        (HFCLIPVisionConfig, {"patch_dropout": 1.0}, r"patch_dropout=1\.0.*0 <= p < 1"),
        (HFCLIPVisionConfig, {"image_size": 8, "patch_size": 16, "crops_remainder": True}, "set image_size=16"),
        (HFCLIPVisionConfig, {**RESNET, "stage_depths": [3, 4, 6]}, r"stage_depths=\[3, 4, 6\].*four stages"),
        (HFCLIPVisionConfig, {**RESNET, "stage_depths": None}, "stage_depths=None.*four stages"),
        (HFCLIPVisionConfig, {**RESNET, "stem_width": 63}, "stem_width=63 must be an even number"),
        (HFCLIPVisionConfig, {**RESNET, "hidden_size": 1024}, "hidden_size=1024.*set hidden_size=2048"),
        (HFCLIPVisionConfig, {**RESNET, "num_attention_heads": 3}, "hidden_size=2048.*num_attention_heads=3"),
        (HFCLIPVisionConfig, {**RESNET, "image_size": 300}, "image_size=300.*set image_size=288"),
        (HFCLIPVisionConfig, {"tower": "timm"}, "backbone=None.*timm's name"),
        (HFCLIPVisionConfig, {**CONVNET, "stage_widths": None}, "stage_widths=None.*lists of one length"),
        (HFCLIPVisionConfig, {**CONVNET, "stage_depths": [1]}, r"stage_depths=\[1\].*one length"),
        (HFCLIPVisionConfig, {**CONVNET, "stem_width": None}, "stem_width=None"),
        (HFCLIPVisionConfig, {**CONVNET, "stem_width": 0}, "stem_width=0.*1 or more"),
        (HFCLIPVisionConfig, {**CONVNET, "pool_grid": 0}, "pool_grid=0.*1 or more"),
        (HFCLIPVisionConfig, {**CONVNET, "norm_group_size": 0}, "norm_group_size=0.*1 or more"),
        (
            HFCLIPVisionConfig,
            {**CONVNET, "norm_group_size": 5},
            r"stage_widths=\[32, 48\].*multiples.*norm_group_size=5",
        ),
        (HFCLIPVisionConfig, {**CONVNET, "stage_depths": [1, -1]}, r"stage_depths=\[1, -1\].*1 or more"),
        (HFCLIPVisionConfig, {**CONVNET, "hidden_size": 32}, "hidden_size=32.*set hidden_size=48"),
        (HFCLIPVisionConfig, {**CONVNET, "image_size": 60}, "image_size=60.*multiple of 8.*set image_size=56"),
        (HFCLIPVisionConfig, {**CONVNET, "image_size": 8, "pool_grid": 2}, "pool_grid=2.*set image_size=16"),
    ],
)
def test_numbers_that_do_not_fit_say_how_to_fix_them(config_class, fields, message):
    # In a dual encoder too, where towers are dictionaries.
    for make in (lambda: config_class(**fields), lambda: HFCLIPConfig(**{config_class.base_config_key: fields})):
        with pytest.raises(ValueError) as caught:
            make()
        assert re.search(message, str(caught.value).replace("`", ""))


def test_types_are_strict():
    for fields in ({"hidden_size": "512"}, {"layer_norm_eps": "1e-5"}, {"num_hidden_layers": 2.5}):
        with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
            HFCLIPTextConfig(**fields)
    config = HFCLIPConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="projection_dim"):
        config.projection_dim = "wide"
    # A number of JSON may come as an integer where a fraction is meant.
    assert HFCLIPConfig(logit_scale_init_value=3, text_config={"attention_dropout": 0}).logit_scale_init_value == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_labels": 300_000_000}, "num_labels=300000000"),
        ({"text_config": {"num_hidden_layers": 1_000_000}}, "num_hidden_layers=1000000"),
        ({"vision_config": {"hidden_size": 10**9}}, "hidden_size=1000000000"),
        ({"vision_config": {"tower": "resnet", "stage_depths": [3, 10**6, 3, 3]}}, "stage_depths="),
        (
            {"text_config": {"tower": "transformers", "tower_config": {"model_type": "bert", "num_labels": 10**9}}},
            "num_labels=1000000000",
        ),
        ({"vision_config": {"tower": "timm", "backbone": "x", "backbone_kwargs": {"depth": 10**6}}}, "depth=1000000"),
        (
            {"vision_config": {"tower": "timm", "backbone": "x", "backbone_kwargs": {"checkpoint_path": "y"}}},
            "backbone_kwargs` have checkpoint_path, and may hold",
        ),
        (
            {"vision_config": {"tower": "timm", "backbone": "x", "backbone_kwargs": {"pretrained_cfg": {"url": "y"}}}},
            "backbone_kwargs` have pretrained_cfg, and may hold",
        ),
        ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value=nan"),
        ({"vision_config": {"layer_scale_init_value": float("inf")}}, "layer_scale_init_value=inf"),
        ({"text_config": {"attention_dropout": 1.5}}, "attention_dropout=1.5"),
    ],
)
def test_counts_beyond_any_model_and_numbers_that_are_none_are_refused_before_they_are_acted_on(
    fields, named, tmp_path
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hf_clip", **fields}))
    start = time.perf_counter()
    for make in (lambda: HFCLIPConfig(**fields), lambda: HFCLIPConfig.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=f"`{named}"):
            make()
    assert time.perf_counter() - start < 2


def test_counts_of_large_published_models_are_taken():
    HFCLIPConfig(num_labels=21_841, text_config={"vocab_size": 1_000_000}, vision_config={"num_hidden_layers": 100})


@pytest.mark.parametrize(
    "kind", [HFCLIPTextConfig, HFCLIPVisionConfig, HFCLIPConfig, HFCLIPSiglipConfig, HFCLIPCoCaConfig]
)
def test_every_field_is_explained(kind):
    texts = field_texts(sys.modules[kind.__module__])[kind.__name__]
    hints = inspect.get_annotations(kind)
    fields = {name for name, hint in hints.items() if "ClassVar" not in str(hint) and not name.startswith("_")}
    assert fields == set(texts)
    assert not [name for name, text in texts.items() if len(text.split()) < 3 or not text.endswith(".")]
