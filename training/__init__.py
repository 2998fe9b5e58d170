"""Training a dual encoder: recipe, stream of pairs, optimizer, checkpoints, loop."""

from .config import RecipeError, TrainConfig, list_recipes, load_recipe
from .loop import train

__all__ = ["RecipeError", "TrainConfig", "list_recipes", "load_recipe", "train"]
