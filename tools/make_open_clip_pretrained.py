"""Make `hf_clip/assets/open_clip_pretrained.json`: where OpenCLIP's published weights are, by architecture and tag.

    pip install --no-deps open_clip_torch
    python tools/make_open_clip_pretrained.py

The table is `pretrained.py` of PyPI's `open_clip_torch` (MIT). Of a transform, only what is not OpenAI's is written.
"""

import importlib
import json
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

TARGET = Path(__file__).parents[1] / "hf_clip/assets/open_clip_pretrained.json"
TRANSFORM = ("mean", "std", "interpolation", "resize_mode")


def read_table() -> dict[str, dict[str, dict]]:
    """OpenCLIP's table, without the package around it, which needs torchvision."""
    package = ModuleType("open_clip")
    package.__path__ = [str(distribution("open_clip_torch").locate_file("open_clip"))]
    sys.modules["open_clip"] = package
    return importlib.import_module("open_clip.pretrained")._PRETRAINED


def row(entry: dict, default: dict) -> dict:
    preprocessing = {key: entry[key] for key in TRANSFORM if entry[key] != default[key]}
    kept = {key: entry[key] for key in ("url", "hf_hub", "quick_gelu") if entry.get(key)}
    return kept | ({"preprocessing": preprocessing} if preprocessing else {})


def main() -> None:
    table = {name: tags for name, tags in read_table().items() if not name.endswith("-quickgelu")}
    default = table["ViT-B-32"]["openai"]
    lines = []
    for name, tags in table.items():
        rows = [f"    {json.dumps(tag)}: {json.dumps(row(entry, default))}" for tag, entry in tags.items()]
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n  }")
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
