"""Duplicates: one image in several files, as equal bytes, equal pixels, or edited; and what is merely similar, apart.

`find_duplicates` makes a plan, `apply_plan` moves what it names into a trash folder, `undo_plan` moves it back.
"""

from .finding import find_duplicates
from .moving import Moves, apply_plan, undo_plan
from .plan import Duplicate, DuplicatePlan, Group, PlannedImage

__all__ = [
    "Duplicate",
    "DuplicatePlan",
    "Group",
    "Moves",
    "PlannedImage",
    "apply_plan",
    "find_duplicates",
    "undo_plan",
]
