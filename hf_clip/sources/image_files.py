"""Which files are images: those that are named, those of folders, and those that a pattern matches."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from hf_clip.model import image_files_hf_clip as image_files

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
        SourceError: one of them is empty, does not exist, cannot be read, or holds no image.
    """
    found: list[str] = []
    for item in map(str, [paths] if isinstance(paths, str | Path) else paths):
        if not item:
            raise SourceError("'' names no image. The current folder is '.'; a variable of the shell may be empty.")
        by_pattern = sorted(glob.glob(item, recursive=True), key=image_files.natural_key)
        matches = [item] if os.path.exists(item) else by_pattern
        images = [image for match in matches for image in _images_of(match)]
        if not images:
            raise SourceError(f"{item}: there is no such image, and no folder of that name with images.")
        found += images
    return image_files.without_repeats(found)


def _images_of(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    try:
        return image_files.images_in_folder(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def walk_files(folder: Path) -> list[Path]:
    """All files under `folder`, as `image_files_hf_clip.walk_files` has them.

    Raises:
        SourceError: a folder cannot be read.
    """
    try:
        return image_files.walk_files(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: str | Path, error: OSError) -> SourceError:
    return SourceError(
        f"folder {str(error.filename or folder)!r} cannot be read ({one_line(error)}). Check its permissions."
    )
