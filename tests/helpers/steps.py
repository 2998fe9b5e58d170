"""Single steps of training for tests: a recipe of tiny towers, a batch of squares, and what updates by it."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_clip.training import load_recipe
from hf_clip.training.build import build_start
from hf_clip.training.config import TrainConfig
from hf_clip.training.decisions import decide
from hf_clip.training.ema import WeightAverage
from hf_clip.training.prepare import prepare
from hf_clip.training.progress import ProgressLog
from hf_clip.training.step import TrainStep
from hf_clip.training.stream import Batch
from hf_clip.training.trainer import Progress, Trainer
from tests.helpers.squares import NAMES, SIZE, recipe, square, write_recipe

VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
AUGMENTATION = {"rotation": 10, "flip": 0.5, "hue": 0.1, "cutout": 0.5, "mixup": 0.4}


def configure(folder: Path, overrides=(), **changes) -> TrainConfig:
    """A recipe with a ViT, augmentation and keywords; nothing of its data is read."""
    content = recipe("none.parquet", batch_size=24, augmentation=AUGMENTATION, steps=5, **changes)
    content["model"]["config"]["vision_config"] = {**VIT, "image_size": SIZE, "patch_size": 4}
    content["model"]["config"]["text_config"].update(VIT)
    content["data"] |= {"keyword_columns": ["keywords"], "keyword_weight": 0.5}
    content["optimizer"] = {"learning_rate": 1e-3, "warmup_steps": 1, "epsilon": 1e-4}
    return load_recipe(write_recipe(folder / "recipe.yaml", content), list(overrides))


def make_batch(size: int = 24, rank: int = 0, world_size: int = 1, seed: int = 0) -> Batch:
    """A rank's share of a batch in which some pairs show one concept."""
    names = [NAMES[index * 5 % 18] for index in range(size)]
    own = range(rank * size // world_size, (rank + 1) * size // world_size)
    images = [np.asarray(Image.open(io.BytesIO(square(names[index], seed + index)))) for index in own]
    return Batch(
        images=torch.from_numpy(np.stack(images)),
        captions=[names[index] for index in own],
        keywords=[" ".join(names[index].split(" ")[1 : 2 + index % 3]) for index in own],
        concept_ids=torch.tensor([NAMES.index(names[index]) for index in own]),
        may_flip=torch.tensor([index % 2 == 0 for index in own]),
        may_crop=torch.tensor([index % 3 == 0 for index in own]),
        sample_ids=np.array([100 * seed + index for index in own]),
        epochs=np.array([index % 3 for index in own]),
        position={},
    )


def make_train_step(config: TrainConfig, dtype: torch.dtype = torch.float64) -> TrainStep:
    """As `train` makes it, on the ranks that there are."""
    decisions = decide(config)
    model, processor = build_start(config.model, NAMES, config.seed)
    objective, optimizer = prepare(model.to(dtype), config, decisions)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    return TrainStep(config, decisions, objective, optimizer, processor, average)


def make_trainer(config: TrainConfig, folder: Path, train_step: TrainStep) -> Trainer:
    """A run at its first step, which says nothing."""
    return Trainer(config, folder, train_step, Progress(), ProgressLog(folder, config.steps, is_main=False))


def gradients(train_step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in train_step.model.named_parameters() if each.grad is not None}


def weights(train_step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in train_step.model.named_parameters()}


def assert_close(ours: dict, theirs: dict, tolerance: float = 1e-10) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(each.abs().max() for each in theirs.values())
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() < tolerance * max(expected.abs().max(), 1e-3 * largest), name
