"""How many examples a test draws: few in `make test`, many in `make soak`, which sets HF_CLIP_SOAK=1."""

import os
from typing import TypeVar

_T = TypeVar("_T")


def soak_count(quick: _T, full: _T) -> _T:
    """`full` under `make soak`, `quick` otherwise."""
    return full if os.environ.get("HF_CLIP_SOAK") == "1" else quick
