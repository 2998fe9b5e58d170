"""The images of an index, once for each content, with what reads them again."""

import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..errors import SearchError
from ..items import TableItems
from ..store import EMBEDDING, IS_FOUND, as_halves
from ..walking import find_files
from .looks import Look, pixel_hash, read_look
from .plan import PlannedImage

if TYPE_CHECKING:
    from ..index import Index

READERS = 4
# A look takes 50 kilobytes.
LOOKS_AT_MOST = 4096


@dataclass
class Content:
    """A content of files: the same bytes under one or several paths.

    Attributes:
        images: its files, the one that is to stay first.
        is_new: each of them came since the last comparison.
    """

    images: list[PlannedImage]
    is_new: bool = False

    @property
    def first(self) -> PlannedImage:
        return self.images[0]

    @property
    def hash(self) -> str:
        return self.first.hash


@dataclass
class Images:
    """All contents of an index with their embeddings.

    Attributes:
        contents: N of them.
        embeds: (N, D) float16.
        names: further names of files, by the path that was kept.
        files: what to open, by path; None for a table.
    """

    index: "Index"
    contents: list[Content]
    embeds: np.ndarray
    names: dict[str, list[str]]
    files: dict[str, str] | None
    _looks: OrderedDict[str, Look] = field(default_factory=OrderedDict)

    @property
    def is_table(self) -> bool:
        """Whether an image is found again only by reading all before it."""
        return self.files is None

    def file(self, content: Content) -> str:
        """What to open, in a folder."""
        assert self.files is not None
        return self.files[content.first.path]

    def look(self, content: Content) -> Look:
        if content.hash not in self._looks:
            self.read_ahead([content])
        self._looks.move_to_end(content.hash)
        return self._looks[content.hash]

    def read_ahead(self, contents: Iterable[Content]) -> None:
        """Reads the looks of several that were not read, in threads; the oldest are forgotten."""
        wanted = {content.hash: content for content in contents if content.hash not in self._looks}
        if self.is_table:
            self._looks.update(self._looks_of_rows(wanted))
        else:
            with ThreadPoolExecutor(READERS) as pool:
                self._looks.update(zip(wanted, pool.map(read_look, map(self.file, wanted.values())), strict=True))
        while not self.is_table and len(self._looks) > max(LOOKS_AT_MOST, len(wanted)):
            self._looks.popitem(last=False)

    def _looks_of_rows(self, wanted: dict[str, Content]) -> dict[str, Look]:
        """Of a table, which is read from its beginning: all that are wanted in one reading."""
        by_path = {content.first.path: digest for digest, content in wanted.items()}
        found = {}
        if by_path:
            for item in TableItems(str(self.index.root)).changed({}):
                if item.path in by_path:
                    found[by_path[item.path]] = look = read_look(item.source)
                    look.digest = "" if look.error else pixel_hash(item.source)
        return found | {digest: Look(error="no such row") for digest in wanted if digest not in found}

    def stays(self, path: str) -> str:
        """Why a file is not moved; empty for one that can be."""
        if self.is_table:
            return "a row of a table"
        if path in self.names:
            return "other names or links lead to this file"
        root = os.path.realpath(self.index.root)
        plain = os.path.join(root, *path.split("/"))
        if not os.path.lexists(plain):
            return "its name is not UTF-8: rename it to have it moved"
        return "" if os.path.realpath(plain) == plain else "reached through a link"


def read_images(index: "Index") -> Images:
    """The images that an index finds. Raises SearchError where there is no index."""
    store, entry = index._store, index._entry()
    names = ["path", "hash", "size", "width", "height", "taken", "mtime", EMBEDDING]
    rows = store.columns(entry, names, IS_FOUND)
    files, other_names, hidden = None, {}, set()
    if Path(index.root).is_dir():
        found = find_files(Path(index.root), *([] if store.is_remote else [Path(index.place)])).images
        files = {path: file for path, (file, *_) in found.items()}
        other_names = _other_names(files)
        hidden = {name for several in other_names.values() for name in several}
    paths = rows["path"].to_pylist()
    times = rows["mtime"].cast(pa.int64()).to_pylist()
    columns = [rows[name].to_pylist() for name in ("path", "size", "hash", "width", "height", "taken")]
    by_hash: dict[str, list[int]] = {}
    for at, digest in enumerate(columns[2]):
        if paths[at] not in hidden and (files is None or paths[at] in files):
            by_hash.setdefault(digest, []).append(at)
    contents = []
    for places in by_hash.values():
        # Of equal bytes the oldest file stays, under its shortest name; one that cannot be moved before any.
        places.sort(key=lambda at: (paths[at] not in other_names, times[at], len(paths[at]), paths[at]))
        contents.append(Content([PlannedImage(*(column[at] for column in columns)) for at in places]))
    firsts = np.array([places[0] for places in by_hash.values()], int)
    embeds = as_halves(rows[EMBEDDING])
    return Images(index, contents, embeds[firsts] if len(firsts) else embeds[:0], other_names, files)


def _other_names(files: dict[str, str]) -> dict[str, list[str]]:
    """Names beyond the first of files that have several, by links of either kind."""
    by_file: dict[tuple[int, int], list[str]] = {}
    for path, file in files.items():
        try:
            state = os.stat(file)
        except OSError:
            continue
        by_file.setdefault((state.st_dev, state.st_ino), []).append(path)
    found = {}
    for names in by_file.values():
        if len(names) > 1:
            names.sort(key=lambda path: (os.path.islink(files[path]), len(path), path))
            found[names[0]] = names[1:]
    return found


def check_apart(index: "Index", other: "Index") -> None:
    """Raises SearchError for two folders of which one lies in the other."""
    one, two = (Path(each.root).resolve() for each in (index, other))
    if one == two or one in two.parents or two in one.parents:
        raise SearchError(f"{index.root} and `against={other.root}` share files: name two folders, side by side.")
