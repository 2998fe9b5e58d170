"""`convert` and its verb: refusals that say why, folders that appear whole or not at all, and measured differences."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clip import (
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPSiglipConfig,
    HFCLIPTokenizer,
)
from hf_clip.conversion import ConversionError, convert, converting, load, verify
from hf_clip.conversion import export_configs as targets
from hf_clip_cli import main as cli
from tests.helpers.checkpoints import CONTEXT_LENGTH, openai_model, openai_state, randomize, tokenizer
from tests.helpers.peers import load_open_clip, load_openai_module

TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3}
VISION = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
SIGLIP = {"pooling": "attention", "has_class_token": False, "has_pre_norm": False, "patch_bias": True}
SIGLIP |= {"norm_before_pooling": True, "projection_type": "none"}
RESNET = {"tower": "resnet", "stem_width": 8, "stage_depths": [1, 1, 1, 1], "hidden_size": 256}
RESNET |= {"num_attention_heads": 4, "image_size": 32, "projection_bias": True}


def write_ours(folder, text=None, vision=None, kind=HFCLIPConfig, image=None, projection_dim=40):
    """A folder of this package's with a random model of these fields."""
    tokens = tokenizer()
    ids = {"vocab_size": len(tokens), "max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": tokens.eos_token_id}
    ids |= {"bos_token_id": tokens.bos_token_id, "pad_token_id": tokens.pad_token_id}
    config = kind(
        text_config=TEXT | ids | (text or {}), vision_config=VISION | (vision or {}), projection_dim=projection_dim
    )
    randomize(HFCLIPModel(config)).save_pretrained(folder)
    image = {"size": {"shortest_edge": 32}, "crop_size": 32} | (image or {})
    HFCLIPProcessor(HFCLIPImageProcessor(**image), tokens).save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    return write_ours(tmp_path / "source")


# Target, fields of the text tower and of the image tower, and what the error must name.
LACKS = [
    ("transformers", {}, RESNET, ["vision_config.tower='resnet'"]),
    (
        "transformers",
        {"layer_scale_init_value": 0.1, "is_causal": False},
        {"pooling": "average", "has_pre_norm": False},
        ["text_config.layer_scale_init_value=0.1", "text_config.is_causal=False", "vision_config.pooling='average'",
         "vision_config.has_pre_norm=False"],
    ),
    ("transformers", {"projection_bias": True}, {}, ["text_config.projection_bias=True"]),
    ("open_clip", {"pooling": "mean"}, {}, ["text_config.pooling='mean' (it has 'eos'"]),
    ("open_clip", {}, {"has_class_token": False, "pooling": "average"}, ["vision_config.has_class_token=False"]),
    ("open_clip", {}, {"patch_bias": True}, ["vision_config.patch_bias=True"]),
    ("open_clip", {"hidden_act": "gelu"}, {}, ["quick_gelu in both towers"]),
    (
        "open_clip",
        {},
        SIGLIP | {"hidden_size": 40},
        ["timm has no SigLIP name", "hidden_size=40"],
    ),
    (
        "open_clip",
        {},
        SIGLIP | {"hidden_size": 768, "intermediate_size": 3072, "image_size": 256, "patch_size": 32},
        ["timm has no SigLIP name", "hidden_size=768"],
    ),
    (
        "openai",
        {"hidden_act": "gelu"},
        {"layer_norm_eps": 1e-6},
        ["text_config.hidden_act='gelu'", "vision_config.layer_norm_eps=1e-06", "a vocabulary other than OpenAI's"],
    ),
    (
        "openai",
        {},
        {},
        ["text_config.num_attention_heads=3", "text_config.intermediate_size=96",
         "vision_config.num_attention_heads=2", "vision_config.intermediate_size=160"],
    ),
    ("openai", {}, RESNET | {"layer_norm_eps": 1e-3}, ["vision_config.layer_norm_eps=0.001"]),
    ("open_clip", {}, RESNET | {"layer_norm_eps": 1e-3}, ["vision_config.layer_norm_eps=0.001"]),
    ("openai", {}, RESNET | {"num_attention_heads": 8}, ["vision_config.num_attention_heads=8"]),
    ("openai", {"pooling": "first_eos"}, {}, ["text_config.pooling='first_eos'"]),
]  # fmt: skip


@pytest.mark.parametrize("target, text, vision, named", LACKS)
def test_a_target_names_everything_that_it_lacks(target, text, vision, named, tmp_path):
    dimensions = vision["hidden_size"] if "projection_type" in vision else 40
    edge = vision.get("image_size", 32)
    image = {"size": {"shortest_edge": edge}, "crop_size": edge}
    source = write_ours(tmp_path / "source", text, vision, image=image, projection_dim=dimensions)
    with pytest.raises(ConversionError, match="cannot express this model") as caught:
        convert(source, to=target, output_dir=tmp_path / "result")
    for phrase in named:
        assert phrase in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_is_done_to_texts_first_is_kept_or_named(source, tmp_path):
    _, processor = load(source)
    processor.text_cleaning = "canonicalize"
    processor.save_pretrained(source)
    for target in ("transformers", "openai"):
        with pytest.raises(ConversionError, match="text_cleaning='canonicalize' of texts before its tokenizer"):
            convert(source, to=target, output_dir=tmp_path / "result")
    convert(source, to="open_clip", output_dir=tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs/open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert settings["tokenizer_kwargs"] == {"clean": "canonicalize"}
    texts = ["A red, CAT!", "it's a dog"]
    again = load(tmp_path / "theirs")[1]
    assert again(text=texts)["input_ids"] == processor(text=texts)["input_ids"]
    processor.text_cleaning = None
    assert again(text=texts)["input_ids"] != processor(text=texts)["input_ids"]


IMAGE_LACKS = [
    ("transformers", {"size": {"longest_edge": 32}}, "longer edge"),
    ("open_clip", {"size": {"shortest_edge": 36}}, "{'shortest_edge': 36} for a model of 32 pixels"),
    ("open_clip", {"crop_size": 28}, "crop_size={'height': 28, 'width': 28}"),
    ("open_clip", {"resample": 1}, "resample=1"),
    ("open_clip", {"rescale_factor": 1 / 127.5}, "1 / 255"),
    ("openai", {"image_mean": [0.5, 0.5, 0.5]}, "mean=[0.5, 0.5, 0.5]"),
    ("openai", {"size": {"height": 32, "width": 32}}, "resize_mode=squash"),
]


@pytest.mark.parametrize("target, image, named", IMAGE_LACKS)
def test_a_transform_that_a_target_lacks_is_named(target, image, named, tmp_path):
    with pytest.raises(ConversionError) as caught:
        convert(write_ours(tmp_path / "source", image=image), to=target, output_dir=tmp_path / "result")
    assert named in str(caught.value)


def test_the_sigmoid_has_no_place_in_openais_format(tmp_path):
    with pytest.raises(ConversionError, match="sigmoid loss and its logit_bias"):
        convert(write_ours(tmp_path / "source", kind=HFCLIPSiglipConfig), to="openai", output_dir=tmp_path / "result")


def test_refuses_what_it_would_overwrite_and_formats_that_it_does_not_know(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="`output_dir=.*full` holds something already"):
        convert(source, to="open_clip", output_dir=tmp_path / "full")
    with pytest.raises(ValueError, match="holds something already"):
        convert(source, to="open_clip", output_dir=tmp_path / "full/thesis.tex")
    with pytest.raises(ValueError, match="`to=onnx`.*hf_clip, transformers, open_clip, openai"):
        convert(source, to="onnx", output_dir=tmp_path / "result")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "link").symlink_to(source)
    for output_dir, read in (
        (source / "in", source),
        (tmp_path / "link/in", source),
        (source / "in", tmp_path / "link"),
    ):
        with pytest.raises(ValueError, match="`output_dir=.*in` is inside .*, which is read"):
            convert(read, to="hf_clip", output_dir=output_dir)
    assert not (source / "in").exists()


def test_nothing_is_left_of_a_conversion_that_fails(source, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converting, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        convert(source, to="open_clip", output_dir=tmp_path / "result")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("target", ["hf_clip", "transformers", "open_clip"])
def test_verify_measures_no_difference(target, source, tmp_path):
    (tmp_path / "result").mkdir()
    verification = convert(source, to=target, output_dir=tmp_path / "result", verify=True)
    assert verification.is_passed and verification.images <= 1e-6 and verification.texts <= 1e-6
    assert verification.logits <= 1e-4
    assert convert(tmp_path / "result", to="hf_clip", output_dir=tmp_path / "again") is None
    one, other = load(source)[0].state_dict(), load(tmp_path / "again")[0].state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("part", ["images", "texts", "logits"])
@pytest.mark.parametrize("difference", [2e-4, math.nan])
def test_one_embedding_that_is_off_fails_the_verification(part, difference):
    differences = {"images": 0.0, "texts": 0.0, "logits": 0.0} | {part: difference}
    assert not verify.Verification("hf_clip", "hf_clip", **differences, limit=1e-4, logits_limit=1e-4).is_passed


@pytest.mark.parametrize("lost", ["the scale", "a scale that is none"])
def test_the_scale_of_the_logits_is_verified(lost, source, tmp_path, monkeypatch):
    """The embeddings are the same with any."""
    if lost == "the scale":
        embed_with_hf_clip, scales = verify.embed_with_hf_clip, iter([2.5, 2.501])

        def with_another_scale(model, processor):
            model.logit_scale.data.fill_(next(scales))
            return embed_with_hf_clip(model, processor)

        monkeypatch.setattr(verify, "embed_with_hf_clip", with_another_scale)
    else:
        state = load_file(source / "model.safetensors")
        state["logit_scale"].fill_(1000.0)
        save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConversionError, match="embeddings or logits are not the source's"):
        convert(source, to="hf_clip", output_dir=tmp_path / "result", verify=True)
    assert not (tmp_path / "result").exists()


def edited(file, **fields):
    """Replaces values in a JSON file; `__` in a name leads into an object."""
    content = json.loads(file.read_text())
    for name, value in fields.items():
        *places, last = name.split("__")
        place = content
        for key in places:
            place = place[key]
        place[last] = value
    file.write_text(json.dumps(content))


UNUSABLE = [
    ("processor_config.json", {"image_processor__image_std": [0, 0, 0]}, "normalized pixels would not be finite"),
    ("processor_config.json", {"image_processor__image_mean": "abc"}, "source: .*abc"),
    ("processor_config.json", {"image_processor__resample": 99}, "source: .*99"),
    (
        "processor_config.json",
        {"image_processor__crop_size": {"height": 8, "width": 8}},
        "8 x 8 pixels.* takes 32 x 32",
    ),
    (
        "config.json",
        {"text_config__eos_token_id": 10**9},
        "eos_token_id=1000000000.*not in the texts of the tokenizer",
    ),
    ("config.json", {"vision_config__layer_norm_eps": math.nan}, "layer_norm_eps=nan"),
    ("config.json", {"vision_config__layer_norm_eps": -1.0}, r"layer_norm_eps=-1\.0"),
]


@pytest.mark.parametrize("file, fields, problem", UNUSABLE)
def test_what_nobody_could_run_is_not_written(file, fields, problem, source, tmp_path):
    edited(source / file, **fields)
    with pytest.raises(ConversionError, match=problem):
        convert(source, to="hf_clip", output_dir=tmp_path / "result")
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_written(value, source, tmp_path):
    state = load_file(source / "model.safetensors")
    state["visual_projection.weight"][3, 5] = value
    save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConversionError, match="NaN or infinity in 1 tensors: visual_projection.weight"):
        convert(source, to="open_clip", output_dir=tmp_path / "result")


def test_verify_finds_a_wrong_activation_and_leaves_nothing(source, tmp_path, monkeypatch):
    write = converting.WRITERS["open_clip"]

    def write_wrongly(model, processor, folder):
        write(model, processor, folder)
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["quick_gelu"] = False
        (folder / "open_clip_config.json").write_text(json.dumps(config))

    monkeypatch.setitem(converting.WRITERS, "open_clip", write_wrongly)
    with pytest.raises(ConversionError, match=r"image embeddings.*at most 1e-04"):
        convert(source, to="open_clip", output_dir=tmp_path / "result", verify=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_the_peers_own_code_runs_what_was_written(source, tmp_path, monkeypatch):
    """With OpenCLIP's model and tokenizer; its transform, which needs torchvision, has golden values of its own."""
    convert(source, to="open_clip", output_dir=tmp_path / "result")
    model, processor = load(source)

    def transform(settings, is_train):
        return lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]

    open_clip = load_open_clip()
    monkeypatch.setitem(sys.modules, "open_clip", open_clip)
    monkeypatch.setattr(open_clip.factory, "image_transform_v2", transform)
    measured = verify.compare(
        verify.embed_with_hf_clip(model, processor), verify.embed_with_open_clip(tmp_path / "result")
    )
    assert measured.result_code == "open_clip" and measured.images <= 1e-5 and measured.texts <= 1e-5


def test_openais_own_code_runs_what_was_written(openai_file, tmp_path, monkeypatch):
    convert(openai_file, to="openai", output_dir=tmp_path / "result")
    model, processor = load(openai_file)
    pads = HFCLIPTokenizer(pad_token="!")
    package = SimpleNamespace(
        model=load_openai_module("model"),
        clip=SimpleNamespace(
            _transform=lambda size: lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]
        ),
        tokenize=lambda texts, truncate: pads(texts, padding="max_length", return_tensors="pt")["input_ids"],
    )
    monkeypatch.setitem(sys.modules, "clip", package)
    monkeypatch.setattr(verify, "is_torchvision_available", lambda: True)
    ours, theirs = (
        verify.embed_with_hf_clip(model, processor),
        verify.embed_with_original_code("openai", tmp_path / "result/model.pt"),
    )
    measured = verify.compare(ours, theirs)
    assert measured.result_code == "OpenAI's code" and measured.images <= 1e-5 and measured.texts <= 1e-5


def test_the_mlp_ratio_survives_being_rounded_down():
    """98 * (2 / 98) is a little less than 2 in floating point."""
    odd = {"hidden_size": 98, "num_attention_heads": 2, "intermediate_size": 2}
    text_cfg = targets.open_clip_model_cfg(HFCLIPConfig(text_config=odd))["text_cfg"]
    assert int(98 * text_cfg["mlp_ratio"]) == 2


def test_openais_halves_are_those_of_its_own_code():
    for shape in ({}, {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "image_resolution": 32}):
        for name, tensor in openai_model(**shape).state_dict().items():
            is_half = bool(converting._HALF_IN_OPENAI.fullmatch(name))
            assert is_half == (tensor.dtype == torch.float16), name


@pytest.fixture(scope="module")
def openai_file(tmp_path_factory):
    """A small state dict of OpenAI's."""
    file = tmp_path_factory.mktemp("openai") / "weights"
    torch.save(openai_state(openai_model()), file)
    return file


def test_rounding_to_half_is_measured_and_allowed_for(openai_file, tmp_path):
    """The source's weights are halves, which come back whole; with ones that are not, the limit is float16's."""
    exact = convert(openai_file, to="openai", output_dir=tmp_path / "exact", verify=True)
    assert exact.limit == 1e-4 and exact.images <= 1e-6 and exact.texts <= 1e-6
    model, processor = load(openai_file)
    randomize(model)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "single")
    rounded = convert(tmp_path / "single", to="openai", output_dir=tmp_path / "rounded", verify=True)
    assert rounded.limit == 5e-3 and 1e-6 < max(rounded.images, rounded.texts) < 5e-3


def test_what_float16_cannot_hold_is_not_rounded_to_infinity(openai_file, tmp_path):
    model, processor = load(openai_file)
    model.text_projection.weight.data[0, 0] = 1e5
    for part in (model, processor):
        part.save_pretrained(tmp_path / "single")
    with pytest.raises(ConversionError, match=r"numbers above 65504 \(text_projection\)"):
        convert(tmp_path / "single", to="openai", output_dir=tmp_path / "result")


def test_half_precision_stays(source, tmp_path):
    convert(source, to="hf_clip", output_dir=tmp_path / "half", dtype="float16")
    for target in ("transformers", "open_clip"):
        convert(tmp_path / "half", to=target, output_dir=tmp_path / target)
        weights = load_file(next((tmp_path / target).glob("*model.safetensors")))
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_the_verb(source, openai_file, tmp_path, capsys):
    def run(*arguments):
        return cli.main(["convert", *map(str, arguments)])

    assert run(openai_file, "--to", "transformers", "--output-dir", tmp_path / "result", "--verify") == 0
    out = capsys.readouterr().out
    assert "largest difference: " in out and "the result in transformers" in out and str(tmp_path / "result") in out
    assert run(source, "--to", "openai", "--output-dir", tmp_path / "none") == 1
    err = capsys.readouterr().err
    assert err.startswith("hf-clip: OpenAI's format cannot express this model. It lacks:") and err.count("\n") == 1
    assert run(source, "--to", "hf_clip", "--output-dir", tmp_path / "result") == 2
    assert "is not empty" in capsys.readouterr().err
    bare = tmp_path / "bare.pt"
    state = {name: tensor for name, tensor in torch.load(openai_file).items() if tensor.ndim or name == "logit_scale"}
    torch.save(state, bare)
    assert run(bare, "--to", "transformers", "--output-dir", tmp_path / "bare") == 1
    assert "Pass a folder with the config.json, tokenizer and image processor" in capsys.readouterr().err
    assert run(source, "--to", "onnx", "--output-dir", tmp_path / "none") == 2


def test_a_conversion_that_fails_its_verification_ends_with_1(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verify, "MAX_DIFFERENCE", -1.0)
    arguments = [str(source), "--to", "hf_clip", "--output-dir", str(tmp_path / "result"), "--verify"]
    assert cli.main(["convert", *arguments]) == 1
    assert "the result's embeddings or logits are not the source's" in capsys.readouterr().err
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("name", "is_quick"), [("RN50", True), ("open_clip/RN50", False), ("open_clip/ViT-B-32", False)]
)
def test_open_clip_is_told_the_activation_of_the_towers_that_have_one(name, is_quick):
    model_cfg = targets.open_clip_model_cfg(HFCLIPConfig.from_architecture(name))
    assert model_cfg.get("quick_gelu", False) is is_quick
