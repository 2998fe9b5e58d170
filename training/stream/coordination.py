"""What the processes of a run tell each other of their data: how far the lanes are, and that one cannot go on."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from .errors import DataError
from .order import LanePosition

_T = TypeVar("_T")

# JSON-able: "lanes" is how many there are, "states" has what `LaneState.to_json` gives by the index of a lane as text.
Position = dict[str, Any]

# How long a process waits for another one: sources on a network may take their time.
TIMEOUT = timedelta(hours=1)


@dataclass
class LaneState:
    """How far a lane is, and what its first pass through each source found: rows read, those skipped by reason."""

    position: LanePosition = field(default_factory=LanePosition)
    rows_read: int = 0
    skipped: Counter = field(default_factory=Counter)
    first_skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        at = [self.position.epoch, self.position.block, self.position.piece, self.position.row, self.position.offset]
        first = {"first_skipped": self.first_skipped} if self.first_skipped else {}
        return {"at": at, "rows_read": self.rows_read, "skipped": dict(self.skipped), **first}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "LaneState":
        skipped = Counter(state["skipped"])
        return cls(LanePosition(*state["at"]), state["rows_read"], skipped, state.get("first_skipped"))


def merge_positions(positions: Iterable[Position]) -> Position:
    """One position of all lanes from those of the processes; empty where all are at the start."""
    merged: Position = {}
    for position in filter(None, positions):
        if merged and merged["lanes"] != position["lanes"]:
            raise ValueError(f"positions of {merged['lanes']} and of {position['lanes']} lanes are of two runs.")
        states = {**merged.get("states", {}), **position.get("states", {})}
        merged = {**position, "states": dict(sorted(states.items(), key=lambda item: int(item[0])))}
    return merged


class Coordinator:
    """Exchanges small facts with the other processes, over a group of its own on CPUs. A single process needs none.

    Every process must make one, and call each method as often as the others do.
    """

    def __init__(self, world_size: int, timeout: timedelta = TIMEOUT):
        self.group: dist.ProcessGroup | None = None
        # Without a launcher, each rank is on its own.
        if world_size > 1 and dist.is_available() and dist.is_initialized():
            # Every process is one of this group's, whose members get no number in its place.
            self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))

    def sum(self, numbers: list[int]) -> list[int]:
        """The sums over all processes."""
        if self.group is None:
            return numbers
        total = torch.tensor(numbers)
        try:
            dist.all_reduce(total, group=self.group)
        except RuntimeError as error:
            raise DataError(
                f"Another process has ended, or cannot be reached ({str(error).splitlines()[0][:200]}). Its last "
                "lines say why; resume the run once that is fixed."
            ) from error
        return total.tolist()

    def share(self, make: Callable[[], _T]) -> _T:
        """What `make` gives on the first process, on all, or its error: what takes long is done once."""
        if self.group is None:
            return make()
        found: list[Any] = [None, None]
        problem = None
        if dist.get_rank(self.group) == 0:
            try:
                found[0] = make()
            except Exception as error:
                problem = error
                found[1] = error if isinstance(error, ValueError) else DataError(f"Process 0: {error}")
        dist.broadcast_object_list(found, src=0, group=self.group)
        if found[1] is not None:
            raise problem or found[1]
        return cast(_T, found[0])

    def wait(self) -> None:
        """Waits for all processes."""
        self.sum([0])

    def gather(self, item: Any) -> list[Any]:
        """The items of all processes."""
        if self.group is None:
            return [item]
        items: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(items, item, group=self.group)
        return items

    def raise_on_all(self, error: Exception | None) -> None:
        """Raises on every process once one of them has failed. All call it, when `sum` says so."""
        messages = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        raise DataError("; ".join(f"Process {rank}: {text}" for rank, text in enumerate(messages) if text))
