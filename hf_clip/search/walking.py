"""The files of a folder with size and time, fast: what an update compares with its rows."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hf_clip.model.image_decoding_hf_clip import IMAGE_SUFFIXES, OTHER_SUFFIXES, is_image
from hf_clip.model.image_plugins_hf_clip import RAW_SUFFIXES, can_read_raw

from .errors import SearchError, one_line

VIDEO_SUFFIXES = frozenset(".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .flv .3gp .mts .m2ts".split())


@dataclass
class FoundFiles:
    """What a folder holds.

    Attributes:
        images: (path to open, size in bytes, time of the last change in nanoseconds) by path relative to the folder,
            with slashes. Bytes of a name that are no UTF-8 stand as `\\xe9` in the relative path.
        others: how many files of kinds that are not read, by suffix.
        unreadable: folders below that could not be read, relative, each with the reason.
    """

    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


def find_files(root: Path, *skipped: Path) -> FoundFiles:
    """All images under `root`, links followed, each folder once; hidden files and folders are skipped.

    Args:
        skipped: folders that are not looked into, such as the index itself.

    Raises:
        SearchError: `root` itself cannot be read.
    """
    found = FoundFiles()
    visited = {os.path.realpath(folder) for folder in skipped}
    # Folders before links to folders, so that a file has its plainest name.
    folders, links = [("", str(root))], []
    while folders or links:
        relative, folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not relative:
                raise SearchError(
                    f"folder {str(root)!r} cannot be read ({one_line(error)}): is it mounted?"
                ) from error
            found.unreadable[relative.rstrip("/")] = one_line(error)
            continue
        for entry in listed:
            _note(entry, relative, found, folders, links)
    return found


def _note(entry: os.DirEntry, relative: str, found: FoundFiles, folders: list, links: list) -> None:
    name = entry.name
    if name.startswith("."):
        return
    try:
        if entry.is_dir():
            if not name.startswith("__"):
                (links if entry.is_symlink() else folders).append((f"{relative}{_text(name)}/", entry.path))
            return
        suffix = os.path.splitext(name)[1].lower()
        if not _is_image(suffix, entry.path):
            found.others[suffix or "without a suffix"] += 1
            return
        state = entry.stat()
    except OSError:
        # A link to nowhere, or a file that went while the folder was listed.
        found.others["links to nothing"] += 1
        return
    found.images[f"{relative}{_text(name)}"] = (entry.path, state.st_size, state.st_mtime_ns)


def _is_image(suffix: str, path: str) -> bool:
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in RAW_SUFFIXES:
        return can_read_raw()
    return suffix not in OTHER_SUFFIXES and suffix not in VIDEO_SUFFIXES and is_image(path)


def _text(name: str) -> str:
    """A name as text that any table takes."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
