"""CLIPs that transformers has under other classes than CLIPModel, LongCLIP, and OpenAI's archives of any shape.

Small random models, run by the code that they come from.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPProcessor,
    MetaClip2Config,
    MetaClip2Model,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Model,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTModel,
    XLMRobertaTokenizer,
)
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from hf_clip import HFCLIPModel
from hf_clip.conversion import ConversionError, convert, load
from tests.helpers.checkpoints import CONTEXT_LENGTH, IMAGES, TEXTS, randomize, small_clip_tokenizer, unit_embeddings
from tests.helpers.families import CHINESE_TEXTS, bert_tokenizer, xlm_tokenizer
from tests.helpers.peers import load_open_clip, load_openai_module, load_openai_tokenize

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
TOWER = {"hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 3}
IMAGE = TOWER | {"image_size": 32, "patch_size": 8}
SQUARE = {"size": {"height": 32, "width": 32}}


def assert_near(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= TOLERANCE


def embeddings_of(peer, **inputs):
    with torch.no_grad():
        output = peer.eval()(**inputs)
    return output.image_embeds, output.text_embeds


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def write_metaclip2(folder):
    tokenizer = xlm_tokenizer(CONTEXT_LENGTH)
    text = TOWER | {"vocab_size": len(tokenizer) + 3, "max_position_embeddings": CONTEXT_LENGTH}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    peer = randomize(MetaClip2Model(MetaClip2Config(text_config=text, vision_config=IMAGE, projection_dim=40)))
    peer.save_pretrained(folder)
    processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), tokenizer)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return peer, processor


def test_metaclip2_in_out_and_in_again(tmp_path):
    peer, theirs = write_metaclip2(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs")
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    expected = theirs(text=TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    # Their end token has the id 2, and texts hold higher ones.
    assert (inputs["input_ids"] == 2).any(dim=-1).all() and inputs["input_ids"].max() > 2
    embeddings = embeddings_of(peer, pixel_values=inputs["pixel_values"], **expected)
    assert_near(unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), embeddings)

    # Names are transformers' own, so that the model's class reads the folder too.
    assert same_tensors(HFCLIPModel.from_pretrained(tmp_path / "theirs").state_dict(), model.state_dict())

    convert(tmp_path / "theirs", to="hf_clip", output_dir=tmp_path / "ours")
    convert(tmp_path / "ours", to="transformers", output_dir=tmp_path / "back", verify=True)
    again = MetaClip2Model.from_pretrained(tmp_path / "back")
    assert same_tensors(again.state_dict(), peer.state_dict())
    assert_near(embeddings_of(again, pixel_values=inputs["pixel_values"], **expected), embeddings)
    returned = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert type(returned) is XLMRobertaTokenizer
    assert returned(TEXTS, truncation=True)["input_ids"] == theirs.tokenizer(TEXTS, truncation=True)["input_ids"]
    # OpenCLIP has the same model as ViT-H-14-worldwide.
    convert(tmp_path / "ours", to="open_clip", output_dir=tmp_path / "open_clip")
    worldwide = load_open_clip().create_model(f"local-dir:{tmp_path / 'open_clip'}").eval()
    assert_near(unit_embeddings(worldwide, inputs["pixel_values"], inputs["input_ids"]), embeddings)
    pixel_values = CLIPProcessor.from_pretrained(tmp_path / "back")(images=IMAGES[:1], return_tensors="pt")
    assert torch.equal(pixel_values["pixel_values"], inputs["pixel_values"][:1])


def test_chinese_clip_in_out_and_in_again(tmp_path):
    tokenizer = bert_tokenizer(tmp_path / "theirs")
    text = TOWER | {"vocab_size": len(tokenizer) + 3, "max_position_embeddings": 64, "layer_norm_eps": 1e-3}
    config = ChineseCLIPConfig(text_config=text, vision_config=IMAGE | {"patch_size": 7}, projection_dim=40)
    peer = randomize(ChineseCLIPModel(config))
    peer.save_pretrained(tmp_path / "theirs")
    theirs = ChineseCLIPProcessor(ChineseCLIPImageProcessorPil(**SQUARE, do_center_crop=False), tokenizer)
    # As the published folders have it: a vocabulary alone, and an image processor.
    theirs.image_processor.save_pretrained(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs")
    inputs = processor(images=IMAGES, text=CHINESE_TEXTS, return_tensors="pt")
    expected = theirs(text=CHINESE_TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"]) and len(set(inputs["input_ids"][1].tolist())) > 6
    assert torch.equal(inputs["pixel_values"], theirs(images=IMAGES, return_tensors="pt")["pixel_values"])
    embeddings = embeddings_of(peer, pixel_values=inputs["pixel_values"], **expected)
    assert_near(unit_embeddings(model, inputs["pixel_values"], inputs["input_ids"]), embeddings)

    convert(tmp_path / "theirs", to="hf_clip", output_dir=tmp_path / "ours")
    convert(tmp_path / "ours", to="transformers", output_dir=tmp_path / "back", verify=True)
    # Not the models: their class makes the embedding of the padding, which is masked, 0 when it loads.
    assert same_tensors(*(load_file(tmp_path / name / "model.safetensors") for name in ("back", "theirs")))
    again = ChineseCLIPModel.from_pretrained(tmp_path / "back")
    returned = ChineseCLIPProcessor.from_pretrained(tmp_path / "back")
    same = returned(images=IMAGES, text=CHINESE_TEXTS, padding=True, truncation=True, return_tensors="pt")
    # Without the mask that it gives, their model would see the padding.
    assert_near(embeddings_of(again, **same), embeddings)

    # What files of earlier versions hold besides.
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    state |= {"text_model.pooler.dense.weight": torch.zeros(48, 48), "text_model.pooler.dense.bias": torch.zeros(48)}
    state |= {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    assert same_tensors(load(tmp_path / "theirs")[0].state_dict(), model.state_dict())


OWLS = {
    "owlvit": (OwlViTConfig, OwlViTModel, OwlViTForObjectDetection),
    "owlv2": (Owlv2Config, Owlv2Model, Owlv2ForObjectDetection),
}


def write_owl(folder, kind: str, is_detector: bool):
    """A folder with random weights; returns its CLIP, by transformers."""
    config_class, *classes = OWLS[kind]
    tokenizer = small_clip_tokenizer()
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = config_class(text_config=text, vision_config=IMAGE, projection_dim=40)
    model = randomize(classes[is_detector](config))
    model.save_pretrained(folder)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    return getattr(model, kind) if is_detector else model


@pytest.mark.parametrize("is_detector", [False, True])
def test_the_clip_within_an_owl_vit(is_detector, tmp_path, caplog):
    peer = write_owl(tmp_path / "theirs", "owlvit", is_detector)
    theirs = OwlViTImageProcessorPil(**SQUARE)
    theirs.save_pretrained(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs")
    assert ("not the CLIP's and are not loaded: box_head" in caplog.text) == is_detector
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    assert inputs["input_ids"].shape == (len(TEXTS), 16)
    assert torch.equal(inputs["pixel_values"], theirs(IMAGES, return_tensors="pt")["pixel_values"])
    embeddings = embeddings_of(peer, **inputs)
    assert_near(unit_embeddings(model, **inputs), embeddings)
    # It is a CLIP from then on.
    convert(tmp_path / "theirs", to="transformers", output_dir=tmp_path / "clip", verify=True)


def test_the_clip_within_an_owlv2_wants_its_preprocessing_said(tmp_path):
    peer = write_owl(tmp_path / "theirs", "owlv2", True)
    settings = {"image_processor_type": "Owlv2ImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ConversionError,
        match=r"^\S+theirs has an Owlv2ImageProcessor, which fills images to a square .* `preprocessing`",
    ):
        load(tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs", preprocessing={"resize_mode": "longest", "interpolation": "bilinear"})
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    assert inputs["pixel_values"].shape == (len(IMAGES), 3, 32, 32)
    assert_near(unit_embeddings(model, **inputs), embeddings_of(peer, **inputs))


def long_clip(folder) -> tuple:
    """A file of LongCLIP's, and OpenAI's model of the same weights whose positions are the sum that theirs makes."""
    module = load_openai_module("model")
    peer = randomize(module.CLIP(40, 32, 2, 128, 8, 248, 49408, 128, 2, 2))
    generator = torch.Generator().manual_seed(1)
    stretched = torch.randn(peer.positional_embedding.shape, generator=generator)
    state = dict(peer.state_dict()) | {"positional_embedding_res": stretched}
    torch.save(state, folder / "longclip.pt")
    is_kept_T1 = (torch.arange(248) < 20)[:, None].float()
    with torch.no_grad():
        peer.positional_embedding.copy_(peer.positional_embedding * is_kept_T1 + stretched * (1 - is_kept_T1))
    return folder / "longclip.pt", peer


def load_weights(file) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)


def test_long_clip_in_and_out(tmp_path):
    file, peer = long_clip(tmp_path)
    model, processor = load(file)
    assert model.source_format == "long_clip" and processor.tokenizer.model_max_length == 248
    texts = [*TEXTS, "a photo of apples " * 60, "a photo of apples " * 100]
    inputs = processor(images=IMAGES, text=texts, return_tensors="pt")
    tokenize = load_openai_tokenize()
    theirs = torch.zeros(len(texts), 248, dtype=torch.long)
    for row, ids in zip(theirs, (tokenize(text, 248) for text in texts), strict=True):
        row[: len(ids)] = torch.tensor(ids)
    assert inputs["input_ids"].shape == theirs.shape
    assert_near(unit_embeddings(model, **inputs), unit_embeddings(peer, inputs["pixel_values"], theirs))
    convert(file, to="openai", output_dir=tmp_path / "openai")
    assert torch.equal(load_weights(tmp_path / "openai/model.pt")["positional_embedding"], peer.positional_embedding)


def test_a_long_clip_whose_positions_are_of_two_shapes_is_named(tmp_path):
    file, _ = long_clip(tmp_path)
    torch.save(load_weights(file) | {"positional_embedding_res": torch.zeros(77, 128)}, file)
    with pytest.raises(ConversionError, match=r"is \(248, 128\) and positional_embedding_res \(77, 128\)"):
        load(file)


# Of `clip.model.CLIP`: embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, context_length,
# vocab_size, transformer_width, transformer_heads, transformer_layers.
ARCHIVES = {
    "ViT": (24, 21, 3, 192, 7, CONTEXT_LENGTH, 560, 64, 1, 1),
    "ResNet": (24, 96, (1, 1, 2, 1), 8, None, CONTEXT_LENGTH, 560, 128, 2, 2),
}


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("shape", ARCHIVES)
def test_openais_layout_says_all_of_a_model_of_any_shape(shape, is_archive, tmp_path):
    """Activation and width of heads, as in their `build_model`; for an own vocabulary the tokenizer is to be said."""
    numbers = ARCHIVES[shape]
    peer = randomize(load_openai_module("model").CLIP(*numbers))
    state, options = dict(peer.state_dict()), {"tokenizer": small_clip_tokenizer()}
    if is_archive:
        named = {"input_resolution": numbers[1], "context_length": numbers[5], "vocab_size": numbers[6]}
        state |= {name: torch.tensor(number) for name, number in named.items()}
    else:
        options["source_format"] = "openai"
    torch.save(state, tmp_path / "theirs.pt")
    model, processor = load(tmp_path / "theirs.pt", **options)
    inputs = processor(text=TEXTS, return_tensors="pt")
    pixel_values = torch.randn(2, 3, numbers[1], numbers[1], generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(inputs["input_ids"], (0, CONTEXT_LENGTH - inputs["input_ids"].shape[1]))
    assert_near(unit_embeddings(model, pixel_values, **inputs), unit_embeddings(peer, pixel_values, padded))
    assert model.source_format == "openai" and model.config.vision_config.hidden_act == "quick_gelu"
