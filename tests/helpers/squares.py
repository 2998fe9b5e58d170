"""Tiny training data for tests: colored squares with captions, a recipe that learns them in seconds, and its stream.

A square's color and corner make its caption, "a red square at the top left": 6 x 4 concepts that a small convnet
can tell apart within a few dozen steps.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

SIZE = 16
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 60, 220),
    "yellow": (230, 220, 40),
    "black": (10, 10, 10),
    "purple": (150, 40, 190),
}
CORNERS = {"top left": (1, 1), "top right": (1, 8), "bottom left": (8, 1), "bottom right": (8, 8)}
NAMES = [f"a {color} square at the {corner}" for color in COLOURS for corner in CORNERS]


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def square(name: str, seed: int) -> bytes:
    """A PNG of what `NAMES` has, its color and place a little off, as the seed has it."""
    draw = np.random.default_rng([seed, NAMES.index(name)])
    color, corner = name.split(" ")[1], name.split(" at the ")[1]
    row, column = np.array(CORNERS[corner]) + draw.integers(0, 2, 2)
    pixels = np.full((SIZE, SIZE, 3), 255, np.uint8)
    pixels[row : row + 6, column : column + 6] = np.clip(np.array(COLOURS[color]) + draw.integers(-20, 20, 3), 0, 255)
    return encode(pixels)


def rows(copies: int, first_seed: int = 0) -> list[dict]:
    """`copies` images of every name."""
    return [
        {"image": {"bytes": square(name, seed), "path": None}, "caption": name, "keywords": name.split(" ")[1:2]}
        for seed in range(first_seed, first_seed + copies)
        for name in NAMES
    ]


def write_parquet(file: Path, content: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(content), file)
    return file


def recipe(data: Path | str, **changes) -> dict:
    """A recipe for a run of a few seconds; `changes` replace whole entries of its top level."""
    tower = {"hidden_size": 32, "hidden_act": "gelu"}
    vision = {**tower, "tower": "convnet", "image_size": SIZE, "stem_width": 8, "stage_widths": [32]}
    vision |= {"stage_depths": [1], "pool_grid": 2}
    text = {**tower, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text["max_position_embeddings"] = 16
    return {
        "steps": 6,
        "batch_size": 16,
        "log_every": 1,
        "eval_every": 100,
        "checkpoints": {"save_every": 100},
        "mixed_precision": "no",
        "model": {
            "vocabulary_size": 540,
            "config": {"projection_dim": 16, "vision_config": vision, "text_config": text},
        },
        "data": {"train": [str(data)], "shuffle_block": 1000},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
        **changes,
    }


def write_recipe(file: Path, content: dict) -> Path:
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file
