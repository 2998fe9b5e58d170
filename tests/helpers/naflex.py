"""Small random models of SigLIP 2's NaFlex, as transformers saves them, and images of many shapes."""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import Siglip2Config, Siglip2Model, Siglip2Processor
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from hf_clip import HFCLIPSiglipModel

from .toys import scatter_weights

PATCH_SIZE, MAX_NUM_PATCHES, CONTEXT = 4, 20, 64
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
# (width, height), from 1:8 to 8:1.
SHAPES = [(10, 80), (11, 80), (16, 90), (20, 80), (23, 70), (30, 90), (33, 80), (31, 62), (45, 67), (50, 60)]
SHAPES += [(height, width) for width, height in SHAPES]


def images_of(shapes: list[tuple[int, int]]) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in shapes
    ]


def siglip2_config() -> Siglip2Config:
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = {"vocab_size": len(TOKENS), "max_position_embeddings": CONTEXT, "projection_size": 32}
    return Siglip2Config(
        text_config=TOWER | ids | text, vision_config=TOWER | {"num_patches": 16, "patch_size": PATCH_SIZE}
    )


def siglip2_images(**settings) -> Siglip2ImageProcessorPil:
    return Siglip2ImageProcessorPil(**{"patch_size": PATCH_SIZE, "max_num_patches": MAX_NUM_PATCHES} | settings)


def siglip2_tokenizer() -> Siglip2Tokenizer:
    """SigLIP 2's kind with letters alone: it lowers texts, and changes nothing else."""
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    options = {"model_max_length": CONTEXT, "padding_side": "right", "add_eos_token": True}
    return Siglip2Tokenizer(vocab=vocabulary, merges=[], **options)


def write_naflex_folder(folder: Path) -> Siglip2Model:
    """A folder of transformers' with random weights; returns its model."""
    peer = scatter_weights(Siglip2Model(siglip2_config()))
    peer.save_pretrained(folder)
    Siglip2Processor(siglip2_images(), siglip2_tokenizer()).save_pretrained(folder)
    return peer


def tiny_naflex(folder: Path) -> tuple[Siglip2Model, HFCLIPSiglipModel]:
    """transformers' model and ours with its weights."""
    peer = write_naflex_folder(folder)
    model, report = HFCLIPSiglipModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return peer, model.eval()
