"""What is fast is float32, so that tests' numbers are the same on every processor."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
_own: dict[str, Callable[[], bool]] = {}


def keep_to_float32() -> None:
    """From now on in this process, torch says of the processor that it has no bf16. Nothing is imported for that."""
    if _own or "torch" not in sys.modules:
        return
    cpu = sys.modules["torch"].cpu
    for name in _INSTRUCTIONS:
        _own[name] = getattr(cpu, name)
        setattr(cpu, name, lambda: False)


@contextmanager
def own_precision() -> Iterator[None]:
    """Within, torch says what the processor has."""
    import torch

    keep_to_float32()
    kept = {name: getattr(torch.cpu, name) for name in _INSTRUCTIONS}
    for name, own in _own.items():
        setattr(torch.cpu, name, own)
    try:
        yield
    finally:
        for name, one in kept.items():
            setattr(torch.cpu, name, one)
