"""What a recipe that cannot be run raises."""

import math
from dataclasses import is_dataclass
from typing import Any


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, the value and the fix."""

    exit_code = 2


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)


def require_finite(name: str, value: Any) -> None:
    """Raises for a NaN or an infinity, however deep it lies."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for key, item in value.items():
            require_finite(f"{name}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            require_finite(name, item)
    else:
        require(not isinstance(value, float) or math.isfinite(value), f"{name}={value} is no finite number.")
