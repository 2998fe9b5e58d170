"""Prints the largest difference that each test of tests/tools/ meets between a tool with our model and its reference.

    .venv/bin/python tools/tool_differences.py

The differences of docs/tools.md are from here. Every comparison by `torch.testing.assert_close` and by
`numpy.testing.assert_allclose` within a test counts; the largest number that was compared is printed beside.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


class Differences:
    """A plugin of pytest that notes what is compared, by the test that compares it.

    Attributes:
        found: (largest difference, largest number) by test.
    """

    def __init__(self):
        self.found: dict[str, tuple[float, float]] = {}
        self.test = ""
        self.compare = {torch.testing: "assert_close", np.testing: "assert_allclose"}
        for module, name in self.compare.items():
            setattr(module, name, self._noting(getattr(module, name)))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.test = item.nodeid.partition("/")[2]

    def _noting(self, compare):
        def noting(actual: Any, expected: Any, *args: Any, **kwargs: Any) -> None:
            difference, largest = self.found.get(self.test, (0.0, 0.0))
            for one, other in zip(_arrays(actual), _arrays(expected), strict=True):
                difference = max(difference, float(np.abs(one - other).max(initial=0)))
                largest = max(largest, float(np.abs(other).max(initial=0)))
            self.found[self.test] = (difference, largest)
            compare(actual, expected, *args, **kwargs)

        return noting


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """The numbers of a tensor, an array, or of several in a list or a dictionary, one array each."""
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value)]
    is_several = isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], torch.Tensor | np.ndarray)
    for one in value if is_several else [value]:
        yield np.asarray(one.detach() if isinstance(one, torch.Tensor) else one, dtype=np.float64)


if __name__ == "__main__":
    differences = Differences()
    code = pytest.main([str(ROOT / "tests/tools"), "-q", "-p", "no:cacheprovider", *sys.argv[1:]], [differences])
    for test, (difference, largest) in differences.found.items():
        print(f"{difference:8.1e} of numbers up to {largest:8.3g}  {test}")
    sys.exit(code)
