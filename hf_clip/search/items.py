"""What an index is kept in step with: the files of a folder, or the rows of a table of images."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from .errors import SearchError
from .walking import FoundFiles, find_files


@dataclass(frozen=True)
class Item:
    """An image that may have to be read.

    Attributes:
        path: names it in the index.
        source: the file, or encoded bytes.
        size, mtime: in bytes and nanoseconds.
    """

    path: str
    source: str | bytes
    size: int
    mtime: int


# (size, mtime) of the rows that there are, by path.
States = Mapping[str, tuple[int, int]]


class Items(Protocol):
    """Images that an index is kept in step with.

    Attributes:
        seen: the paths of all that are there; complete once `changed` was read to its end.
        others: how many files of other kinds there are, by suffix.
        unreadable: folders that cannot be read, each with the reason: what lies in them is not gone.
        total: how many `changed` will give, where known.
    """

    seen: set[str]
    others: Counter[str]
    unreadable: dict[str, str]
    total: int | None

    def changed(self, states: States) -> Iterator[Item]:
        """The images that are new, or whose state differs."""
        ...

    def fingerprint(self) -> str:
        """Of data whose rows have no state of their own; empty for folders."""
        ...


def _content(image: Mapping[str, Any]) -> bytes:
    """The bytes of an image of a table; none where it has none, or its file cannot be read."""
    if image["bytes"] is None and image["path"]:
        try:
            return Path(image["path"]).read_bytes()
        except OSError:
            return b""
    return image["bytes"] or b""


class FolderItems:
    """The images of a folder."""

    def __init__(self, root: Path, index: Path | None):
        self.found: FoundFiles = find_files(root, *([] if index is None else [index]))
        self.seen = set(self.found.images)
        self.others, self.unreadable = self.found.others, self.found.unreadable
        self.total: int | None = None

    def changed(self, states: States) -> Iterator[Item]:
        found = self.found.images
        listed = [path for path, (_, *state) in found.items() if states.get(path) != tuple(state)]
        self.total = len(listed)
        return (Item(path, *found[path]) for path in listed)

    def fingerprint(self) -> str:
        return ""


class TableItems:
    """The rows of a table of images, by whatever `open_source` opens: each is named FILE#ROW."""

    def __init__(self, data: str):
        self.data, self.seen = data, set[str]()
        self.others, self.unreadable = Counter[str](), dict[str, str]()
        self.total: int | None = None

    def changed(self, states: States) -> Iterator[Item]:
        # It takes a second, and folders never need it.
        from hf_clip.sources import SourceError, iterate_samples, open_source

        try:
            source = open_source(self.data)
            self.total = source.num_rows
        except SourceError as error:
            raise SearchError(str(error)) from error
        name = os.path.basename(self.data.rstrip("/"))

        def items() -> Iterator[Item]:
            for sample in iterate_samples(source):
                path, content = f"{name}#{sample.index}", _content(sample.image)
                self.seen.add(path)
                yield Item(path, content, len(content), 0)

        return items()

    def content(self, path: str) -> bytes:
        """The encoded image of a row that was named so; the rows before it are read too."""
        from hf_clip.sources import iterate_samples, open_source

        row = int(path.rpartition("#")[2])
        return _content(next(islice(iterate_samples(open_source(self.data)), row, None)).image)

    def fingerprint(self) -> str:
        path = Path(self.data)
        if path.is_file():
            state = path.stat()
            return f"{state.st_size}:{state.st_mtime_ns}"
        return ""
