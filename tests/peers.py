"""Parts of PyPI's `openai-clip`, loaded by path: importing the package itself needs torchvision."""

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

import pytest


def load_openai_module(name: str) -> ModuleType:
    """`model` or `simple_tokenizer` of `openai-clip`. Skips the test where the peer is not installed."""
    try:
        path = distribution("openai-clip").locate_file(f"clip/{name}.py")
    except PackageNotFoundError:
        pytest.skip("openai-clip is not installed: pip install --no-deps -r requirements-peers.txt")
    spec = importlib.util.spec_from_file_location(f"openai_clip_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_openai_tokenize():
    """OpenAI's `clip.tokenize(text, truncate=True)` for one text, without the zeros behind the end token.

    `clip/clip.py` holds it and imports torchvision; its few lines about truncation are repeated here.
    """
    tokenizer = load_openai_module("simple_tokenizer").SimpleTokenizer()
    start, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]

    def tokenize(text: str, context_length: int = 77) -> list[int]:
        return [start, *tokenizer.encode(text)[: context_length - 2], end]

    return tokenize
