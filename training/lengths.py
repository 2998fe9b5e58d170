"""How many steps a recipe's `epochs` come to, once its data is opened."""

import math
from dataclasses import replace

from .config import TrainConfig
from .recipe_error import RecipeError
from .stream import TrainingData


def resolve_epochs(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """The recipe with `steps`: as many as pass through the data `epochs` times, the last one begun included.

    Rows that cannot be read are not known before, and count.

    Raises:
        RecipeError: the data does not tell how many rows it has without being read.
    """
    if config.epochs is None:
        return config
    pairs = pairs_in_epoch(data, config.data.validation_fraction)
    if pairs is None:
        raise RecipeError(
            f"epochs={config.epochs}: {data.name} does not tell how many rows it has before all is read. Set steps "
            "instead, to epochs x pairs / batch_size."
        )
    return replace(config, steps=max(1, math.ceil(config.epochs * pairs / config.batch_size)), epochs=None)


def pairs_in_epoch(data: TrainingData, validation_fraction: float | None = None) -> float | None:
    """Rows times weights over all sources, less what is held out; None where a source does not know its rows."""
    lengths = [shards.lengths for shards in data.shards]
    if any((rows < 0).any() for rows in lengths):
        return None
    pairs = sum(weight * int(rows.sum()) for weight, rows in zip(data.weights, lengths, strict=True))
    return pairs * (1 - (validation_fraction or 0.0))
