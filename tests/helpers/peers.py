"""The peers of requirements-peers.txt, imported where torchvision is missing.

Parts of `openai-clip` are loaded by path. The whole of it, `open_clip_torch` and timm are imported over a stub of
torchvision that holds the names which their imports touch: their models run, and of transforms those of
`torchvision_transforms.py`.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

import packaging.version
import pytest

from tests.helpers import torchvision_transforms


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


# Module of torchvision -> the classes that are imported from it.
TORCHVISION_NAMES = {
    "torchvision": (),
    "torchvision.datasets": ("CIFAR10", "CIFAR100", "FashionMNIST", "ImageFolder", "KMNIST", "MNIST"),
    "torchvision.ops": (),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
    "torchvision.transforms": (
        "CenterCrop",
        "ColorJitter",
        "Compose",
        "Grayscale",
        "InterpolationMode",
        "Normalize",
        "RandomResizedCrop",
        "Resize",
        "ToTensor",
    ),
    "torchvision.transforms.functional": (
        "InterpolationMode",
        "crop",
        "get_dimensions",
        "pad",
        "resize",
        "to_tensor",
    ),
}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@contextmanager
def stubbed_torchvision() -> Iterator[None]:
    """`import torchvision` gives the stub within, and fails again behind: transformers takes a broken one for real."""
    from transformers.utils import is_torchvision_available

    # transformers remembers its first answer: let that one be the truth.
    if is_torchvision_available():
        yield
        return
    for name, classes in TORCHVISION_NAMES.items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        for class_name in classes:
            stub = type(class_name, (), {name.upper(): name for name in INTERPOLATIONS})
            setattr(module, class_name, getattr(torchvision_transforms, class_name, stub))
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in TORCHVISION_NAMES:
            del sys.modules[name]


@functools.cache
def load_openai_clip() -> ModuleType:
    """The package `clip`. Skips the test where the peer is not installed."""
    try:
        distribution("openai-clip")
    except PackageNotFoundError:
        pytest.skip("openai-clip is not installed: pip install --no-deps -r requirements-peers.txt")
    # It asks setuptools, which has it no more, for a library that is installed.
    stub = ModuleType("pkg_resources")
    vars(stub)["packaging"] = packaging
    with stubbed_torchvision(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", stub)
        return importlib.import_module("clip")


@functools.cache
def load_open_clip() -> ModuleType:
    """The package `open_clip`. Skips the test where the peer is not installed."""
    try:
        distribution("open_clip_torch")
    except PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed: pip install --no-deps -r requirements-peers.txt")
    with stubbed_torchvision():
        return importlib.import_module("open_clip")


@functools.cache
def load_timm() -> ModuleType:
    """The package `timm`, found by later imports too. Skips the test where the peer is not installed."""
    try:
        distribution("timm")
    except PackageNotFoundError:
        pytest.skip("timm is not installed: pip install --no-deps -r requirements-peers.txt")
    with stubbed_torchvision():
        return importlib.import_module("timm")
