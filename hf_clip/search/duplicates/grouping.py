"""Groups around a best image: each member was compared with it, so that none is joined through a third."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Found = TypeVar("Found")


def make_groups(
    order: Iterable[int],
    neighbors: Mapping[int, Sequence[int]],
    same: Callable[[int, int], Found | None],
    choose: Callable[[Sequence[int]], int],
) -> list[tuple[int, dict[int, Found]]]:
    """Groups of images, each in one at most.

    Images are taken in order, each with its neighbors that are the same image. Where one of these is better it takes
    the place of the first, and all are compared with it; those that are not the same as it are free again.

    Args:
        order: images, those that are likely to be the best first.
        neighbors: images that may be the same as one.
        same: what is known of two that are the same image (the first one would stay), None for others.
        choose: the best of several.

    Returns:
        (best, what is known of each member) of each group.
    """
    taken: set[int] = set()
    groups = []

    def members_of(best: int, among: Iterable[int]) -> dict[int, Found]:
        found = {}
        for one in dict.fromkeys(among):
            if one != best and one not in taken and (known := same(best, one)) is not None:
                found[one] = known
        return found

    for first in order:
        if first in taken:
            continue
        best, members = first, members_of(first, neighbors.get(first, ()))
        if not members:
            continue
        better = choose([first, *members])
        if better != first:
            # The first one matched it, so that the group has two at least.
            best, members = better, members_of(better, [first, *members, *neighbors.get(better, ())])
        if members:
            groups.append((best, members))
            taken |= {best, *members}
    return groups
