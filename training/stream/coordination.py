"""What the processes of a run must know of each other's data: where all lanes stand, and that one cannot go on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .errors import DataError
from .order import Place

# A JSON-able table: "lanes" (their number), "places" (what `LaneState.to_json` has, by the lane's number as text).
Position = dict[str, Any]

# How long a process waits for the pairs of another one: sources on a network may take their time.
PATIENCE = timedelta(hours=1)


@dataclass
class LaneState:
    """Where a lane stands, and what its first pass through each source found: rows read, those left out by reason."""

    place: Place = field(default_factory=Place)
    rows_read: int = 0
    left_out: Counter = field(default_factory=Counter)
    first_left_out: str | None = None

    def to_json(self) -> dict[str, Any]:
        at = [self.place.epoch, self.place.block, self.place.piece, self.place.row, self.place.offset]
        first = {"first_left_out": self.first_left_out} if self.first_left_out else {}
        return {"at": at, "rows_read": self.rows_read, "left_out": dict(self.left_out), **first}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "LaneState":
        left_out = Counter(state["left_out"])
        return cls(Place(*state["at"]), state["rows_read"], left_out, state.get("first_left_out"))


def merge_positions(positions: Iterable[Position]) -> Position:
    """One position of all lanes from those of the processes; empty where all are at the start."""
    whole: Position = {}
    for position in filter(None, positions):
        if whole and whole["lanes"] != position["lanes"]:
            raise ValueError(f"positions of {whole['lanes']} and of {position['lanes']} lanes are of two runs.")
        places = {**whole.get("places", {}), **position.get("places", {})}
        whole = {**position, "places": dict(sorted(places.items(), key=lambda item: int(item[0])))}
    return whole


class Agreement:
    """Talks with the other processes over a group of its own, on CPUs; alone, it has only itself to ask.

    Every process must make one, and call each method as often as the others do.
    """

    def __init__(self, world_size: int):
        self.group = None
        # Without a launcher, ranks stand for themselves.
        if world_size > 1 and dist.is_available() and dist.is_initialized():
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def sum(self, numbers: list[int]) -> list[int]:
        """The sums over all processes."""
        if self.group is None:
            return numbers
        total = torch.tensor(numbers)
        try:
            dist.all_reduce(total, group=self.group)
        except RuntimeError as error:
            raise DataError(
                f"Another process has ended, or cannot be reached ({str(error).splitlines()[0][:200]}): what it wrote "
                "last says why. Then go on with --resume."
            ) from error
        return total.tolist()

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes."""
        if self.group is None:
            return [item]
        items: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(items, item, group=self.group)
        return items

    def stop_together(self, error: Exception | None) -> None:
        """Raises on every process once one of them has failed; to be called by all when `sum` says so."""
        messages = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        raise DataError("; ".join(f"Process {rank}: {text}" for rank, text in enumerate(messages) if text))
