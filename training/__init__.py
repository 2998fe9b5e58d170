"""Training a dual encoder: recipe, stream of pairs, optimizer, checkpoints, loop."""

from importlib import import_module

# On first use: `hf-clip doctor` runs where what training needs is not installed.
_HOME = {
    "RecipeError": "recipe_error",
    "TrainConfig": "config",
    "greedy_soup": "mixing",
    "list_recipes": "recipe",
    "load_recipe": "recipe",
    "wise_ft": "mixing",
    "recipe_reference": "recipe_reference",
    "train": "loop",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_clip.training' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
