"""Packaging of hf_clip: one import package, whose rooms `conversion` and `training` stand beside it in the tree."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "hf_clip/__init__.py").read_text("utf-8"), re.M)[1]

setup(
    name="hf-clip",
    version=VERSION,
    description="CLIP, native to the Hugging Face stack: train, load, judge and share it as any model",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "hf_clip/prompts/LICENSE*", "hf_clip/vocabulary/LICENSE*"],
    python_requires=">=3.11",
    # The folders have plain names for people; installed under those they would clash with anybody's.
    packages=[
        *find_packages(include=["hf_clip", "hf_clip.*"]),
        "hf_clip.conversion",
        "hf_clip.training",
        "hf_clip.training.stream",
    ],
    package_dir={"hf_clip.conversion": "conversion", "hf_clip.training": "training"},
    package_data={
        "hf_clip": [
            "architectures/*.json",
            "prompts/*.json",
            "prompts/LICENSE*",
            "vocabulary/*.gz",
            "vocabulary/LICENSE*",
            "model_card_template.md",
        ],
        "hf_clip.training": ["recipes/*.yaml"],
    },
    install_requires=[
        "torch>=2.8",
        "transformers>=5.20",
        "tokenizers",
        "safetensors",
        "huggingface_hub>=2",
        "pillow",
        "numpy",
        "ftfy",
    ],
    extras_require={
        "train": [
            "datasets>=5",
            "accelerate>=1.15",
            "fsspec",
            "omegaconf>=2.3",
            "pyarrow",
            "pyyaml",
            "scikit-learn",
            "tqdm",
        ],
        "demo": ["matplotlib", "tensorboard"],
        "dev": ["pytest>=8", "hypothesis", "ruff", "setuptools>=70.1"],
    },
    entry_points={"console_scripts": ["hf-clip = hf_clip.cli:main"]},
)
