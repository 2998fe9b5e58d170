"""Folders in which one setting was changed: `load` gives the model's own embeddings, or says what is wrong.

Where a change legally selects another model or other inputs (an activation, a mean), the embeddings are finite.
"""

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hf_clip import load
from hf_clip.conversion import ConversionError, convert
from hf_clip.model.embedding_hf_clip import IMAGE_INPUTS
from tests.helpers.checkpoints import IMAGES, TEXTS, small_clip_tokenizer, tokenizer
from tests.helpers.counts import soak_count
from tests.helpers.naflex import write_naflex_folder
from tests.helpers.toys import tiny_clip

# By the last part of their name. What selects another computation with the same weights, ...
OF_THE_MODEL = {
    "hidden_act", "layer_norm_eps", "num_attention_heads", "pooling", "is_causal", "norm_before_pooling",
    "model_type", "quick_gelu", "heads", "head_width", "norm_kwargs", "act_kwargs", "pool_type",
    "no_causal_mask", "eps", "approximate", "final_ln_after_pool", "crops_remainder", "eos_token_id",
    "vision_use_head", "tower",
}  # fmt: skip
# ... other pixels, ...
OF_IMAGES = {
    "image_size", "image_mean",
    "image_std", "mean", "std", "do_normalize", "do_rescale", "rescale_factor", "do_resize",
    "resample", "interpolation", "resize_mode", "size", "crop_size", "do_center_crop", "fill_color",
    "shortest_edge", "longest_edge", "height", "width", "do_convert_rgb", "image_processor",
    "image_processor_type", "do_pad", "pad_size", "preprocess_cfg", "max_num_patches",
}  # fmt: skip
# ... or other ids.
OF_TEXTS = {
    "vocab", "merges", "model_max_length", "added_tokens", "added_tokens_decoder", "model", "tokenizer_class",
    "version", "normalizer", "pre_tokenizer", "post_processor", "decoder", "text_cleaning", "tokenizer_kwargs",
    "clean", "hf_tokenizer_name", "bos_token", "eos_token", "unk_token", "pad_token", "split_special_tokens",
    "extra_special_tokens", "text_cfg", "truncation_side", "padding_side", "pad_token_id", "context_length",
}  # fmt: skip
LEGAL = OF_THE_MODEL | OF_IMAGES | OF_TEXTS

FORMATS = ("hf_clip", "transformers", "open_clip", "siglip", "naflex")
TOLERANCE = 1e-5


def write_siglip(folder: Path) -> None:
    """A folder of transformers' SigLIP, which sees the padding of its texts."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokenizer()), "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(0)
    vision = tower | {"image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    small_clip_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    for part in tiny_clip(TEXTS):
        part.save_pretrained(root / "hf_clip")
    for form in ("transformers", "open_clip"):
        convert(root / "hf_clip", to=form, output_dir=root / form)
    write_siglip(root / "siglip")
    write_naflex_folder(root / "naflex")
    for file in root.glob("*/*.py"):
        file.unlink()
    return {form: root / form for form in FORMATS}


def embed(folder: Path) -> torch.Tensor:
    """Embeddings of images, then of texts, (N, D)."""
    model, processor = load(folder)
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        text_BD = model.encode_text(inputs["input_ids"], inputs.get("attention_mask"))
        images = {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
        return torch.cat([model.encode_image(**images), text_BD])


@pytest.fixture(scope="module")
def expected(folders) -> dict[str, torch.Tensor]:
    return {form: embed(folder) for form, folder in folders.items()}


def mutate(settings: Any, draw: random.Random) -> str:
    """Changes one value at a random depth, in place; returns its dotted name."""
    path, target = [], settings
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = draw.choice(keys)
        path.append(str(key))
        value = target[key]
        if not (isinstance(value, dict | list) and value) or draw.random() < 0.2:
            break
        target = value
    numbers = [0, -1, 1, 2, 7, 0.5, 10**9, 10**30, 1e-30, math.nan, math.inf]
    others = [None, True, False, "", "abc", "\0\n" * 5, [], {}, [1, 2], {"a": 1}, "x" * 10_000]
    if isinstance(value, bool):
        others += [not value] * 4
    elif isinstance(value, int | float):
        numbers += [value + 1, value - 1, 2 * value, -value] * 2
    elif isinstance(value, str):
        others += [value.upper(), value[:-1], value + value] * 2
    new = draw.choice(numbers if draw.random() < 0.6 else others)
    if draw.random() < 0.1:
        del target[key]
    elif isinstance(target, dict) and draw.random() < 0.1:
        target[f"{key}_"] = target.pop(key)
    else:
        target[key] = new
    return ".".join(path)


def is_legal(file: str, name: str) -> bool:
    """Whether a setting, or what it stands in, selects another model or other inputs."""
    return bool(LEGAL & set(name.split("."))) or file in ("vocab.json", "merges.txt")


@pytest.mark.parametrize("seed", range(soak_count(8, 500)))
def test_a_changed_setting_changes_nothing_or_is_refused_or_is_known_to_select(seed, folders, expected, tmp_path):
    draw = random.Random(seed)
    form = FORMATS[seed % len(FORMATS)]
    folder = tmp_path / "folder"
    shutil.copytree(folders[form], folder, copy_function=os.link)
    files = sorted(file for file in folder.glob("*.json"))
    # Half of all changes are in the config.
    configs = [file for file in files if file.name in ("config.json", "open_clip_config.json")]
    file = draw.choice(configs if draw.random() < 0.5 else files)
    settings = json.loads(file.read_text())
    name = mutate(settings, draw)
    file.unlink()
    file.write_text(json.dumps(settings))
    try:
        found = embed(folder)
    except ConversionError as error:
        assert "\n" not in str(error) and str(folder) in str(error), (file.name, name, str(error))
        return
    assert found.isfinite().all(), (file.name, name)
    if found.shape != expected[form].shape or (found - expected[form]).abs().max() > TOLERANCE:
        assert is_legal(file.name, name), (file.name, name)
