"""The images of a folder, for every part of the package that takes a folder's path."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .image_decoding_hf_clip import is_image_file


def images_in_folder(folder: str | Path) -> list[str]:
    """The paths of the images in a folder and below it, in natural order (`2.png` before `10.png`).

    Links are followed, hidden files and folders are skipped. An image that several links lead to comes once.

    Raises:
        OSError: a folder cannot be read.
    """
    images = [str(file) for file in walk_files(Path(folder)) if is_image_file(file)]
    return without_repeats(sorted(images, key=natural_key))


def walk_files(folder: Path) -> list[Path]:
    """All files under `folder`, sorted by path, links to folders followed; hidden ones are skipped.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[Path] = []
    waiting = [(folder, frozenset[str]())]
    while waiting:
        at, above = waiting.pop()
        real = os.path.realpath(at)
        # A link to a folder that it lies in would be followed forever.
        if real in above:
            continue
        with os.scandir(at) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            if not entry.is_dir():
                files.append(at / entry.name)
            elif not entry.name.startswith("__"):
                waiting.append((at / entry.name, above | {real}))
    return sorted(files)


def without_repeats(paths: Iterable[str]) -> list[str]:
    """`paths` in their order, each file once, by its shortest name: links among folders lead to a file by many."""
    found = list(paths)
    names: dict[tuple[str, str], str] = {}
    for name in sorted(found, key=len):
        folder, base = os.path.split(name)
        names.setdefault((os.path.realpath(folder), base), name)
    kept = set(names.values())
    return [name for name in dict.fromkeys(found) if name in kept]


def natural_key(text: str) -> tuple[list, str]:
    """A sorting key by which numbers in names are in the order of their values: "2" before "10"."""
    parts = re.split(r"(\d+)", text)
    # Digits and words take turns, so that numbers are compared with numbers alone.
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], text
