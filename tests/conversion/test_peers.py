"""Checkpoints of every kind and knob, against the code that they come from, in and out.

Small random models, made and run by the peer: its embeddings, its token ids and its pixel values are what ours must
be.
"""

import functools
import importlib.util
import sys

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, SiglipConfig, SiglipModel, XLMRobertaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import is_torchvision_available

from hf_clip.conversion import convert, load, open_clip
from tests.helpers.checkpoints import (
    CONTEXT_LENGTH,
    IMAGES,
    TEXTS,
    open_clip_config,
    openai_model,
    openai_state,
    randomize,
    small_clip_tokenizer,
    tokenizer,
    unit_embeddings,
    write_open_clip_folder,
)
from tests.helpers.counts import soak_count
from tests.helpers.open_clip_folders import assert_like_open_clip, assert_near, assert_returns_to_open_clip
from tests.helpers.peers import load_open_clip, load_openai_module, load_openai_tokenize, load_timm
from tools.make_golden_pixels import GOLDEN, SIZE, TRANSFORMS, image_of

RESNET = {"layers": [1, 2, 1, 1], "width": 8, "head_width": 64, "patch_size": None, "image_size": 64}

TANH = {"act_kwargs": {"approximate": "tanh"}}

# What differs from a plain ViT, in OpenCLIP's words.
OPEN_CLIP_KNOBS = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.1}, "text": {"ls_init_value": 0.2}},
    "head width, mlp ratio": {"vision": {"head_width": 16, "mlp_ratio": 2.6}, "text": {"mlp_ratio": 3.7362}},
    "no pre-norm": {"vision": {"no_ln_pre": True}},
    "average, then norm": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "norm, then average": {"vision": {"pool_type": "avg"}},
    "gelu by tanh": {
        "vision": {"act_kwargs": {"approximate": "tanh"}},
        "text": {"act_kwargs": {"approximate": "tanh"}},
    },
    "eps": {"vision": {"norm_kwargs": {"eps": 1e-3}}, "text": {"norm_kwargs": {"eps": 1e-2}}},
    "patch dropout": {"vision": {"patch_dropout": 0.5}},
    "patches that leave a rest": {"vision": {"patch_size": 7}},
    "first token": {"text": {"pool_type": "first", "no_causal_mask": True}},
    "last token, no mask": {"text": {"pool_type": "last", "no_causal_mask": True}},
    "a token by its id": {"text": {"pool_type": "eos", "eos_id": len(tokenizer()) - 2}},
    "bias of the text projection": {"text": {"proj_bias": True}},
    "no text projection": {"text": {"proj_type": "none", "width": 40, "heads": 2}},
    "sigmoid": {"init_logit_bias": -10, "custom_text": True},
    "CLIPA": {
        "vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text": {"pool_type": "last", "no_causal_mask": True},
    },
    "ResNet": {"vision": RESNET},
    "ResNet of other heads": {"vision": RESNET | {"head_width": 32}, "quick_gelu": True},
}


# Those that need a model to themselves, and the others at once; each by itself under `make soak`.
_APART = ("plain", "norm, then average", "a token by its id", "no text projection", "CLIPA", "ResNet of other heads")
_AT_ONCE = {
    "quick_gelu": True,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision": {
        **{"ls_init_value": 0.1, "head_width": 16, "mlp_ratio": 2.6, "no_ln_pre": True, "pool_type": "avg"},
        **{"final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-3}, "patch_dropout": 0.5, "patch_size": 7},
    },
    "text": {
        **{"ls_init_value": 0.2, "mlp_ratio": 3.7362, "norm_kwargs": {"eps": 1e-2}, "pool_type": "last"},
        **{"no_causal_mask": True, "proj_bias": True},
    },
}
_FEWER = {name: OPEN_CLIP_KNOBS[name] for name in _APART} | {"the others at once": _AT_ONCE}


@pytest.fixture(params=soak_count(_FEWER, _FEWER | OPEN_CLIP_KNOBS).items(), ids=lambda named: named[0])
def open_clip_folder(request, tmp_path):
    """A folder, and OpenCLIP's model of it."""
    model_cfg = open_clip_config(**request.param[1])
    return tmp_path / "theirs", write_open_clip_folder(tmp_path / "theirs", model_cfg)


def test_open_clip_in_out_and_in_again(open_clip_folder, tmp_path):
    folder, peer = open_clip_folder
    assert_like_open_clip(folder, peer)
    assert_returns_to_open_clip(folder, peer, tmp_path)


SIGLIP_NAMES = ["vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256"]


@pytest.mark.parametrize("name", SIGLIP_NAMES)
def test_open_clip_siglip_in_out_and_in_again(name, tmp_path, monkeypatch):
    """timm's own towers, narrower than their names say, here as there."""
    load_timm()
    trunk = load_open_clip().timm_model.timm
    narrow = functools.partial(trunk.create_model, embed_dim=48, depth=2, num_heads=3)
    monkeypatch.setattr(trunk, "create_model", narrow)
    monkeypatch.setitem(open_clip._SIGLIP_SIZES, "base", (48, 2, 3, 4.0))
    image_size = int(name[-3:])
    vision = {"image_size": image_size, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    model_cfg = open_clip_config(text=text, init_logit_bias=-10, custom_text=True) | {"embed_dim": 48}
    peer = write_open_clip_folder(tmp_path / "theirs", model_cfg | {"vision_cfg": vision})
    model, _ = assert_like_open_clip(tmp_path / "theirs", peer)
    assert model.logit_bias.item() == peer.logit_bias.item()
    assert_returns_to_open_clip(tmp_path / "theirs", peer, tmp_path)


TEXT_TOWERS = {
    "mean, mlp": {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"},
    "pooler, linear": {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"},
    "first, linear": {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "linear"},
}


@pytest.mark.parametrize("knobs", TEXT_TOWERS)
def test_open_clip_with_a_text_tower_of_transformers(knobs, tmp_path):
    # The padding must not be the end token, which the model would leave out with it.
    tokens = tokenizer(pad_token="!")
    size = {"vocab_size": len(tokens), "max_position_embeddings": 40, "pad_token_id": tokens.pad_token_id}
    XLMRobertaConfig(**TINY, **size).save_pretrained(tmp_path / "roberta")
    text = {"hf_model_name": str(tmp_path / "roberta"), "hf_tokenizer_name": "small", **TEXT_TOWERS[knobs]}
    model_cfg = open_clip_config() | {"text_cfg": text | {"context_length": CONTEXT_LENGTH}}
    peer = write_open_clip_folder(tmp_path / "theirs", model_cfg, tokenizer=tokens)
    assert_like_open_clip(tmp_path / "theirs", peer)


TINY = {"hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 3}
IMAGE = {"image_size": 32, "patch_size": 8}
TRANSFORMERS_KNOBS = {
    "plain": {},
    "gelu, eps": {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
    "gelu by tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "eos_token_id 2": {"eos_token_id": 2},
    "patches that leave a rest": {"patch_size": 7},
}


def clip_of_transformers(knobs: dict) -> CLIPModel:
    ids = {"vocab_size": len(tokenizer()), "max_position_embeddings": CONTEXT_LENGTH}
    ids |= {"bos_token_id": tokenizer().bos_token_id, "eos_token_id": tokenizer().eos_token_id}
    text, vision = TINY | ids | knobs, TINY | IMAGE | knobs
    return randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=40)))


def processor_of_transformers() -> CLIPProcessor:
    return CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), small_clip_tokenizer())


def embeddings_in_transformers(peer, pixel_values, input_ids):
    with torch.no_grad():
        output = peer(input_ids=input_ids, pixel_values=pixel_values)
    return output.image_embeds, output.text_embeds


@pytest.mark.parametrize("knobs", TRANSFORMERS_KNOBS)
def test_transformers_clip_in_out_and_in_again(knobs, tmp_path):
    peer, theirs = clip_of_transformers(TRANSFORMERS_KNOBS[knobs]), processor_of_transformers()
    peer.save_pretrained(tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs")
    texts = TEXTS[:3]
    inputs = processor(images=IMAGES[:1], text=texts, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], theirs(text=texts, padding=True, return_tensors="pt")["input_ids"])
    assert torch.equal(inputs["pixel_values"], theirs(images=IMAGES[:1], return_tensors="pt")["pixel_values"])
    embeddings = embeddings_in_transformers(peer, inputs["pixel_values"], inputs["input_ids"])
    assert_near(unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), embeddings)

    convert(tmp_path / "theirs", to="hf_clip", output_dir=tmp_path / "ours")
    convert(tmp_path / "ours", to="transformers", output_dir=tmp_path / "back")
    again = CLIPModel.from_pretrained(tmp_path / "back")
    assert same_tensors(again.state_dict(), peer.state_dict())
    assert_near(embeddings_in_transformers(again.eval(), inputs["pixel_values"], inputs["input_ids"]), embeddings)
    returned = CLIPProcessor.from_pretrained(tmp_path / "back")
    assert returned(text=texts, padding=True)["input_ids"] == theirs(text=texts, padding=True)["input_ids"]
    pixel_values = returned(images=IMAGES, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values, theirs(images=IMAGES, return_tensors="pt")["pixel_values"])


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_transformers_siglip_in_out_and_in_again(activation, tmp_path):
    text = TINY | {"vocab_size": len(tokenizer()), "max_position_embeddings": CONTEXT_LENGTH, "hidden_act": activation}
    vision = TINY | IMAGE | {"hidden_act": activation}
    text |= {"bos_token_id": tokenizer().bos_token_id, "eos_token_id": tokenizer().eos_token_id}
    peer = randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    peer.save_pretrained(tmp_path / "theirs")
    processor_of_transformers().save_pretrained(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs")
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    assert inputs["input_ids"].shape == (len(TEXTS), CONTEXT_LENGTH)
    embeddings = embeddings_in_transformers(peer, inputs["pixel_values"], inputs["input_ids"])
    assert_near(unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), embeddings)

    convert(tmp_path / "theirs", to="hf_clip", output_dir=tmp_path / "ours")
    convert(tmp_path / "ours", to="transformers", output_dir=tmp_path / "back", verify=True)
    again = SiglipModel.from_pretrained(tmp_path / "back")
    assert same_tensors(again.state_dict(), peer.state_dict())


OPENAI_SHAPES = {
    "ViT": {},
    "ResNet": {"vision_layers": (1, 2, 1, 1), "vision_width": 8, "vision_patch_size": None, "image_resolution": 64},
}


@pytest.mark.parametrize("shape", OPENAI_SHAPES)
def test_openai_in_out_and_in_again(shape, tmp_path):
    peer = openai_model(**OPENAI_SHAPES[shape])
    torch.save(openai_state(peer), tmp_path / "theirs.pt")
    model, processor = load(tmp_path / "theirs.pt")
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    tokenize = load_openai_tokenize()
    for ids, text in zip(inputs["input_ids"].tolist(), TEXTS, strict=True):
        expected = tokenize(text)
        assert ids[: len(expected)] == expected
    embeddings = unit_embeddings(peer.float(), inputs["pixel_values"], with_openais_padding(inputs["input_ids"]))
    assert_near(unit_embeddings(model.float(), inputs["pixel_values"], inputs["input_ids"]), embeddings)

    convert(tmp_path / "theirs.pt", to="hf_clip", output_dir=tmp_path / "ours")
    convert(tmp_path / "ours", to="openai", output_dir=tmp_path / "back")
    before, after = (
        torch.load(file, weights_only=True) for file in (tmp_path / "theirs.pt", tmp_path / "back/model.pt")
    )
    assert same_tensors(before, after)
    assert all(before[name].dtype == after[name].dtype for name in before)
    again = load_openai_module("model").build_model(after).float()
    assert_near(unit_embeddings(again, inputs["pixel_values"], with_openais_padding(inputs["input_ids"])), embeddings)


def test_a_ring_through_every_format_loses_no_bit(tmp_path):
    """OpenAI's, transformers', OpenCLIP's, ours, and OpenAI's again; half precision where a format has it."""
    state = openai_state(openai_model())
    torch.save(state, tmp_path / "theirs.pt")
    convert(tmp_path / "theirs.pt", to="transformers", output_dir=tmp_path / "transformers")
    convert(tmp_path / "transformers", to="open_clip", output_dir=tmp_path / "open_clip", dtype="float32")
    convert(tmp_path / "open_clip", to="hf_clip", output_dir=tmp_path / "hf_clip")
    convert(tmp_path / "hf_clip", to="openai", output_dir=tmp_path / "openai")
    after = torch.load(tmp_path / "openai/model.pt", weights_only=True)
    assert same_tensors(state, after) and all(state[name].dtype == after[name].dtype for name in state)


FULL_SIZES = {
    "ViT-B/32": {"image_resolution": 224, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 32},
    "RN50": {"image_resolution": 224, "vision_layers": (3, 4, 6, 3), "vision_width": 64, "vision_patch_size": None},
}


@pytest.mark.skipif(not soak_count(0, 1), reason="full sizes are for make soak")
@pytest.mark.parametrize("name", FULL_SIZES)
def test_full_sizes(name, tmp_path):
    module = load_openai_module("model")
    text = {"context_length": 77, "vocab_size": 49408, "transformer_width": 512, "transformer_heads": 8}
    embed_dim = {"ViT-B/32": 512, "RN50": 1024}[name]
    peer = randomize(module.CLIP(embed_dim=embed_dim, **FULL_SIZES[name], **text, transformer_layers=12))
    module.convert_weights(peer)
    torch.save(openai_state(peer), tmp_path / "theirs.pt")
    model, processor = load(tmp_path / "theirs.pt")
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    embeddings = unit_embeddings(peer.float(), inputs["pixel_values"], with_openais_padding(inputs["input_ids"]))
    assert_near(unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), embeddings)
    convert(tmp_path / "theirs.pt", to="open_clip", output_dir=tmp_path / "open_clip", verify=True)
    convert(tmp_path / "open_clip", to="openai", output_dir=tmp_path / "back", verify=True)
    module.convert_weights(peer)
    assert same_tensors(openai_state(peer), torch.load(tmp_path / "back/model.pt", weights_only=True))


def with_openais_padding(input_ids: torch.Tensor) -> torch.Tensor:
    """Zeros behind the first end token, to the context length."""
    until_end = (input_ids == 49407).cumsum(dim=-1).cumsum(dim=-1) <= 1
    return torch.nn.functional.pad(input_ids * until_end, (0, 77 - input_ids.shape[-1]))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_pixel_values_are_torchvisions(transform, tmp_path):
    """Golden values of torchvision's own code, bit for bit, with the processor that `load` makes of the settings."""
    settings = TRANSFORMS[transform]
    if settings is None:
        torch.save(openai_state(openai_model(image_resolution=SIZE, vision_patch_size=7)), tmp_path / "theirs")
        _, processor = load(tmp_path / "theirs")
    else:
        model_cfg = open_clip_config(vision={"image_size": SIZE, "patch_size": 7})
        peer = write_open_clip_folder(tmp_path / "theirs", model_cfg, settings)
        _, processor = load(tmp_path / "theirs")
        assert_returns_to_open_clip(tmp_path / "theirs", peer, tmp_path)
    golden = np.load(GOLDEN)
    for name in [name for name in golden if name.startswith(f"{transform}/")]:
        width, height, mode = name.split("/")[1].split("x")
        image = image_of(int(width), int(height), mode)
        assert np.array_equal(processor(images=image, return_tensors="np")["pixel_values"][0], golden[name]), name


def test_the_stub_of_torchvision_stays_within_the_peers():
    load_open_clip()
    assert not is_torchvision_available() or importlib.util.find_spec("torchvision") is not None
    assert ("torchvision" in sys.modules) == is_torchvision_available()
