"""Small random checkpoints in the formats of others, made by their own code, and what that code makes of them."""

import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from hf_clip import HFCLIPTokenizer
from hf_clip.conversion.converting import plain_tokenizer
from tests.helpers.peers import load_open_clip, load_openai_module
from tools.make_golden_pixels import image_of

TEXTS = ["a red apple", "two snowmen in the snow", "A fire-engine; it's 7 o'clock", "apple " * 40]
IMAGES = [image_of(width, height, "RGB") for width, height in [(64, 64), (71, 64), (50, 90)]]
CONTEXT_LENGTH = 24

OPENAI_SHAPE = {"context_length": 77, "vocab_size": 49408, "transformer_width": 128, "transformer_heads": 2}


@functools.cache
def tokenizer(pad_token: str = "<|endoftext|>") -> HFCLIPTokenizer:
    """A vocabulary of a few hundred tokens."""
    return HFCLIPTokenizer.train(TEXTS * 2, vocab_size=560, model_max_length=CONTEXT_LENGTH, pad_token=pad_token)


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter and statistic drawn again: what initializes to 0 or 1 would hide a tensor in the wrong place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.startswith("logit_"):
            tensor.fill_({"logit_scale": 2.5, "logit_bias": -3.0}[name])
        elif tensor.is_floating_point():
            draw = torch.randn(tensor.shape, generator=generator)
            is_gain = tensor.ndim == 1 and bool(tensor.eq(1).all())
            tensor.copy_(1 + 0.2 * draw if is_gain else draw * (0.2 if tensor.ndim < 2 else tensor[0].numel() ** -0.5))
    return module.eval()


def unit_embeddings(model, pixel_values: torch.Tensor, input_ids: torch.Tensor, **text) -> tuple[torch.Tensor, ...]:
    """Of images and of texts, by a model with `encode_image` and `encode_text`."""
    with torch.no_grad():
        embeddings = model.encode_image(pixel_values), model.encode_text(input_ids, **text)
    return tuple(F.normalize(one, dim=-1) for one in embeddings)


def open_clip_config(vision: dict | None = None, text: dict | None = None, **model_cfg) -> dict:
    """OpenCLIP's config of a small ViT, with knobs."""
    vision_cfg = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text_cfg = {"context_length": CONTEXT_LENGTH, "vocab_size": len(tokenizer()), "width": 48, "heads": 3, "layers": 2}
    text_cfg["hf_tokenizer_name"] = "small"
    cfg = {"embed_dim": 40, "vision_cfg": vision_cfg | (vision or {}), "text_cfg": text_cfg | (text or {})}
    return cfg | model_cfg


def write_open_clip_folder(
    folder: Path, model_cfg: dict, preprocess_cfg: dict | None = None, tokenizer: HFCLIPTokenizer | None = None
) -> torch.nn.Module:
    """A folder for `local-dir:` with random weights; returns its model, by OpenCLIP."""
    open_clip = load_open_clip()
    folder.mkdir()
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (small_clip_tokenizer() if tokenizer is None else plain_tokenizer(tokenizer)).save_pretrained(folder)
    model = randomize(open_clip.create_model(f"local-dir:{folder}", pretrained_text=False))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def openai_model(**vision) -> torch.nn.Module:
    """A small model of `clip.model.CLIP`, half precision where `convert_weights` makes it so."""
    module = load_openai_module("model")
    shape = {"embed_dim": 40, "image_resolution": 32, "vision_layers": 2, "vision_width": 128, "vision_patch_size": 8}
    model = module.CLIP(**(shape | vision), **OPENAI_SHAPE, transformer_layers=2)
    randomize(model)
    module.convert_weights(model)
    return model.eval()


def openai_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What an archive of OpenAI's holds: the state dict and three numbers."""
    visual, text = model.visual, OPENAI_SHAPE
    numbers = (visual.input_resolution, text["context_length"], text["vocab_size"])
    names = ("input_resolution", "context_length", "vocab_size")
    return model.state_dict() | dict(zip(names, map(torch.tensor, numbers), strict=True))


class Scripted(torch.nn.Module):
    """A tree of modules with the tensors of a state dict, which TorchScript saves as it saved OpenAI's models."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        children: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for name, inside in children.items():
            self.add_module(name, Scripted(inside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_openai_archive(file: Path, model: torch.nn.Module) -> Path:
    """What OpenAI published of a model: TorchScript with its tensors and three numbers."""
    torch.jit.save(torch.jit.script(Scripted(openai_state(model))), str(file))
    return file


def small_clip_tokenizer() -> CLIPTokenizer:
    return plain_tokenizer(tokenizer())
