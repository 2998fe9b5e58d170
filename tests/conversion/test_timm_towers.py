"""OpenCLIP's models with a trunk of timm as image tower: all its configs are read, and come out as they went in."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertTokenizer

from hf_clip import HFCLIPConfig, HFCLIPModel, load
from hf_clip.conversion import ConversionError, convert, export_configs
from hf_clip.conversion.open_clip import config_from_model_cfg, layout_of_file, open_clip_rules, rules_of_layout
from hf_clip.conversion.rules import export_tensors, import_tensors
from hf_clip.model import configuration_hf_clip
from hf_clip.model.configuration_hf_clip import find_architecture
from hf_clip.model.modeling_timm_hf_clip import HFCLIPTimmModel
from tests.helpers.checkpoints import (
    CONTEXT_LENGTH,
    IMAGES,
    TEXTS,
    open_clip_config,
    unit_embeddings,
    write_open_clip_folder,
)
from tests.helpers.counts import soak_count
from tests.helpers.open_clip_configs import (
    FAMILIES,
    open_clip_model_cfg,
    open_clip_names,
    open_clip_on_meta,
    read_on_meta,
)
from tests.helpers.open_clip_folders import assert_like_open_clip, assert_near, assert_returns_to_open_clip
from tests.helpers.peers import load_open_clip, load_timm

pytestmark = pytest.mark.slow

COCA = ["coca_ViT-B-32", "coca_ViT-L-14", "coca_base", "coca_roberta-ViT-B-32"]
READ = [name for name in open_clip_names() if name not in COCA]
EXTREMES = [name for pair in FAMILIES.values() for name in pair]
WITH_TEXTS_OF_TRANSFORMERS = ["mt5-base-ViT-B-32", "nllb-clip-large-siglip", "roberta-ViT-B-32"]


def test_every_family_of_trunks_is_known_here():
    trunks = [name for name in READ if "timm_model_name" in open_clip_model_cfg(name)["vision_cfg"]]
    assert [name for name in trunks if "siglip" not in name.lower() and not name.startswith(tuple(FAMILIES))] == []
    assert len(READ) == 140 and set(EXTREMES) <= set(trunks)


@pytest.mark.parametrize("name", soak_count([*EXTREMES, *WITH_TEXTS_OF_TRANSFORMERS, "RN50", "ViT-g-14"], READ))
def test_a_config_gives_open_clips_own_tensors_and_comes_out_again(name, monkeypatch):
    """To the name and the shape of each, in both directions."""
    model_cfg = open_clip_model_cfg(name)
    config, ours = read_on_meta(model_cfg)
    theirs = open_clip_on_meta(model_cfg, monkeypatch)
    rules = rules_of_layout(layout_of_file(theirs, config))
    found = import_tensors(dict(theirs), rules, {key: tensor.shape for key, tensor in ours.items()})
    assert found.keys() == ours.keys()
    if config.text_config.tower == "transformers":
        return
    assert export_configs.missing_in_open_clip(config) == []
    back = export_tensors(ours, open_clip_rules(config))
    assert apart(back) == apart(theirs)
    written = export_configs.open_clip_model_cfg(config)["vision_cfg"]
    told = {key: value for key, value in model_cfg["vision_cfg"].items() if key.startswith("timm_")}
    assert {key: written.get(key) or None for key in told} == {key: value or None for key, value in told.items()}
    if config.vision_config.tower == "timm":
        assert HFCLIPConfig.from_architecture(f"open_clip/{name}").to_dict() == config.to_dict()


def apart(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of a text tower that is a module of its own as of one that is not."""
    return {name.removeprefix("text."): tuple(tensor.shape) for name, tensor in state.items()}


# OpenCLIP's name of one model of each kind, and what makes its trunk small.
EVA = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
STAGES = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 64)}
KINDS = {
    "convnext_tiny": {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64)},
    "convnext_large_d": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 64)},
    "ViTamin-S": {"img_size": 64, "depth": 2},
    "MobileCLIP-S1": STAGES,
    "MobileCLIP2-S3": {"layers": (1, 1, 1, 1, 1), "embed_dims": (16, 32, 64, 64, 64)},
    "MobileCLIP-B": {"img_size": 64, "depth": 1},
    "MobileCLIP2-L-14": {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "EVA01-g-14": {**EVA, "img_size": 56},
    "EVA02-B-16": EVA,
    "PE-Core-T-16-384": {**EVA, "attn_pool_num_heads": 3, "ref_feat_shape": (4, 4)},
    "vit_medium_patch16_gap_256": EVA,
    "vit_relpos_medium_patch16_cls_224": {**EVA, "num_heads": 4},
    "swin_base_patch4_window7_224": {
        "img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 7,
    },
}  # fmt: skip
IN_EVERY_TEST_RUN = ["convnext_tiny", "MobileCLIP-S1", "EVA02-B-16"]


def shrunk(monkeypatch, **options) -> None:
    """timm makes its trunks smaller than their names say, for both sides."""
    timm = load_timm()
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **options))
    load_open_clip()


def small_model_cfg(name: str, **vision) -> dict:
    """OpenCLIP's config `name` for small images, with a small text tower."""
    theirs = open_clip_model_cfg(name)
    sizes = {"image_size": KINDS[name].get("img_size", 64)} | vision
    masks = {"no_causal_mask": True} if theirs["text_cfg"].get("no_causal_mask") else {}
    return open_clip_config(text=masks, custom_text=True) | {"vision_cfg": theirs["vision_cfg"] | sizes}


@pytest.mark.parametrize("name", soak_count(IN_EVERY_TEST_RUN, list(KINDS)))
def test_embeddings_are_open_clips_in_and_out_again(name, tmp_path, monkeypatch):
    shrunk(monkeypatch, **KINDS[name])
    peer = write_open_clip_folder(tmp_path / "theirs", small_model_cfg(name))
    model, _ = assert_like_open_clip(tmp_path / "theirs", peer)
    assert model.config.vision_config.tower == "timm"
    assert_returns_to_open_clip(tmp_path / "theirs", peer, tmp_path)


# What stands behind a trunk, in OpenCLIP's words, on small trunks of timm's.
HEADS = {
    "linear with a bias": {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True},
    "mlp with a bias, dropped in training": {
        "timm_pool": "", "timm_proj": "mlp", "timm_proj_bias": True, "timm_drop": 0.3,
    },
    "attention with learned positions": {"timm_pool": "abs_attn", "timm_proj": ""},
    "attention with rotary positions, and a map": {"timm_pool": "rot_attn", "timm_proj": "linear", "timm_drop": 0.2},
    "its own classifier, paths dropped in training": {"timm_pool": "avg", "timm_proj": None, "timm_drop_path": 0.9},
    "pooling alone": {"timm_pool": "avg", "timm_proj": "none"},
}  # fmt: skip


@pytest.mark.parametrize("head", soak_count(list(HEADS)[1:3], list(HEADS)))
def test_what_stands_behind_a_trunk_is_open_clips(head, tmp_path):
    load_timm()
    vision = {"timm_model_name": "test_convnext", "image_size": 160, **HEADS[head]}
    dimensions = 64 if vision["timm_proj"] == "none" else 40
    model_cfg = open_clip_config(custom_text=True) | {"vision_cfg": vision, "embed_dim": dimensions}
    peer = write_open_clip_folder(tmp_path / "theirs", model_cfg)
    model, _ = assert_like_open_clip(tmp_path / "theirs", peer)
    assert_returns_to_open_clip(tmp_path / "theirs", peer, tmp_path)
    written = json.loads((tmp_path / "back/open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
    assert {name: written.get(name) or None for name in HEADS[head]} == {
        name: value or None for name, value in HEADS[head].items()
    }
    # As in training, where these layers drop.
    torch.manual_seed(0)
    pixel_values = torch.randn(2, 3, 160, 160)
    embeddings = [one.train().encode_image(pixel_values) for one in (peer, model, model)]
    drops = bool(vision.get("timm_drop") or vision.get("timm_drop_path"))
    assert torch.equal(embeddings[1], embeddings[2]) != drops
    assert drops or torch.allclose(torch.nn.functional.normalize(embeddings[0]), embeddings[1], atol=1e-5)


def test_the_fraction_that_training_drops_is_open_clips():
    load_timm()
    load_open_clip()
    from open_clip.timm_model import TimmModel

    for projection, layer in (("linear", "drop"), ("mlp", "mlp")):
        vision = {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": projection, "timm_drop": 0.25}
        config = config_from_model_cfg({"embed_dim": 40, "vision_cfg": vision, "text_cfg": {}})
        theirs = TimmModel("test_convnext", 40, pool="avg", proj=projection, drop=0.25).head
        dropout = getattr(theirs, layer)
        assert getattr(dropout, "p", None) or dropout.drop1.p == HFCLIPModel(config).visual_projection.dropout == 0.25
        assert projection == "linear" or dropout.drop2.p == 0


def test_a_text_tower_within_the_model_comes_from_open_clip_as_one_apart(tmp_path, monkeypatch):
    """OpenCLIP's ConvNeXts hold their text towers so; written again it is a module of its own."""
    shrunk(monkeypatch, **KINDS["convnext_tiny"])
    model_cfg = small_model_cfg("convnext_tiny") | {"custom_text": False}
    peer = write_open_clip_folder(tmp_path / "theirs", model_cfg)
    model, processor = assert_like_open_clip(tmp_path / "theirs", peer)
    convert(tmp_path / "theirs", to="open_clip", output_dir=tmp_path / "back")
    again = load_open_clip().create_model(f"local-dir:{tmp_path / 'back'}").eval()
    state = {name.removeprefix("text."): tensor for name, tensor in again.state_dict().items()}
    assert state.keys() == peer.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in peer.state_dict().items())


def test_attention_pooling_behind_a_trunk_of_siglips_is_no_siglip(tmp_path, monkeypatch):
    shrunk(monkeypatch, img_size=64, embed_dim=48, depth=2, num_heads=3)
    vision = {"image_size": 64, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}
    for projection in soak_count((None,), (None, "linear")):
        folder = tmp_path / str(projection)
        model_cfg = open_clip_config(custom_text=True) | {"vision_cfg": vision | {"timm_proj": projection}}
        folder.mkdir()
        peer = write_open_clip_folder(folder / "theirs", model_cfg)
        model, _ = assert_like_open_clip(folder / "theirs", peer)
        assert model.config.vision_config.tower == "timm"
        assert_returns_to_open_clip(folder / "theirs", peer, folder)


MOBILE = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear", "resize_mode": "squash"}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "longest"}


@pytest.mark.parametrize("settings", soak_count([MOBILE], [MOBILE, {}, HALF]))
def test_the_processor_does_what_open_clips_transform_is_told(settings, tmp_path):
    load_timm()
    vision = {"timm_model_name": "test_convnext", "image_size": 96}
    peer = write_open_clip_folder(
        tmp_path / "theirs", open_clip_config(custom_text=True) | {"vision_cfg": vision}, settings
    )
    _, processor = load(tmp_path / "theirs")
    told, images = peer.visual.preprocess_cfg, processor.image_processor
    assert list(images.image_mean) == list(told["mean"]) and list(images.image_std) == list(told["std"])
    assert images.resample == {"bicubic": 3, "bilinear": 2}[told["interpolation"]]
    edges = {"shortest": {"shortest_edge": 96}, "longest": {"longest_edge": 96}, "squash": {"height": 96, "width": 96}}
    assert {key: value for key, value in dict(images.size).items() if value} == edges[told["resize_mode"]]
    assert images.do_center_crop == (told["resize_mode"] != "squash") and told["size"] in (96, (96, 96))
    pixels = processor(images=IMAGES[0], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    extremes = torch.tensor([(value - told["mean"][0]) / told["std"][0] for value in (0.0, 1.0)])
    assert extremes[0] - 1e-5 <= pixels[:, 0].min() < pixels[:, 0].max() <= extremes[1] + 1e-5


def bert_folder(folder) -> BertTokenizer:
    """A small BERT's config, and its tokenizer of words."""
    words = sorted({word.lower() for text in TEXTS for word in text.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    sizes = {"hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 3}
    BertConfig(**sizes, vocab_size=len(vocabulary), max_position_embeddings=40).save_pretrained(folder)
    return BertTokenizer(vocab=vocabulary)


def test_a_folder_with_the_older_keys_of_biomedclip(tmp_path, monkeypatch):
    """A ViT of timm's and a BERT, whose head is named as OpenCLIP did first, and positions that BERTs once saved."""
    shrunk(monkeypatch, img_size=64, embed_dim=48, depth=2, num_heads=3)
    words = bert_folder(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "bert", "context_length": CONTEXT_LENGTH}
    head = {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    model_cfg = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": text | head}
    settings = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    peer = write_open_clip_folder(tmp_path / "theirs", model_cfg, settings, tokenizer=words)
    model, processor = assert_like_open_clip(tmp_path / "theirs", peer)

    older = {"proj": "mlp", "pooler_type": "cls_last_hidden_state_pooler"}
    file, weights = tmp_path / "theirs/open_clip_config.json", tmp_path / "theirs/open_clip_model.safetensors"
    file.write_text(json.dumps({"model_cfg": model_cfg | {"text_cfg": text | older}, "preprocess_cfg": settings}))
    positions = {"text.transformer.embeddings.position_ids": torch.arange(40)[None]}
    save_file(load_file(weights) | positions, weights)
    again, same = load(tmp_path / "theirs")
    assert again.config.to_dict() == model.config.to_dict()
    assert again.config.text_config.max_position_embeddings == CONTEXT_LENGTH
    inputs = same(images=IMAGES, text=TEXTS, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], processor(text=TEXTS, return_tensors="pt")["input_ids"])
    ids = load_open_clip().get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")(TEXTS)
    found = unit_embeddings(again, inputs["pixel_values"], inputs["input_ids"])
    assert_near(found, unit_embeddings(peer, inputs["pixel_values"], ids))

    both = json.dumps({"model_cfg": model_cfg | {"text_cfg": text | head | older | {"proj": "linear"}}})
    file.write_text(both)
    with pytest.raises(ConversionError, match="hf_proj_type='mlp', and another value under its older name proj"):
        load(tmp_path / "theirs")
    file.write_text(json.dumps({"model_cfg": open_clip_config(text={"proj": "mlp"})}))
    with pytest.raises(ConversionError, match="text_cfg has proj='mlp'"):
        load(tmp_path / "theirs")


RESIZED = ["EVA02-B-16", "PE-Core-T-16-384", "ViTamin-S", "convnext_tiny", "MobileCLIP-S1"]


@pytest.mark.parametrize("name", soak_count(RESIZED[:1], RESIZED))
def test_another_image_size_is_what_open_clip_makes_of_it(name, tmp_path, monkeypatch):
    options = {key: value for key, value in KINDS[name].items() if key != "img_size"}
    made_for = {"img_size": 64} if "img_size" in KINDS[name] else {}
    timm = load_timm()
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **given: create(*args, **{**made_for, **options, **given}))
    load_open_clip()
    write_open_clip_folder(tmp_path / "theirs", small_model_cfg(name))
    peer = load_open_clip().create_model(f"local-dir:{tmp_path / 'theirs'}", force_image_size=96).eval()
    model, processor = load(tmp_path / "theirs", image_size=96)
    pixel_values = processor(images=IMAGES, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape[-1] == 96 == model.config.vision_config.image_size
    embeddings = model.encode_image(pixel_values)
    assert_near([embeddings], [torch.nn.functional.normalize(peer.encode_image(pixel_values))])
    model.save_pretrained(tmp_path / "ours")
    assert_near([HFCLIPModel.from_pretrained(tmp_path / "ours").encode_image(pixel_values)], [embeddings])
    if made_for:
        with pytest.raises(ConversionError, match=r"OpenCLIP cannot express.*backbone_kwargs\['img_size'\]=96"):
            export_configs_of(model)


def export_configs_of(model: HFCLIPModel) -> None:
    """Raises what a conversion to OpenCLIP's format would."""
    if missing := export_configs.missing_in_open_clip(model.config):
        raise ConversionError(f"OpenCLIP cannot express this model. It lacks: {'; '.join(missing)}.")


def test_a_trunk_that_keeps_its_size_says_so(tmp_path):
    load_timm()
    for name in ("levit_128s", *soak_count((), ("swin_base_patch4_window7_224",))):
        with torch.device("meta"):
            trunk = config_from_model_cfg(model_cfg_of(name))
            model = HFCLIPModel(trunk)
        with pytest.raises(ValueError, match=f"`image_size=256`: timm's {name} keeps its 224"):
            model.set_image_size(256)
    with torch.device("meta"):
        convnet = HFCLIPModel(config_from_model_cfg(model_cfg_of("test_convnext")))
    with pytest.raises(ValueError, match="`image_size=31` is below 32, the least that this trunk takes"):
        convnet.set_image_size(31)


def model_cfg_of(name: str, **vision) -> dict:
    return {"embed_dim": 40, "vision_cfg": {"timm_model_name": name, **vision}, "text_cfg": {}}


WRONG = {
    "a name that is none": (
        {"timm_model_name": "convnext_bas"},
        "'convnext_bas'` is no model of timm .*convnext_base",
    ),
    "a schema of timm's": ({"timm_model_name": "hf-hub:some/model"}, "is no model of timm"),
    "no pooling": ({"timm_pool": "", "timm_proj": None}, "pools nothing: it has no embedding"),
    "a pooling of timm's alone": ({"timm_pool": "avgmax"}, "timm_pool='avgmax' has no counterpart here: avg, token"),
    "a projection that is none": ({"timm_proj": "cubic"}, "timm_proj='cubic' is not known"),
    "a class token of a convnet's": ({"timm_pool": "token"}, "test_convnext cannot "),
    "a map of a ViT's": (
        {"timm_model_name": "test_vit", "timm_pool": "abs_attn", "timm_proj": ""},
        "pools a map, and test_vit gives no map",
    ),
    "dropped patches of a convnet's": ({"patch_dropout": 0.5}, "test_convnext cannot be made with .*patch_drop_rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_open_clip_could_not_build_is_one_line(case, tmp_path):
    load_timm()
    vision, message = WRONG[case]
    cfg = model_cfg_of("test_convnext") | {"vision_cfg": {"timm_model_name": "test_convnext", **vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    save_file({"visual.trunk.stem.0.weight": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ConversionError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


OURS_ALONE = {
    "widths of its own": {"backbone_kwargs": {"dims": [16, 32, 64, 64]}},
    "no projection": {"projection_type": "none", "projection_dim": 64},
    "a classifier and a projection": {"backbone_kwargs": {"num_classes": 40, "global_pool": "avg"}},
}


@pytest.mark.parametrize("case", OURS_ALONE)
def test_what_open_clip_has_no_key_for_is_said(case):
    fields = {
        "tower": "timm",
        "backbone": "test_convnext",
        "hidden_size": 64,
        "pooling": "pooler",
        "projection_dim": 40,
    }
    fields |= OURS_ALONE[case]
    config = HFCLIPConfig(vision_config=fields, projection_dim=fields["projection_dim"])
    (missing,) = export_configs.missing_in_open_clip(config)
    assert "timm" in missing or "backbone_kwargs" in missing


def test_a_trunk_is_not_drawn_for_the_tables_that_no_file_holds(tmp_path, monkeypatch):
    """Loading a model of billions would take as long as making it, and twice its memory."""
    shrunk(monkeypatch, **EVA)
    write_open_clip_folder(tmp_path / "theirs", small_model_cfg("EVA02-B-16"))
    model, processor = load(tmp_path / "theirs")
    made = []
    trunk_of = HFCLIPTimmModel.__init__.__globals__["make_trunk"]

    def counted(config, *args):
        trunk = trunk_of(config, *args)
        made.append(next(trunk.parameters()).is_meta)
        return trunk

    monkeypatch.setitem(HFCLIPTimmModel.__init__.__globals__, "make_trunk", counted)
    again, _ = load(tmp_path / "theirs")
    assert made and all(made)
    rope = again.vision_model.trunk.rope
    assert any(buffer.abs().sum() > 0 for buffer in rope.buffers())
    for one, other in zip(again.vision_model.buffers(), model.vision_model.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_bare_state_dict_is_named_and_candidates_are_told(tmp_path, monkeypatch):
    """Shapes tell neither the resolution of a convnet nor the activation of the text tower."""
    load_timm()
    text = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    convnet = {"tower": "timm", "backbone": "test_convnext", "backbone_kwargs": {"drop_path_rate": 0.1}}
    convnet |= {"hidden_size": 64, "pooling": "pooler", "projection_type": "mlp"}
    vit = convnet | {"backbone": "test_vit", "backbone_kwargs": {"num_classes": 40}, "projection_type": "none"}
    further = {name: find_architecture("convnext_large_d")[name] for name in ("preprocessing", "tokenizer")}
    known = {
        name: {"name": name, "aliases": [f"open_clip/{name}"], "config": {"projection_dim": 40}, **further}
        for name in ("small_d", "small_d_320", "small_vit")
    }
    for name, vision, size in (("small_d", convnet, 256), ("small_d_320", convnet, 320), ("small_vit", vit, 160)):
        known[name]["config"] |= {"text_config": text | {"hidden_act": "gelu"}}
        known[name]["config"] |= {"vision_config": vision | {"image_size": size, "hidden_act": "gelu"}}
    monkeypatch.setattr(configuration_hf_clip, "read_architectures", lambda: json.loads(json.dumps(known)))

    bare = tmp_path / "bare.pt"
    for name in ("small_d", "small_vit"):
        config = HFCLIPConfig.from_architecture(name)
        torch.save(export_tensors(HFCLIPModel(config).state_dict(), open_clip_rules(config)), tmp_path / f"{name}.pt")
    two = r"several architectures.*pass `architecture=small_d` \(gelu\) or `architecture=small_d_320` \(gelu\)\."
    for options in ({}, {"hidden_act": "gelu"}):
        with pytest.raises(ConversionError, match=two):
            load(tmp_path / "small_d.pt", **options)
    model, processor = load(tmp_path / "small_d.pt", architecture="open_clip/small_d_320")
    assert model.config.vision_config.backbone == "test_convnext" and model.config.vision_config.image_size == 320
    assert dict(processor.image_processor.crop_size)["height"] == 320
    with pytest.raises(ConversionError, match=r"do not tell the activation: pass `architecture=small_vit` \(gelu\)"):
        load(tmp_path / "small_vit.pt")
    assert load(tmp_path / "small_vit.pt", hidden_act="gelu")[0].config.vision_config.backbone == "test_vit"
    state = torch.load(tmp_path / "small_vit.pt")
    state["visual.trunk.norm.weight"] = torch.ones(7)
    torch.save(state, bare)
    with pytest.raises(ConversionError, match=r"no known architecture \(a trunk of timm of \d+ tensors; text tower"):
        load(bare)
