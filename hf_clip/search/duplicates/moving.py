"""Moving what a plan names into a trash folder, and back. Nothing is ever deleted, and nothing replaced.

A file is renamed, which is whole or not at all. What is about to be moved stands in a journal in the trash before:
after a kill each file is either where it was or in the trash, and both applying and undoing go on.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from ..errors import SearchError, one_line, writing
from .plan import MOVE, Duplicate, DuplicatePlan, PlannedImage, is_plain

# Hidden, so that nothing which looks for images finds it.
TRASH = ".hf-clip-trash"
JOURNAL = "journal.jsonl"
FILES = "files"


@dataclass
class Moves:
    """What was done.

    Attributes:
        moved: relative paths of files that were moved, by this call.
        already: how many had been moved by an earlier one.
        refused: why files could not be moved back, by relative path.
        trash: the folder that holds them.
    """

    trash: Path
    moved: list[str] = field(default_factory=list)
    already: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def trash_of(plan: DuplicatePlan, trash: str | Path | None = None) -> Path:
    """The folder of a plan's files: that of its id in `trash`, by default in .hf-clip-trash of the images' folder."""
    return (Path(trash) if trash is not None else Path(plan.root) / TRASH) / plan.id


def apply_plan(plan: DuplicatePlan, *, trash: str | Path | None = None) -> Moves:
    """Moves the members of a plan whose action is "move" to the trash folder, each under its relative path.

    Every file is compared with the plan first, the best ones too: if one has changed or is gone nothing is moved.
    Called again after it was stopped, it goes on.

    Args:
        trash: on the disk of the images; by default `.hf-clip-trash` in their folder.

    Raises:
        SearchError: a file is another one than when the plan was made; the trash is on another disk or cannot be
            written to; the images are rows of a table.
    """
    root = Path(plan.root)
    plan.check()
    wanted = [(group.best, member) for group, member in plan.members() if member.action == MOVE]
    folder = trash_of(plan, trash)
    moves = Moves(folder)
    if not wanted:
        return moves
    # A table may be one of the Hub, which is nowhere here.
    if Path(plan.best_root).is_absolute() and not Path(plan.best_root).exists():
        raise SearchError(f"{plan.best_root}, whose images stay, is not there (is it mounted?): nothing was moved.")
    if not root.is_dir():
        reason = "its images are rows of a table, which stay" if root.exists() else "is it mounted?"
        raise SearchError(f"{root} is no folder ({reason}): nothing was moved.")
    inside = os.path.relpath(os.path.realpath(folder), os.path.realpath(root)).split(os.sep)
    if inside[0] != ".." and not any(part.startswith(".") for part in inside):
        raise SearchError(f"`trash={trash}` is among the images, which would be found there: name another folder.")
    with writing(folder, "trash"):
        (folder / FILES).mkdir(parents=True, exist_ok=True)
    if folder.stat().st_dev != root.stat().st_dev:
        raise SearchError(f"`trash={trash}` is on another disk than {root}: name a folder on that disk.")
    # Of all plans together: of two that keep what the other moves, one at a time sees that.
    with _locked(folder.parent):
        left = _to_move(plan, wanted, folder, moves)
        with _Journal(folder) as journal:
            for member in left:
                _move(root / member.path, folder / FILES / member.path, member, journal, moves)
    return moves


def undo_plan(plan: DuplicatePlan, *, trash: str | Path | None = None) -> Moves:
    """Moves back what `apply_plan` moved. A file that has come to stand in its place since then stays, and so does it.

    Raises:
        SearchError: the plan was never applied, or to another `trash`.
    """
    folder, root = trash_of(plan, trash), Path(plan.root)
    if not (folder / JOURNAL).is_file():
        raise SearchError(f"{folder} holds nothing of this plan: it was not applied, or with another `trash`.")
    if not root.is_dir():
        raise SearchError(f"{root} is no folder (is it mounted?): nothing was moved back.")
    moves = Moves(folder)
    with _locked(folder.parent):
        for path in reversed(_journaled(folder)):
            there, back = folder / FILES / path, root / path
            if not os.path.lexists(there):
                if os.path.lexists(back):
                    moves.already += 1
                else:
                    moves.refused[path] = f"it is neither in {folder} nor in {root}: somebody took it away"
                continue
            if os.path.lexists(back):
                moves.refused[path] = f"{back} exists: move it away, and undo again"
                continue
            try:
                back.parent.mkdir(parents=True, exist_ok=True)
                os.rename(there, back)
            except OSError as error:
                moves.refused[path] = one_line(error)
                continue
            moves.moved.append(path)
    return moves


def _to_move(plan: DuplicatePlan, wanted, folder: Path, moves: Moves) -> list[Duplicate]:
    """Members that are where the plan has them; all that the plan relies on is compared with it."""
    root, left = Path(plan.root), []
    already = set(_journaled(folder)) if (folder / JOURNAL).is_file() else set()
    changed = []
    for best, member in wanted:
        there, here = folder / FILES / member.path, root / member.path
        if member.path in already and os.path.lexists(there) and not os.path.lexists(here):
            moves.already += 1
            continue
        if os.path.lexists(there):
            raise SearchError(f"{member.path} is in {folder} and in {root}: undo the plan, or make a new one.")
        changed += _changes(here, member)
        if Path(plan.best_root).is_dir():
            stays = Path(plan.best_root) / best.path
            changed += _changes(stays, best)
            changed += _one_file(here, stays)
        left.append(member)
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise SearchError(f"{changed[0]}{more}: nothing was moved. Make the plan again.")
    return left


def _changes(file: Path, planned: PlannedImage) -> list[str]:
    """A line if the file is not the one that the plan has."""
    try:
        if isinstance(planned, Duplicate) and _is_linked(file, planned.path):
            return [f"{file} has come to be a link, or in a folder that is one, since the plan was made"]
        if file.stat().st_size != planned.size:
            return [f"{file} has changed since the plan was made ({file.stat().st_size} bytes, not {planned.size})"]
        if file_hash(file) != planned.hash:
            return [f"{file} has changed since the plan was made (other content)"]
    except OSError as error:
        return [f"{file} cannot be read ({error.strerror or error})"]
    return []


def _is_linked(file: Path, path: str) -> bool:
    """Whether the last parts of a file's path, those below its root, are links or lead through one."""
    below = [file, *file.parents][: path.count("/") + 1]
    return any(one.is_symlink() for one in below)


def _one_file(here: Path, stays: Path) -> list[str]:
    """A line if what would be moved is what stays, by another spelling or another mount."""
    try:
        # Of several names of one file one may go.
        is_one = os.path.samefile(here, stays) and here.stat().st_nlink == 1
    except OSError:
        return []
    return [f"{here} is {stays} itself, which stays"] if is_one else []


def file_hash(file: Path) -> str:
    """As the index has it, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _move(here: Path, there: Path, member: Duplicate, journal: "_Journal", moves: Moves) -> None:
    with writing(moves.trash, "trash"):
        there.parent.mkdir(parents=True, exist_ok=True)
        journal.note(member.path)
    try:
        os.rename(here, there)
    except OSError as error:
        other_disk = " It lies on another disk." if error.errno == errno.EXDEV else ""
        raise SearchError(
            f"{here} cannot be moved ({error.strerror}).{other_disk} {len(moves.moved)} files were moved before it: "
            "`undo` brings them back."
        ) from error
    moves.moved.append(member.path)


class _Journal:
    """Relative paths of what is about to be moved, one JSON text a line, on the disk before it is moved."""

    def __init__(self, folder: Path):
        self.file = folder / JOURNAL

    def __enter__(self) -> "_Journal":
        with writing(self.file.parent, "trash"):
            self.stream = self.file.open("ab")
            # What a kill cut off is no line.
            if self.stream.tell() and not self.file.read_bytes().endswith(b"\n"):
                self.stream.write(b"\n")
        return self

    def __exit__(self, *error) -> None:
        self.stream.close()

    def note(self, path: str) -> None:
        self.stream.write(json.dumps(path).encode() + b"\n")
        self.stream.flush()
        os.fsync(self.stream.fileno())


def _journaled(folder: Path) -> list[str]:
    found: dict[str, None] = {}
    for line in (folder / JOURNAL).read_bytes().splitlines():
        try:
            path = json.loads(line)
        # What a kill left of a line.
        except (ValueError, RecursionError):
            continue
        if not is_plain(path):
            raise SearchError(f"{folder / JOURNAL} names {path!r}, which nothing here wrote: see to it by hand.")
        found[path] = None
    return list(found)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with writing(folder, "trash"):
        lock = filelock.FileLock(folder / "lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise SearchError(f"{folder} is in use by another process: wait until it is done.") from None
    try:
        yield
    finally:
        lock.release()
