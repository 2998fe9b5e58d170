"""An exponential moving average of the weights, which is what is evaluated and exported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .distributed import on_main, sharded_like


class WeightAverage:
    """The average of a model's trained weights over its last updates, about `1 / (1 - decay)` of them.

    In the first updates the average is over the fewer that there were, as `decay` is then (1 + updates) / (10 +
    updates). Weights that do not learn and buffers are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self._weights = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._averages = {name: each.detach().clone() for name, each in self._weights.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Takes one update of the weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self._averages.values()), list(self._weights.values()), 1 - decay
        )
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average within, and its own weights again behind."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # By value: wrappers hold on to the parameters' storage.
        for name, weight in self._weights.items():
            own = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(own)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by the weights' names, sharded as these are."""
        return self._averages

    def state_dict(self, *, is_whole: bool = True) -> dict[str, Any]:
        """What the main process writes, or without the tensors. Collective where weights are sharded."""
        if not is_whole:
            return {"updates": self.updates}
        return {"updates": self.updates, "weights": {name: on_main(each) for name, each in self._averages.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        if "weights" not in state:
            return
        for name, average in self._averages.items():
            average.copy_(sharded_like(average, state["weights"][name]))
