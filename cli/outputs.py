"""What a verb writes, checked before the work: nothing that it reads, and nothing of another kind, is replaced."""

import glob
import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .usage import UsageError

# Stands in the PNGs that the command draws, so that it replaces no other image.
PNG_MARK = b"Software\x00hf-clip"
# And in those of plots.
PLOT_MARK = b"Software\x00hf_clip"
# The keys that `hf_clip.prompts` reads: a recipe has `templates` too, and others besides.
PROMPT_KEYS = ("name", "classes", "templates", "best_templates", "source", "license")


def is_result(file: Path) -> bool:
    """Whether a file is JSON that `eval --output` wrote."""
    content = _json(file)
    if not isinstance(content, dict):
        return False
    results = content.get("results")
    one = results[0] if isinstance(results, list) and results else content
    return isinstance(one, dict) and {"model", "data", "title"} <= one.keys()


def is_sheet(file: Path) -> bool:
    """Whether a file is a PNG that the command drew."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    return head.startswith(b"\x89PNG") and PNG_MARK in head


def is_plot(file: Path) -> bool:
    """Whether a file is a PNG that the package drew."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    return head.startswith(b"\x89PNG") and PLOT_MARK in head


def is_duplicate_plan(file: Path) -> bool:
    """Whether a file is JSON that `dedup --plan` wrote."""
    content = _json(file)
    return isinstance(content, dict) and "hf_clip_duplicates" in content


def is_prompts(file: Path) -> bool:
    """Whether a file reads as templates in YAML."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    # Whatever it is: what the parser stumbles over is not replaced.
    except Exception:
        return False
    is_table = isinstance(content, dict) and content.keys() <= set(PROMPT_KEYS)
    return is_table and isinstance(content.get("templates"), list)


def is_decisions(file: Path) -> bool:
    """Whether a file is a classifier with thresholds: safetensors name their tensors in the first lines."""
    with file.open("rb") as stream:
        head = stream.read(2**16)
    return b"hf_clip zero-shot classifier" in head and b'"thresholds"' in head


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


# Kind of output: an example of a name, and whether an existing file is one.
KINDS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "a result in JSON": ("result.json", is_result),
    "a plan in JSON": ("plan.json", is_duplicate_plan),
    "a sheet in PNG": ("sheet.png", is_sheet),
    "a plot in PNG": ("plot.png", is_plot),
    "templates in YAML": ("templates.yaml", is_prompts),
    "decisions in safetensors": ("decisions.safetensors", is_decisions),
}


@dataclass(frozen=True)
class _Read:
    flag: str
    path: Path
    # Of a folder of weights only some files are read; of a folder of data all are, and what is added is data too.
    is_data: bool


class Outputs:
    """The files and folders that a verb reads, and checks of those that it is about to write.

    Links are followed, symbolic and hard ones: what counts is the file that a name leads to. All checks raise
    UsageError.

    Args:
        overwrite: existing files of another kind may be replaced. What is read may not.
    """

    def __init__(self, overwrite: bool = False):
        self.overwrite = overwrite
        self._reads: list[_Read] = []

    def reads(self, flag: str, paths: Iterable[str | Path | None], *, is_data: bool = True) -> None:
        """Notes what a flag names: files, folders, patterns. What is not on this machine is left to others."""
        for name in paths:
            if name is None or not str(name):
                continue
            path = Path(str(name).removeprefix("local-dir:")).expanduser()
            found = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
            self._reads += [_Read(flag, one, is_data) for one in found]

    def file(self, flag: str, file: Path, kind: str) -> None:
        """Checks a file of one of KINDS."""
        example, is_kind = KINDS[kind]
        if "\0" in str(file):
            raise UsageError(f"{flag} {str(file)!r} holds a null byte, which no name has: name another file.")
        if file.is_dir():
            raise UsageError(f"{flag} {file} is a folder: name a file, such as {file / example}.")
        if not file.absolute().parent.is_dir():
            raise UsageError(f"{flag} {file}: there is no folder {file.parent}.")
        if not file.exists():
            # A link to nowhere is written through.
            if not os.access(file.absolute().parent, os.W_OK):
                raise UsageError(f"{flag} {file} cannot be written: name another file.")
            return
        of_kind = stat.S_ISREG(file.stat().st_mode) and is_kind(file)
        for read in self._reads:
            # A result within a folder of data was written by the command: nobody reads it.
            if _same(file, read.path) or (read.path.is_dir() and not of_kind and _is_within(file, read.path)):
                raise UsageError(f"{flag} {file} is what {read.flag} {read.path} reads: name another file.")
        if not os.access(file, os.W_OK):
            raise UsageError(f"{flag} {file} cannot be written: name another file.")
        # A device, such as /dev/stdout, keeps nothing that could be lost.
        if stat.S_ISREG(file.stat().st_mode) and file.stat().st_size and not of_kind and not self.overwrite:
            raise UsageError(f"{flag} {file} exists and is not {kind}: name another file, or give --overwrite.")

    def folder(self, flag: str, folder: Path) -> None:
        """Checks a folder that files are written into."""
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{flag} {folder} is a file: name a folder.")
        above = folder.absolute()
        # Of what is not there yet the folder in which it will stand.
        levels = [one for one in (above, *above.parents) if one.exists()]
        for read in self._reads:
            if not read.path.is_dir():
                if folder.is_dir() and any(_same(file, read.path) for file in folder.iterdir() if file.is_file()):
                    raise UsageError(f"{flag} {folder} holds what {read.flag} {read.path} reads: name another folder.")
            elif _same(folder, read.path) or (read.is_data and any(_same(one, read.path) for one in levels)):
                raise UsageError(f"{flag} {folder} is in what {read.flag} {read.path} reads: name another folder.")

    def empty_folder(self, flag: str, folder: Path) -> None:
        """Checks a folder that is made, or filled."""
        self.folder(flag, folder)
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{flag} {folder} is not empty: give a folder that is empty or not there yet.")


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.stat(), other.stat())
    except OSError:
        return False


def _is_within(file: Path, folder: Path) -> bool:
    """Whether a file is one of a folder's, at any depth, by whatever name."""
    if file.stat().st_nlink == 1 and file.resolve().is_relative_to(folder.resolve()):
        return True
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = os.stat(root)
        if (here.st_dev, here.st_ino) in seen:
            # Links among folders may go round.
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        if any(_same(file, Path(root, name)) for name in names):
            return True
    return False
