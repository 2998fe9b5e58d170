"""Folders of published families load: their config files, and weights of the names and shapes that their code has.

`tests/golden/configs` holds files after those of the repositories, most with 2 layers. The weights are files of zeros
that take no space on disk.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, Owlv2ForObjectDetection, OwlViTForObjectDetection

from hf_clip import HFCLIPConfig
from hf_clip.conversion import ConversionError, load
from tests.helpers.checkpoints import small_clip_tokenizer
from tests.helpers.families import bert_tokenizer, clip_tokenizer, xlm_tokenizer
from tests.helpers.peers import load_open_clip

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3


def shortest(size: int) -> dict:
    return {"shortest_edge": size}


def square(size: int) -> dict:
    return {"height": size, "width": size}


# Dimensions, layers of the two towers, activation of the image tower, tokens and pooling of texts; the resize, its
# filter and the normalization.
FAMILIES = {
    "openai_of_2021": (512, 2, 2, "quick_gelu", 77, "eos", shortest(224), BICUBIC, OPENAI),
    "fashion_clip": (512, 2, 2, "gelu", 77, "eos", shortest(224), BICUBIC, OPENAI),
    "metaclip": (512, 2, 2, "quick_gelu", 77, "eos", shortest(224), BICUBIC, OPENAI),
    "street_clip": (768, 2, 2, "quick_gelu", 77, "eos", shortest(336), BICUBIC, OPENAI),
    "tiny_clip": (512, 3, 10, "quick_gelu", 77, "eos", shortest(224), BICUBIC, OPENAI),
    "dfn": (1024, 2, 2, "quick_gelu", 77, "eos", square(378), BICUBIC, OPENAI),
    "clipa": (768, 2, 2, "gelu", 32, "last", square(224), BILINEAR, IMAGENET),
    "bioclip": (512, 2, 2, "gelu", 77, "eos", shortest(224), BICUBIC, OPENAI),
    "openvision": (192, 2, 2, "gelu", 80, "last", square(160), BILINEAR, IMAGENET),
    "marqo": (768, 2, 12, "gelu", 64, "last", square(224), BICUBIC, HALF),
    "metaclip_2": (1024, 2, 2, "quick_gelu", 77, "first_eos", square(224), BICUBIC, OPENAI),
    "chinese_clip": (512, 2, 2, "quick_gelu", 512, "first", square(224), BICUBIC, OPENAI),
    "owlvit": (512, 2, 2, "quick_gelu", 16, "eos", square(768), BICUBIC, OPENAI),
    "owlv2": (512, 2, 2, "quick_gelu", 16, "eos", square(960), BILINEAR, OPENAI),
}
DETECTORS = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}


def write_zeros(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file of float32 zeros with the names and shapes of these, most of which no disk ever holds."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(stream.tell() + end)


def peers_tensors(folder: Path, family: str) -> dict[str, torch.Tensor]:
    """The state dict of the family's own model, without memory."""
    if (folder / "open_clip_config.json").is_file():
        model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        open_clip = load_open_clip()
        kind = open_clip.CustomTextCLIP if model_cfg.pop("custom_text", False) else open_clip.CLIP
        with torch.device("meta"):
            return kind(**model_cfg).state_dict()
    make = DETECTORS.get(family, AutoModel.from_config)
    with torch.device("meta"):
        return make(AutoConfig.from_pretrained(folder)).state_dict()


def tokenizer_for(family: str, folder: Path):
    """A stand-in for the tokenizer to load a folder with. None: the folder holds it now."""
    match family:
        case "metaclip_2":
            return xlm_tokenizer(77)
        case "chinese_clip":
            # As it is published: its files are a vocabulary alone.
            bert_tokenizer(folder)
        case "clipa" | "openvision":
            bert_tokenizer(folder).save_pretrained(folder)
        case "marqo":
            small_clip_tokenizer().save_pretrained(folder)
        case _:
            return clip_tokenizer()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_folder_loads(family, tmp_path):
    folder = tmp_path / family
    shutil.copytree(CONFIGS / family, folder)
    tokenizer = tokenizer_for(family, folder)
    write_zeros(folder / "model.safetensors", peers_tensors(folder, family))
    options = {"preprocessing": {"resize_mode": "squash", "interpolation": "bilinear"}} if family == "owlv2" else {}
    model, processor = load(folder, tokenizer=tokenizer, **options)
    dimensions, text_layers, vision_layers, activation, length, pooling, size, resample, norm = FAMILIES[family]
    text, vision, images = model.config.text_config, model.config.vision_config, processor.image_processor
    counts = text.tower_config.num_hidden_layers if text.tower_config else text.num_hidden_layers
    assert (model.config.projection_dim, counts, vision.num_hidden_layers) == (dimensions, text_layers, vision_layers)
    assert (vision.hidden_act, text.max_position_embeddings, text.pooling) == (activation, length, pooling)
    edge = vision.image_size
    assert {key: value for key, value in dict(images.size).items() if value} == size and edge in size.values()
    assert not images.do_center_crop or dict(images.crop_size) == square(edge)
    assert images.resample == resample and images.do_normalize and math.isclose(images.rescale_factor, 1 / 255)
    assert (tuple(images.image_mean), tuple(images.image_std)) == norm


def test_a_remote_clips_file_is_named_by_its_architecture(tmp_path):
    """Their README makes the model by OpenCLIP's name, and loads a state dict into it."""
    model_cfg = load_open_clip().get_model_config("ViT-B-32")
    with torch.device("meta"):
        write_zeros(tmp_path / "RemoteCLIP-ViT-B-32.safetensors", load_open_clip().CLIP(**model_cfg).state_dict())
    file = tmp_path / "RemoteCLIP-ViT-B-32.safetensors"
    model, processor = load(file, architecture="open_clip/ViT-B-32", tokenizer=clip_tokenizer())
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == "gelu"
    assert processor.image_processor.size == {"shortest_edge": 224}
    with pytest.raises(ConversionError, match="quick_gelu.*gelu"):
        load(file)


# Ids of special tokens are the tokenizer's affair.
OF_TOKENIZERS = {"pad_token_id", "bos_token_id", "transformers_version", "dtype", "_name_or_path"}


def test_open_clips_worldwide_models_are_metaclip_2s():
    of_transformers = HFCLIPConfig.from_pretrained(CONFIGS / "metaclip_2")
    of_transformers.text_config.num_hidden_layers, of_transformers.vision_config.num_hidden_layers = 24, 32
    of_open_clip = HFCLIPConfig.from_architecture("open_clip/ViT-H-14-worldwide-quickgelu")
    for tower in ("text_config", "vision_config"):
        one, other = (getattr(config, tower).to_dict() for config in (of_transformers, of_open_clip))
        assert {key for key in one if one[key] != other.get(key, one[key])} <= OF_TOKENIZERS
    assert of_transformers.projection_dim == of_open_clip.projection_dim
