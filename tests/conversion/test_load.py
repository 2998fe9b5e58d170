"""`load`: every format found by looking, all that must agree with the model, and errors that say what to pass.

The embeddings of the formats' own code are compared in test_conversion_peers.py; here are the forms that checkpoints
come in, and what they do not say.
"""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import BertProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPSiglipModel,
    HFCLIPTokenizer,
    load,
)
from hf_clip.conversion import ConversionError, locating, open_clip
from hf_clip.conversion import infer_config as shapes
from hf_clip.conversion.openai import openai_rules
from hf_clip.conversion.rules import export_tensors
from hf_clip.model.configuration_hf_clip import list_architectures
from hf_clip.model.tokenization_hf_clip import canonicalize_text, clean_whitespace
from tests.helpers.checkpoints import (
    IMAGES,
    TEXTS,
    Scripted,
    open_clip_config,
    openai_model,
    randomize,
    small_clip_tokenizer,
    tokenizer,
    unit_embeddings,
    write_open_clip_folder,
)
from tests.helpers.counts import soak_count
from tests.helpers.mock_hub import running_hub
from tests.helpers.peers import load_open_clip, load_timm
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import printed_words

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


def assert_near(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= TOLERANCE


def embeddings(model, processor):
    inputs = processor(images=IMAGES[:1], text=TEXTS, return_tensors="pt")
    return unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"])


def openai_numbers(size: int) -> dict[str, torch.Tensor]:
    return {
        "input_resolution": torch.tensor(size),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }


RESNET = {"vision_layers": (1, 2, 1, 1), "vision_width": 8, "vision_patch_size": None, "image_resolution": 64}


@pytest.mark.slow
@pytest.mark.parametrize("vision", [{}, RESNET], ids=["ViT", "ResNet"])
@pytest.mark.parametrize("container", ["torchscript", "torch"])
def test_openais_archives_need_no_word(vision, container, tmp_path, caplog):
    peer = openai_model(**vision)
    state = peer.state_dict() | openai_numbers(vision.get("image_resolution", 32))
    # The name says nothing: neither of the kind nor of the architecture.
    file = tmp_path / "weights.safetensors"
    if container == "torchscript":
        torch.jit.save(torch.jit.script(Scripted(state)), file)
    else:
        torch.save(state, file)
    with caplog.at_level(logging.INFO, "hf_clip.conversion"):
        model, processor = load(file)
    assert "OpenAI's" in caplog.text and "float32" in caplog.text
    assert model.source_format == "openai" and not model.training
    # The archive mixes half and single precision; single holds both.
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.text_config.hidden_act == model.config.vision_config.hidden_act == "quick_gelu"
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    padded = torch.nn.functional.pad(inputs["input_ids"], (0, 77 - inputs["input_ids"].shape[1]))
    assert_near(
        unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]),
        unit_embeddings(peer.float(), inputs["pixel_values"], padded),
    )
    with pytest.raises(ValueError, match="`hidden_act=gelu` contradicts .* has quick_gelu: drop it"):
        load(file, hidden_act="gelu")


@pytest.mark.slow
def test_what_a_state_dict_does_not_say_must_be_said(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    torch.save(openai_model().state_dict(), file)
    with pytest.raises(ConversionError, match="no known architecture.*`config`"):
        load(file, hidden_act="quick_gelu")
    said, _ = load(file, source_format="openai")
    whole, _ = load(file, config=said.config)
    assert embeddings_equal(said, whole)
    known = {
        name: {"name": name, "aliases": aliases, "config": shape_of(said.config, activation)}
        | {"preprocessing": {"resize_mode": "squash"}, "tokenizer": {"name": "clip"}}
        for name, aliases, activation in [
            ("Small/8", ["openai/Small/8", "open_clip/Small-8-quickgelu"], "quick_gelu"),
            ("Small-8-gelu", ["open_clip/Small-8"], "gelu"),
        ]
    }
    monkeypatch.setattr(
        "hf_clip.model.configuration_hf_clip.read_architectures", lambda: json.loads(json.dumps(known))
    )
    with pytest.raises(
        ConversionError,
        match=r"activation: pass `architecture=openai/Small/8` \(quick_gelu\) or "
        r"`architecture=Small-8-gelu` \(gelu\), or `hidden_act=",
    ) as error:
        load(file)
    # What is proposed is accepted.
    for name in re.findall("`architecture=(.+?)`", str(error.value)):
        assert load(file, architecture=name)[0].config.vision_config.hidden_act in ("quick_gelu", "gelu")
    model, processor = load(file, hidden_act="gelu")
    assert model.config.text_config.hidden_act == model.config.vision_config.hidden_act == "gelu"
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert embeddings_equal(load(file, architecture="openai/Small/8", hidden_act="gelu")[0], model)
    with pytest.raises(ConversionError, match="quick_gelu with OpenAI and gelu with OpenCLIP"):
        load(file, architecture="Small-8")
    assert load(file, architecture="open_clip/Small-8")[0].config.vision_config.hidden_act == "gelu"
    other = json.loads(json.dumps(known["Small/8"])) | {"name": "Other", "aliases": []}
    other["config"]["text_config"]["num_attention_heads"] = 4
    known["Other"] = other
    with pytest.raises(ConversionError, match="several architectures.*=openai/Small/8`.*=Other`"):
        load(file, hidden_act="quick_gelu")
    longer = json.loads(json.dumps(known["Small/8"])) | {"name": "Longer", "aliases": []}
    longer["config"]["vision_config"]["num_hidden_layers"] = 3
    known["Longer"] = longer
    with pytest.raises(ConversionError, match="is not of `architecture=Longer`, but holds a ViT of 2 layers, width"):
        load(file, architecture="Longer")
    with pytest.raises(ValueError, match="`source_format=mine`"):
        load(file, source_format="mine")
    with pytest.raises(ValueError, match="leave one out"):
        load(file, architecture="Other", config=said.config)


def embeddings_equal(one, other) -> bool:
    pixel_values, input_ids = torch.ones(1, 3, 32, 32), torch.tensor([[49406, 320, 49407]])
    pairs = zip(
        unit_embeddings(one, pixel_values, input_ids), unit_embeddings(other, pixel_values, input_ids), strict=True
    )
    return all(torch.equal(*pair) for pair in pairs)


def shape_of(config: HFCLIPConfig, activation: str) -> dict:
    keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    towers = {
        "text_config": (*keep, "vocab_size", "max_position_embeddings"),
        "vision_config": (*keep, "image_size", "patch_size"),
    }
    fields = {
        name: {key: getattr(getattr(config, name), key) for key in keys} | {"hidden_act": activation}
        for name, keys in towers.items()
    }
    return {"model_type": "hf_clip", "projection_dim": config.projection_dim, **fields}


@pytest.mark.slow
def test_shapes_tell_published_architectures_apart():
    """From the shapes alone, each is known again, up to its activation and to those that differ in nothing seen."""
    more = soak_count([], ["ViT-L/14@336px", "ViT-H-14-worldwide"])
    for name in ("RN50x4", "ViT-H-14-CLIPA", "ViT-B-16-SigLIP2", *more):
        config = HFCLIPConfig.from_architecture(name)
        with torch.device("meta"):
            model = (HFCLIPSiglipModel if "SigLIP" in name else HFCLIPModel)(config)
        seen = shapes.infer_shape({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
        found, again = shapes.match_architecture(seen, config.vision_config.hidden_act)
        assert again.vision_config.to_dict() == config.vision_config.to_dict(), (name, found)
        assert again.text_config.num_attention_heads == config.text_config.num_attention_heads


@pytest.fixture
def open_clip_folder(tmp_path):
    return tmp_path / "theirs", write_open_clip_folder(tmp_path / "theirs", open_clip_config())


def test_open_clip_training_checkpoint(open_clip_folder, tmp_path):
    """epoch_K.pt: beside the weights, with prefixes of DistributedDataParallel, stand optimizer, epoch and name."""
    folder, peer = open_clip_folder
    expected, processor = load(folder)
    optimizer = torch.optim.AdamW(peer.parameters())
    state = {f"module.{name}": tensor for name, tensor in peer.state_dict().items()}
    saved = {"epoch": 7, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict(), "scaler": None}
    torch.save(saved, tmp_path / "epoch_7.pt")
    model, again = load(tmp_path / "epoch_7.pt", config=expected.config, tokenizer=folder)
    assert model.source_format == "open_clip"
    assert_near(embeddings(model, again), embeddings(expected, processor))


@pytest.mark.parametrize("form", ["bin", "shards", "only file"])
def test_open_clip_folders_of_other_forms(form, open_clip_folder):
    folder, _ = open_clip_folder
    expected = embeddings(*load(folder))
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    if form == "bin":
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    elif form == "only file":
        save_file(state, folder / "mine.safetensors")
    else:
        shards = {name: f"open_clip_model-0000{1 + name.startswith('visual')}-of-00002.safetensors" for name in state}
        for shard in set(shards.values()):
            save_file({name: state[name] for name in state if shards[name] == shard}, folder / shard)
        index = {"metadata": {}, "weight_map": shards}
        (folder / "open_clip_model.safetensors.index.json").write_text(json.dumps(index))
    found = embeddings(*load(f"local-dir:{folder}"))
    assert_near(found, expected)
    if form == "only file":
        shutil.copy(folder / "mine.safetensors", folder / "other.bin")
        with pytest.raises(ConversionError, match="2 files of weights.*mine.safetensors, other.bin"):
            load(folder)


def test_custom_text_layout_of_a_plain_clip(tmp_path):
    """OpenCLIP's CustomTextCLIP: the same towers, the text's tensors under `text.`."""
    plain = write_open_clip_folder(tmp_path / "plain", open_clip_config())
    apart = write_open_clip_folder(tmp_path / "apart", open_clip_config(custom_text=True))
    for name, tensor in plain.state_dict().items():
        other = name if name.startswith(("visual.", "logit_")) else f"text.{name}"
        apart.state_dict()[other].copy_(tensor)
    save_file(apart.state_dict(), tmp_path / "apart/open_clip_model.safetensors")
    assert_near(embeddings(*load(tmp_path / "apart")), embeddings(*load(tmp_path / "plain")))


SIGLIP_TEXT = {
    "context_length": 16, "vocab_size": 560, "width": 48, "heads": 3, "layers": 2, "no_causal_mask": True,
    "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "hf_tokenizer_name": "timm/small",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}  # fmt: skip


def siglip_folder(folder: Path, monkeypatch) -> torch.nn.Module:
    """OpenCLIP's SigLIP with a trunk that is timm's class in a small shape; returns its two towers."""
    timm, peer = load_timm(), load_open_clip()
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    options = {key: SIGLIP_TEXT[key] for key in SIGLIP_TEXT if not key.startswith(("hf_", "tokenizer", "norm"))}
    norm = torch.nn.LayerNorm
    text = peer.transformer.TextTransformer(**options, output_dim=48, norm_layer=lambda width: norm(width, eps=1e-6))
    model = torch.nn.ModuleDict({"visual": torch.nn.ModuleDict({"trunk": trunk}), "text": text})
    randomize(model)
    monkeypatch.setitem(open_clip._SIGLIP_SIZES, "base", (48, 2, 3, 4.0))
    vision = {"timm_model_name": "vit_base_patch8_siglip_32", "timm_pool": "map", "timm_proj": "none"}
    config = {
        "model_cfg": {
            "embed_dim": 48, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": SIGLIP_TEXT
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    }  # fmt: skip
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    scale = {"logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor(-9.0)}
    save_file(model.state_dict() | scale, folder / "open_clip_model.safetensors")
    words().save_pretrained(folder)
    return model


def words(end: str = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer of another kind than CLIP's: words, closed by an end token."""
    vocabulary = {"<pad>": 0, end: 1, "<cls>": 2, "<unk>": 3}
    for word in " ".join(TEXTS + ["fire engine its oclock Apple"]).lower().split():
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = BertProcessing((end, 1), ("<cls>", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token=end, sep_token=end, cls_token="<cls>", unk_token="<unk>"
    )


@pytest.mark.slow
def test_siglip_of_open_clip(tmp_path, monkeypatch):
    peer = siglip_folder(tmp_path / "siglip", monkeypatch)
    model, processor = load(tmp_path / "siglip")
    assert isinstance(model, HFCLIPSiglipModel)
    assert (model.logit_scale.tolist(), model.logit_bias.tolist()) == ([2.0], [-9.0])
    text = "A fire-engine; it's_7 o'clock!"
    inputs = processor(images=IMAGES, text=[text, "apple " * 40], return_tensors="pt")
    # All texts are padded to the context length, in lower case and without punctuation.
    tokenizer = words()
    expected = tokenizer(
        ["a fireengine its 7 oclock", ("apple " * 40).strip()],
        padding="max_length", truncation=True, max_length=16, return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    squashed = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in IMAGES]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in squashed])
    assert torch.equal(inputs["pixel_values"], (pixels / 255 - 0.5) / 0.5)
    with torch.no_grad():
        theirs = peer["visual"]["trunk"](inputs["pixel_values"]), peer["text"](inputs["input_ids"])
    theirs = [torch.nn.functional.normalize(one, dim=-1) for one in theirs]
    assert_near(unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), theirs)

    written = export_tensors(model.state_dict(), open_clip.open_clip_rules(model.config))
    before = load_file(tmp_path / "siglip/open_clip_model.safetensors")
    assert written.keys() == before.keys() and all(torch.equal(written[name], before[name]) for name in before)

    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    again, loaded = load(tmp_path / "ours")
    assert type(again) is HFCLIPSiglipModel and loaded.text_padding == "max_length"
    same = loaded(images=IMAGES, text=[text, "apple " * 40], return_tensors="pt")
    assert all(torch.equal(same[key], inputs[key]) for key in inputs)


@pytest.mark.slow
def test_clipa_pads_and_drops_the_separator(tmp_path):
    """OpenCLIP's strip_sep_token: zeros in the separator's place; the last position is pooled, without a mask."""
    text = {"pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"strip_sep_token": True}}
    write_open_clip_folder(tmp_path / "clipa", open_clip_config(text=text))
    for file in tmp_path.glob("clipa/*token*"):
        file.unlink()
    words("[SEP]").save_pretrained(tmp_path / "clipa")
    theirs = load_open_clip().get_tokenizer(f"local-dir:{tmp_path / 'clipa'}")
    _, processor = load(tmp_path / "clipa")
    processor.save_pretrained(tmp_path / "saved")
    for one in (processor, HFCLIPProcessor.from_pretrained(tmp_path / "saved")):
        for padding in ({}, {"padding": True}, {"text_kwargs": {"padding": "longest"}}):
            assert torch.equal(one(text=TEXTS, return_tensors="pt", **padding)["input_ids"], theirs(TEXTS))
    with pytest.raises(ValueError, match="always have 24 tokens"):
        processor(text=TEXTS, padding=False)


@pytest.mark.slow
def test_texts_of_a_maskless_tower_see_openais_zeros(tmp_path):
    text = {"no_causal_mask": True, "hf_tokenizer_name": "", "vocab_size": 49408, "context_length": 20}
    peer = write_open_clip_folder(tmp_path / "theirs", open_clip_config(text=text))
    ids = load_open_clip().get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")(TEXTS + ["wow! great!!"])
    model, processor = load(tmp_path / "theirs")
    inputs = processor(images=IMAGES, text=TEXTS + ["wow! great!!"], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], ids)
    assert_near(
        unit_embeddings(model, inputs["pixel_values"], ids), unit_embeddings(peer, inputs["pixel_values"], ids)
    )


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_open_clip_with_a_text_tower_of_transformers(projection, tmp_path):
    backbone = RobertaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=2, eos_token_id=1, max_position_embeddings=40,
    )  # fmt: skip
    backbone.save_pretrained(tmp_path / "backbone")
    cfg = open_clip_config()
    cfg["text_cfg"] = {
        "hf_model_name": str(tmp_path / "backbone"), "hf_tokenizer_name": "words", "context_length": 24,
        "hf_proj_type": projection, "hf_pooler_type": "mean_pooler", "hf_model_pretrained": False,
    }  # fmt: skip
    folder = tmp_path / "theirs"
    peer = write_open_clip_folder(folder, cfg)
    for file in folder.glob("*token*"):
        file.unlink()
    words().save_pretrained(folder)
    model, processor = load(folder)
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    ids = load_open_clip().get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert_near(
        unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]),
        unit_embeddings(peer, inputs["pixel_values"], ids),
    )


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_siglip_of_transformers_keeps_its_transform(tmp_path):
    """Images are squashed to the model's size, which is not the 224 that a missing crop size would mean."""
    vision, text = TINY | {"image_size": 40, "patch_size": 8}, TINY | {"vocab_size": 64, "max_position_embeddings": 12}
    peer = randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    peer.save_pretrained(tmp_path)
    transform = SiglipImageProcessorPil(size={"height": 40, "width": 40})
    transform.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    model, processor = load(tmp_path)
    assert model.source_format == "transformers" and isinstance(model, HFCLIPSiglipModel)
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    assert inputs["input_ids"].shape == (len(TEXTS), 12)
    expected = torch.cat([transform(images=image, return_tensors="pt")["pixel_values"] for image in IMAGES])
    assert (inputs["pixel_values"] - expected).abs().max() <= 1e-6
    with torch.no_grad():
        theirs = peer(**inputs)
    assert_near(
        unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), (theirs.image_embeds, theirs.text_embeds)
    )


def clip_folder(folder: Path) -> CLIPModel:
    ids = {"vocab_size": len(tokenizer()), "bos_token_id": len(tokenizer()) - 2, "eos_token_id": len(tokenizer()) - 1}
    text = TINY | ids | {"max_position_embeddings": 24}
    vision = TINY | {"image_size": 32, "patch_size": 8}
    peer = randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)))
    peer.save_pretrained(folder)
    small_clip_tokenizer().save_pretrained(folder)
    transform = {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(transform))
    return peer


def test_buffers_of_old_checkpoints_are_dropped_and_nothing_else(tmp_path):
    clip_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {f"{tower}.embeddings.position_ids": torch.arange(3)[None] for tower in ("text_model", "vision_model")}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    model, processor = load(tmp_path)
    bare, _ = load(tmp_path / "pytorch_model.bin", config=model.config, tokenizer=tmp_path)
    assert bare.source_format == "transformers"
    assert all(
        torch.equal(one, other)
        for one, other in zip(bare.state_dict().values(), model.state_dict().values(), strict=True)
    )
    del state["visual_projection.weight"]
    state["visual_projektion.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    for source, options, named in (
        (tmp_path, {}, "file: visual_projektion.weight.*"),
        # Beside the CLIP of a file may be anything.
        (tmp_path / "pytorch_model.bin", {"config": model.config, "tokenizer": tmp_path}, ""),
    ):
        with pytest.raises(ConversionError, match=f"{named}lacks 1 tensor.*visual_projection.weight"):
            load(source, **options)


def test_our_own_folder(tmp_path):
    model, processor = tiny_clip(TEXTS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loaded = load(tmp_path, dtype=torch.float16, device="cpu")
    assert again.dtype == torch.float16 and again.source_format == "hf_clip" and type(loaded) is HFCLIPProcessor
    assert loaded(text=TEXTS)["input_ids"] == processor(text=TEXTS)["input_ids"]
    with pytest.raises(ValueError, match=r"`architecture=ViT-B/32` \(vision_config.hidden_size=768\).* has 32: drop"):
        load(tmp_path, architecture="ViT-B/32")
    HFCLIPForImageClassification(model.config).save_pretrained(tmp_path / "classifier")
    processor.save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        ConversionError, match="no text tower: load it by HFCLIPForImageClassification.from_pretrained"
    ):
        load(tmp_path / "classifier")


def test_dtype_is_the_files_or_as_asked(open_clip_folder):
    folder, _ = open_clip_folder
    state = load_file(folder / "open_clip_model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    assert load(folder)[0].dtype == torch.float16
    assert load(folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype=torch.int8"):
        load(folder, dtype=torch.int8)


def test_what_is_loaded_can_be_saved_and_trained(open_clip_folder, tmp_path):
    """Splits are views of one tensor of the file: neither saving nor writing to them may mix them up."""
    model, processor = load(open_clip_folder[0])
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention = model.text_model.encoder.layers[0].self_attn
    with torch.no_grad():
        attention.k_proj.weight.zero_()
    assert torch.equal(attention.q_proj.weight, before["text_model.encoder.layers.0.self_attn.q_proj.weight"])
    again, _ = load(tmp_path / "ours")
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("cfg", "problem"),
    [
        ({"vision": {"attentional_pool": True}}, "attentional_pool=True"),
        ({"vision": {"qk_norm": True}}, "qk_norm=True"),
        ({"text": {"embed_cls": True}}, "embed_cls=True"),
        ({"multimodal_cfg": {"width": 8}}, "a CoCa without attentional_pool"),
        ({"vision": {"image_size": [32, 16]}}, "squares"),
        ({"vision": {"pool_type": "none"}}, "pool_type='none'.*tok, avg"),
        ({"vision": {"norm_kwargs": {"elementwise_affine": False}}}, "elementwise_affine"),
        ({"quick_gelu": True, "text": {"act_kwargs": {"approximate": "tanh"}}}, "act_kwargs"),
        ({"text": {"tokenizer_mode": "clips"}}, "tokenizer_mode='clips'"),
        ({"text": {"tokenizer_kwargs": {"language": "eng_Latn"}}}, "tokenizer_kwargs have language"),
        ({"text": {"layers": 3}}, "lacks 16 tensors of the model: text_model.encoder.layers.2"),
        ({"text": {"width": 52, "heads": 4}}, "shapes differ in .* instead of"),
    ],
)  # fmt: skip
def test_what_open_clip_has_and_this_package_lacks_is_named(cfg, problem, open_clip_folder):
    folder, _ = open_clip_folder
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": open_clip_config(**cfg)}))
    with pytest.raises(ConversionError, match=problem):
        load(folder)


def test_settings_that_are_damaged_or_unknown(open_clip_folder):
    folder, _ = open_clip_folder
    file = folder / "open_clip_config.json"
    for settings in ({"resize_mode": "stretch"}, {"interpolation": "nearest"}, {"gamma": 2}):
        file.write_text(json.dumps({"model_cfg": open_clip_config(), "preprocess_cfg": settings}))
        with pytest.raises(ConversionError, match=next(iter(settings))):
            load(folder)
    for content in ("{", "[]", '{"model_cfg": {}}'):
        file.write_text(content)
        with pytest.raises(ConversionError, match="again"):
            load(folder)


def test_folders_that_lack_something(tmp_path):
    clip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "away")
    with pytest.raises(ConversionError, match="no preprocessor_config.json.*`preprocessing`"):
        load(tmp_path)
    _, processor = load(
        tmp_path, preprocessing={"resize_mode": "longest", "fill_color": 7}, tokenizer=small_clip_tokenizer()
    )
    assert processor.image_processor.fill_color == 7 and processor.image_processor.size == {"longest_edge": 32}
    (tmp_path / "away").rename(tmp_path / "preprocessor_config.json")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "DetrImageProcessor"}')
    with pytest.raises(ConversionError, match="DetrImageProcessor"):
        load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConversionError, match="has no tokenizer"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="no weights: model.safetensors"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "blip"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="model_type='blip' and no open_clip_config.json"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    for name in ("last.pt", "weights.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ConversionError, match="neither config.json.*pass the file: last.pt, weights.pt"):
        load(tmp_path)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("nothing.pt", "./owner/name", "just-a-word", "owner/name.safetensors"):
        with pytest.raises(ConversionError, match="there is no.*RN50"):
            load(source)
    Path("runs/emoji").mkdir(parents=True)
    with pytest.raises(ConversionError, match=r"no file or folder here .* Did you mean 'runs/emoji'\?"):
        load("runs/emoj")
    with pytest.raises(ConversionError, match=r"looked for RN50\.pt in .*clip and .*Put the file there"):
        load("RN50")
    with pytest.raises(ConversionError, match="'owner/name' is no file or folder here and not in the Hub's cache"):
        load("hf-hub:owner/name")
    torch.save({"conv.weight": torch.ones(1)}, "other.pt")
    with pytest.raises(ConversionError, match="no CLIP of a known format; its tensors are conv.weight"):
        load("other.pt")


def test_openais_names_find_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache/clip"
    cache.mkdir(parents=True)
    torch.save(openai_model().state_dict() | openai_numbers(32), cache / "ViT-L-14-336px.pt")
    assert load("ViT-L/14@336px")[0].source_format == "openai"
    assert set(locating.OPENAI_FILES) <= {name.replace("-gelu", "") for name in list_architectures()}


@pytest.mark.slow
def test_cleaning_is_open_clips():
    peer = load_open_clip().tokenizer
    for text in ["It's_a  “Test”, Caf&eacute;!", " \tA-B_c ", "＃１２ ｱ", "plain words", ""]:
        assert canonicalize_text(text) == peer.get_clean_fn("canonicalize")(text)
        assert clean_whitespace(text) == peer.get_clean_fn("whitespace")(text)


@pytest.mark.slow
def test_the_openai_tokenizer_refuses_another_vocabulary(tmp_path):
    write_open_clip_folder(tmp_path / "theirs", open_clip_config(text={"hf_tokenizer_name": None}))
    with pytest.raises(ConversionError, match="knows 546 tokens, OpenAI's vocabulary has 49408.*`tokenizer`"):
        load(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs", tokenizer=tokenizer())
    assert isinstance(processor.tokenizer, HFCLIPTokenizer)
    with pytest.raises(ConversionError, match="49408 tokens, the model knows 546"):
        load(tmp_path / "theirs", tokenizer=HFCLIPTokenizer())


@pytest.mark.slow
def test_repositories_are_fetched_in_part_and_kept(tmp_path):
    """What is needed and no more comes from the Hub; afterwards the cache is enough."""
    clip_folder(tmp_path / "clip")
    write_open_clip_folder(tmp_path / "open_clip", open_clip_config())
    for unwanted in ("clip/flax_model.msgpack", "clip/pytorch_model.bin", "open_clip/open_clip_pytorch_model.bin"):
        (tmp_path / unwanted).write_bytes(b"large")
    program = """
import sys
from hf_clip import load
for is_local in (False, False, True):
    for name in ("hf-hub:owner/clip", "owner/open_clip"):
        print(load(name, token=False, local_files_only=is_local)[0].source_format, flush=True)
try:
    load("owner/none", token=False)
except ValueError as error:
    print(str(error).replace(" ", "_"))
"""
    with running_hub({"owner/clip": tmp_path / "clip", "owner/open_clip": tmp_path / "open_clip"}) as hub:
        *formats, error = printed_words(program, **hub.environment(tmp_path / "home"))
    assert formats == ["transformers", "open_clip"] * 3
    assert error.startswith("'owner/none'_is_no_file_or_folder_here_and_not_in_the_Hub's_cache._The_Hub_has_no_such")
    assert {"owner/clip/model.safetensors", "owner/open_clip/open_clip_model.safetensors"} <= set(hub.downloaded)
    assert not any(name.endswith((".bin", ".msgpack")) for name in hub.downloaded)
    assert len(hub.downloaded) == len(set(hub.downloaded)), "the cache was enough for the second time"
    # One question a call, and for the files of a commit that the cache has none.
    assert hub.requests["GET", "/api/models/owner/clip"] == 2
    assert max(count for (method, _), count in hub.requests.items() if method == "HEAD") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_memory_stays_near_the_weights(tmp_path):
    """The peak over what the process held before: one copy of the weights, not two, and when casting little more."""
    tower = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = HFCLIPConfig(text_config=tower, vision_config=tower | {"image_size": 32, "patch_size": 16})
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        state = HFCLIPModel(config).state_dict()
    for dtype in (torch.float32, torch.float16):
        zeros = {name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in state.items()}
        torch.save(export_tensors(zeros, openai_rules(config)), tmp_path / f"{dtype}.pt")
    program = r"""
import re, sys, torch
from pathlib import Path
from hf_clip import HFCLIPConfig, load
from hf_clip.conversion.preprocessing import openai_tokenizer

def peak():
    # getrusage's peak begins with that of the process which started this one.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

config = HFCLIPConfig.from_pretrained(sys.argv[1])
openai_tokenizer(config.text_config)
models = []
for name in ("torch.float32", "torch.float16"):
    before = peak()
    # Kept, so that the second peak begins where the first ended.
    models.append(load(f"{sys.argv[1]}/{name}.pt", config=config, dtype=torch.float32)[0])
    parameters = list(models[-1].parameters())
    sum(parameter.sum().item() for parameter in parameters)
    print((peak() - before) / sum(parameter.nbytes for parameter in parameters))
"""
    ratios = [float(word) for word in printed_words(program, str(tmp_path), HF_HUB_OFFLINE="1")]
    assert max(ratios) <= 1.3, ratios
