"""Which files are images: those that are named, those of folders, and those that a pattern matches."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hf_clip.model.image_decoding_hf_clip import is_image_file

from .errors import SourceError, one_line


def find_images(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """The images that files, folders and patterns name.

    Args:
        paths: a file stands for itself, whatever its name; a folder for the images in it and below it, links followed,
            hidden ones excepted; a pattern such as "photos/**/*.png" for the files and folders that match.

    Returns:
        The paths in the order of `paths`, those of a folder or pattern in natural order (`2.png` before `10.png`). An
        image that several of them lead to comes once, by its shortest name.

    Raises:
        SourceError: one of them is empty, does not exist, or holds no image.
    """
    found: list[str] = []
    for item in map(str, [paths] if isinstance(paths, str | Path) else paths):
        if not item:
            raise SourceError("'' names no image. The current folder is '.'; a variable of the shell may be empty.")
        matches = [item] if os.path.exists(item) else sorted(glob.glob(item, recursive=True), key=natural_key)
        images = [image for match in matches for image in _images_of(match)]
        if not images:
            raise SourceError(f"{item}: there is no such image, and no folder of that name with images.")
        found += images
    # By the shortest name: links among folders lead to a file by many.
    names: dict[tuple[str, str], str] = {}
    for name in sorted(found, key=len):
        folder, base = os.path.split(name)
        names.setdefault((os.path.realpath(folder), base), name)
    kept = set(names.values())
    return [name for name in dict.fromkeys(found) if name in kept]


def _images_of(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted((str(file) for file in walk_files(Path(path)) if is_image_file(file)), key=natural_key)


def walk_files(folder: Path) -> list[Path]:
    """All files under `folder`, sorted by path, links to folders followed; hidden ones are skipped.

    Raises:
        SourceError: a folder cannot be read.
    """
    files: list[Path] = []
    waiting = [(folder, frozenset[str]())]
    while waiting:
        at, above = waiting.pop()
        real = os.path.realpath(at)
        # A link to a folder that it lies in would be followed forever.
        if real in above:
            continue
        try:
            with os.scandir(at) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise SourceError(
                f"folder {str(at)!r} cannot be read ({one_line(error)}). Check its permissions."
            ) from error
        for entry in visible:
            if not entry.is_dir():
                files.append(at / entry.name)
            elif not entry.name.startswith("__"):
                waiting.append((at / entry.name, above | {real}))
    return sorted(files)


def natural_key(text: str) -> tuple[list, str]:
    """A sorting key by which numbers in names are in the order of their values: "2" before "10"."""
    parts = re.split(r"(\d+)", text)
    # Digits and words take turns, so that numbers are compared with numbers alone.
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], text
