"""Writes docs/recipe.md, the reference of a recipe's keys, from the dataclasses of `training/config.py`.

python tools/make_recipe_reference.py
"""

from pathlib import Path

from hf_clip.training.recipe_reference import recipe_reference

TARGET = Path(__file__).resolve().parents[1] / "docs/recipe.md"
HEAD = """# Recipe reference

Every key of a recipe, with kind, default and meaning: those of the top level first, then a section for each table.
`tools/make_recipe_reference.py` writes this page.

"""


def page() -> str:
    return HEAD + recipe_reference()


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
