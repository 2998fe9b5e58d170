"""Entry points of `torch.hub`, as OpenAI's repository has them.

    model, preprocess = torch.hub.load("OWNER/REPOSITORY", "ViT_B_32")
    tokenize = torch.hub.load("OWNER/REPOSITORY", "tokenize")

`torch.hub.load("PATH", "ViT_B_32", source="local")` takes a clone. The package need not be installed for it.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import hf_clip

dependencies = [
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "PIL",
    "numpy",
    "ftfy",
    "yaml",
]

if find_spec("hf_clip.conversion") is None:
    # In a clone these packages stand beside `hf_clip`, not in it.
    hf_clip.__path__.append(str(Path(__file__).parent))

from hf_clip.compat import clip as _clip  # noqa: E402  behind the line that makes it importable


def _entry_point(name: str):
    def load(**kwargs):
        return _clip.load(name, **kwargs)

    load.__doc__ = f"{name} with the transform that makes its pixels. Arguments: device, jit, download_root."
    return load


def tokenize():
    """The function `clip.tokenize`."""
    return _clip.tokenize


# Names of functions have no slash nor "@": ViT-L/14@336px is ViT_L_14_336px.
globals().update({re.sub(r"\W", "_", name): _entry_point(name) for name in _clip.available_models()})
