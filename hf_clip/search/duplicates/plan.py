"""A plan: groups of duplicates around the best one of each, in a JSON file that people read and change."""

import json
import os
import posixpath
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import SearchError, writing

FORMAT = 1
# From the surest to the least sure. A fourth kind, similar, is listed apart and never moved.
KINDS = ("same_bytes", "same_pixels", "edited")
MOVE, KEEP = "move", "keep"


@dataclass
class PlannedImage:
    """An image of a plan.

    Attributes:
        path: relative to the folder that it is of; FILE#ROW in a table.
        size, hash: of its file, in bytes, by which a change is noticed.
        width, height: in pixels.
        taken: when, as the camera wrote it.
    """

    path: str
    size: int
    hash: str
    width: int | None = None
    height: int | None = None
    taken: str | None = None


@dataclass
class Duplicate(PlannedImage):
    """An image that is the best one of its group once more.

    Attributes:
        kind: one of KINDS.
        action: "move", or "keep".
        how: in which way it differs from the best one.
        why: why the other one is better, or why it is kept.
        similarity: cosine of both embeddings.
    """

    kind: str = KINDS[0]
    action: str = MOVE
    how: str = ""
    why: str = ""
    similarity: float = 1.0


@dataclass
class Group:
    """One image and its duplicates, each compared with it.

    Attributes:
        best: the one that stays.
        why: why it is the best.
        members: its duplicates.
    """

    best: PlannedImage
    why: str
    members: list[Duplicate] = field(default_factory=list)


@dataclass
class DuplicatePlan:
    """What `find_duplicates` found, and what `apply_plan` moves.

    Attributes:
        root: the folder or table whose duplicates are members.
        against: the one that the best images are of; None where they are of `root` too.
        groups: of duplicates.
        similar: pairs of images whose embeddings are near and whose pixels are not: {"first", "second", "similarity",
            "why"}. They are never moved.
        unreadable: why files could not be compared, by path.
        images: how many were compared.
        names: further names of files that have several, by links, by the name that was compared.
        model: whose embeddings found the pairs.
        made, id: when, and a name for its folder in the trash.
    """

    root: str
    against: str | None = None
    groups: list[Group] = field(default_factory=list)
    similar: list[dict[str, Any]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    images: int = 0
    model: str = ""
    made: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S"))
    id: str = field(default_factory=lambda: f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}")

    @property
    def best_root(self) -> str:
        """Where the best images are."""
        return self.root if self.against is None else self.against

    def members(self) -> Iterator[tuple[Group, Duplicate]]:
        for group in self.groups:
            for member in group.members:
                yield group, member

    def counts(self) -> dict[str, int]:
        """How many members of each kind there are, and how many would be moved, with their bytes."""
        kinds = Counter(member.kind for _, member in self.members())
        moved = [member for _, member in self.members() if member.action == MOVE]
        totals = {"groups": len(self.groups), **{kind: kinds[kind] for kind in KINDS}, "similar": len(self.similar)}
        return totals | {"to_move": len(moved), "bytes_to_move": sum(member.size for member in moved)}

    def save(self, file: str | Path) -> None:
        """Writes it as JSON, whole or not at all."""
        content = {"hf_clip_duplicates": FORMAT, "counts": self.counts(), **asdict(self)}
        target = Path(file)
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with writing(target.parent, "plan"):
            try:
                with aside.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                    json.dump(content, stream, indent=2, ensure_ascii=False)
                    stream.write("\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: str | Path) -> "DuplicatePlan":
        """Reads what `save` wrote, actions changed by hand too. Raises SearchError for anything else."""
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise SearchError(f"`plan={file}` cannot be read ({error}): give what `dedup` wrote.") from error
        if not isinstance(content, dict) or content.get("hf_clip_duplicates") != FORMAT:
            raise SearchError(f"`plan={file}` is no plan of duplicates: give what `dedup` wrote.")
        try:
            groups = [
                Group(
                    PlannedImage(**_known(PlannedImage, group["best"])),
                    group["why"],
                    [Duplicate(**_known(Duplicate, member)) for member in group["members"]],
                )
                for group in content["groups"]
            ]
            plan = cls(**{**_known(cls, content), "groups": groups})
            plan.check()
        except (KeyError, TypeError, AttributeError) as error:
            raise SearchError(f"`plan={file}` lacks something ({error}): make it again.") from error
        return plan

    def check(self) -> None:
        """Raises SearchError for a plan that would move what it keeps, or whose paths lead elsewhere."""
        for name, place in (("root", self.root), ("against", self.against)):
            if not isinstance(place, str | None) or "\0" in (place or ""):
                raise SearchError(f"the plan's {name} {place!r} is no folder: make the plan again.")
        best = {(self.best_root, group.best.path) for group in self.groups}
        seen: set[str] = set()
        if not self.id or "/" in self.id or "\0" in self.id or self.id.startswith("."):
            raise SearchError(f"the plan's id {self.id!r} is no name for a folder: make the plan again.")
        for _, member in self.members():
            if member.action not in (MOVE, KEEP):
                raise SearchError(f"{member.path}: the action {member.action!r} is neither {MOVE} nor {KEEP}.")
            if member.action == KEEP:
                continue
            if not is_plain(member.path):
                raise SearchError(f"{member.path!r} is no path within {self.root}: make the plan again.")
            if (self.root, member.path) in best or member.path in seen:
                raise SearchError(f"{member.path} is both kept and moved, or moved twice: make the plan again.")
            seen.add(member.path)


def is_plain(path: Any) -> bool:
    """Whether it is a relative path within its folder, in its only spelling: two of one file would be two files."""
    if not isinstance(path, str) or not path or "\0" in path or path == "." or path.startswith("/"):
        return False
    return posixpath.normpath(path) == path and path.partition("/")[0] != ".."


def _known(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in content.items() if name in names}
