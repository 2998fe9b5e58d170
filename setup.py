"""Packaging of hf_clip: `conversion`, `training` and `cli` stand beside the import package in the tree."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "hf_clip/__init__.py").read_text("utf-8"), re.M)[1]

# filelock keeps a second writer out of an index.
SEARCH = ["lancedb>=0.40", "filelock>=3.20", "pyarrow>=24", "tqdm>=4.67"]
RAY = [*SEARCH, "ray>=2.50"]
# The last two are what FastAPI is built on.
APP = [*SEARCH, "fastapi", "uvicorn", "pydantic>=2", "starlette"]
# Of fsspec's own release: each asks for the other's.
S3 = ["s3fs>=2024.6"]
EVAL = [
    "datasets>=5",
    "accelerate>=1.15",
    # Names of many shards.
    "braceexpand>=0.1.7",
    "fsspec>=2024.6",
    "pyarrow>=24",
    "scikit-learn>=1.6",
    "scipy>=1.14",
    "tqdm>=4.67",
]
# Scores of captions.
CAPTIONS = ["sacrebleu>=2.5", "rouge-score>=0.1.2"]
# torch.onnx is built on the first two.
EXPORT = ["onnx", "onnxscript", "onnxruntime", "openvino"]
DOCS = ["mkdocs-material", "mkdocstrings[python]"]

# Where the repository is to be published: see RELEASING.md.
REPOSITORY = "https://github.com/hf-clip/hf_clip"


def readme() -> str:
    """README.md as the package index shows it, which knows none of the repository's files."""
    text = (ROOT / "README.md").read_text("utf-8")
    text = re.sub(r"(!\[[^\]]*\])\((?!http)([^)]+)\)", rf"\1({REPOSITORY}/raw/main/\2)", text)
    return re.sub(r"(?<!!)(\[[^\]]*\])\((?!http|#)([^)]+)\)", rf"\1({REPOSITORY}/blob/main/\2)", text)


setup(
    name="hf-clip",
    version=VERSION,
    description="CLIP, native to the Hugging Face stack: load, classify, embed, train, evaluate and share",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The hf_clip authors",
    project_urls={
        "Homepage": REPOSITORY,
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    },
    keywords="CLIP, SigLIP, contrastive learning, zero-shot classification, image-text retrieval, embeddings, search",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE", "hf_clip/assets/prompts/LICENSE*", "hf_clip/assets/vocabulary/LICENSE*"],
    python_requires=">=3.11",
    # The folders have plain names for people; installed under those they would clash with anybody's.
    packages=[
        *find_packages(include=["hf_clip", "hf_clip.*"]),
        "hf_clip.conversion",
        "hf_clip.conversion.safe_torch",
        "hf_clip.training",
        "hf_clip.training.stream",
        "hf_clip_cli",
    ],
    package_dir={"hf_clip.conversion": "conversion", "hf_clip.training": "training", "hf_clip_cli": "cli"},
    package_data={
        "hf_clip": [
            "py.typed",
            "assets/architectures/*.json",
            "assets/prompts/*.json",
            "assets/prompts/LICENSE*",
            "assets/vocabulary/*.gz",
            "assets/vocabulary/LICENSE*",
            "assets/model_card_template.md",
            "serving/page/*",
            "assets/open_clip_pretrained.json",
        ],
        "hf_clip_cli": ["py.typed"],
        "hf_clip.training": ["recipes/*.yaml"],
    },
    install_requires=[
        "torch>=2.8",
        # 5.20 fails on the first config. 5.40 removes what 5.24 announces as deprecated, and is not tried yet.
        "transformers>=5.21,<5.40",
        "tokenizers>=0.23",
        "safetensors>=0.8",
        "huggingface_hub>=2",
        "pillow>=11.3",
        "numpy>=2.0",
        "ftfy>=6.2",
        "pyyaml>=6.0.2",
    ],
    extras_require={
        "eval": EVAL,
        # filelock keeps a second process out of a run's folder.
        "train": [*EVAL, "filelock>=3.20"],
        "s3": S3,
        "search": SEARCH,
        "ray": RAY,
        "captions": CAPTIONS,
        "export": EXPORT,
        "app": APP,
        # matplotlib before 3.11.1 cuts off labels that are wider than their axes.
        "demo": [*SEARCH, "matplotlib>=3.11.1", "tensorboard>=2.18"],
        "test": [
            *RAY,
            *EXPORT,
            *APP,
            *CAPTIONS,
            "pytest>=8",
            "pytest-xdist",
            "hypothesis",
            "setuptools>=70.1",
            "simplejpeg",
            # Browsers, and what a Space of a model runs.
            "playwright",
        ],
        "docs": DOCS,
        "dev": ["ruff", "basedpyright"],
    },
    entry_points={"console_scripts": ["hf-clip = hf_clip_cli.main:main"]},
)
