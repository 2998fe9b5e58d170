"""Small CoCas with random weights: one of OpenCLIP's own code, and one of ours as recipes make it."""

import torch

from hf_clip.conversion import load
from hf_clip.training.build import build_start
from hf_clip.training.config import ModelConfig
from tests.helpers.checkpoints import open_clip_config, tokenizer, write_open_clip_folder
from tests.helpers.coca_recipes import coca_recipe
from tests.helpers.squares import NAMES

WIDTH = 48


def coca_model_cfg(**multimodal) -> dict:
    """OpenCLIP's config of a CoCa like its published ones: all widths but the image tower's are one."""
    decoder = {
        "context_length": 24,
        "vocab_size": 560,
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
        "attn_pooler_heads": 8,
    }
    pooling = {"attentional_pool": True, "attn_pooler_heads": 3, "attn_pooler_queries": 6, "output_tokens": True}
    model_cfg = open_clip_config(
        vision=pooling, text={"embed_cls": True, "output_tokens": True}, custom_text=True, embed_dim=WIDTH
    )
    decoder["vocab_size"] = model_cfg["text_cfg"]["vocab_size"]
    return model_cfg | {"multimodal_cfg": decoder | multimodal}


def write_coca_folder(folder, **multimodal) -> torch.nn.Module:
    """Writes the folder, and returns OpenCLIP's model of it."""
    return write_open_clip_folder(folder, coca_model_cfg(**multimodal), tokenizer=tokenizer("!"))


def load_coca(folder):
    """Our model and processor of the folder, and OpenCLIP's model."""
    peer = write_coca_folder(folder)
    return *load(folder), peer


def small_coca(seed: int = 0):
    """A model of ours and its processor, which writes a caption of some letters."""
    config = ModelConfig(vocabulary_size=540, config=coca_recipe("none")["model"]["config"])
    return build_start(config, NAMES, seed)
