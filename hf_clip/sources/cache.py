"""Parts of remote files on this machine's disk: fetched in parallel before they are read, and never more than a bound.

They lie in files without names, which are gone with the process, however it ends.
"""

import io
import os
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, BinaryIO

from . import remote
from .errors import SourceError, logger

# Parts that are fetched at a time, and files that are open at most.
FETCHERS = 8
MAX_PARTS = 256
DEFAULT_BYTES = 16 * 10**9


@dataclass
class _Part:
    address: str
    first: int
    last: int
    file: Future[IO[bytes]] = field(default_factory=Future)
    readers: int = 0
    was_read: bool = False
    is_given_up: bool = False

    @property
    def size(self) -> int:
        return self.last - self.first


class PartCache:
    """Parts of files at addresses, each a range of bytes.

    Args:
        max_bytes: on the disk. What is being read must be there, and may be more: a warning says so once.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES):
        self.max_bytes = max_bytes
        # The parts fetched, and their bytes: what a run's report tells.
        self.fetched, self.fetched_bytes = 0, 0
        self._parts: OrderedDict[tuple[str, int, int], _Part] = OrderedDict()
        self._lock = threading.Lock()
        self._fetchers: ThreadPoolExecutor | None = None
        self._warned = False

    @property
    def held_bytes(self) -> int:
        """What is there, and what is on its way."""
        return sum(part.size for part in self._parts.values())

    def fetch_ahead(self, address: str, first: int, last: int) -> None:
        """Begins to fetch a part that is going to be read, where it fits beside others such."""
        key = (address, first, last)
        with self._lock:
            if key in self._parts or not self._make_space(last - first, for_reader=False):
                return
            part = self._parts[key] = _Part(address, first, last)
        self.in_background(lambda: self._fetch(key, part))

    def in_background(self, work: Callable[[], None]) -> None:
        """Has a thread of those that fetch do some work. Its errors are met again by whoever reads."""
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
            self._fetchers.submit(work)

    def forget_ahead(self) -> None:
        """Gives up what was to be fetched ahead: nobody is going to read it, and no process is to wait for it."""
        with self._lock:
            fetchers, self._fetchers = self._fetchers, None
            for key, part in list(self._parts.items()):
                if not part.readers and not part.file.done():
                    part.is_given_up = True
                    part.file.cancel()
                    del self._parts[key]
        if fetchers is not None:
            fetchers.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def borrow(self, address: str, first: int, last: int) -> Iterator[IO[bytes]]:
        """The file of a part, whose position others move too. It stays until the end of the context.

        Raises:
            SourceError: the part cannot be had.
        """
        key = (address, first, last)
        with self._lock:
            part = self._parts.get(key)
            is_new = part is None
            if part is None:
                self._make_space(last - first, for_reader=True)
                part = self._parts[key] = _Part(address, first, last)
            part.readers += 1
            self._parts.move_to_end(key)
        try:
            if is_new:
                self._fetch(key, part)
            yield part.file.result()
        finally:
            with self._lock:
                part.readers -= 1
                part.was_read = True

    def _fetch(self, key: tuple[str, int, int], part: _Part) -> None:
        if not part.file.set_running_or_notify_cancel():
            return
        try:
            file = tempfile.TemporaryFile(prefix="hf_clip-")
            for start in range(part.first, part.last, remote.BYTES_OF_REQUEST):
                if part.is_given_up:
                    raise SourceError(f"{part.address!r} is not fetched any further: its reader has ended.")
                stop = min(start + remote.BYTES_OF_REQUEST, part.last)
                file.write(remote.read_bytes(part.address, start, stop))
            file.flush()
        except BaseException as error:
            with self._lock:
                if self._parts.get(key) is part:
                    del self._parts[key]
            if isinstance(error, OSError):
                error = SourceError(
                    f"{part.address!r} cannot be kept in {tempfile.gettempdir()!r} ({error.strerror}). Lower "
                    "`shard_cache_gb`, or set TMPDIR to a folder with more space."
                )
            part.file.set_exception(error)
            return
        with self._lock:
            self.fetched, self.fetched_bytes = self.fetched + 1, self.fetched_bytes + part.size
        part.file.set_result(file)

    def _make_space(self, size: int, for_reader: bool) -> bool:
        """Drops parts until `size` bytes fit: those that were read, the oldest first; for a reader, others too."""
        idle = [key for key, part in self._parts.items() if not part.readers and part.file.done()]
        idle.sort(key=lambda key: not self._parts[key].was_read)
        total = self.held_bytes
        for key in idle:
            if total + size <= self.max_bytes and len(self._parts) < MAX_PARTS:
                return True
            if not (for_reader or self._parts[key].was_read):
                return False
            part = self._parts.pop(key)
            part.file.result().close()
            total -= part.size
        fits = total + size <= self.max_bytes and len(self._parts) < MAX_PARTS
        if for_reader and not fits and not self._warned:
            self._warned = True
            logger.warning(
                "The parts of remote files that are read at one time take %.1f GB, more than `shard_cache_gb`=%g. "
                "Raise it, lower `lanes`, or write smaller shards.",
                *((total + size) / 1e9, self.max_bytes / 1e9),
            )
        return fits


cache = PartCache()


def set_bound(max_bytes: int) -> None:
    """Has this process keep so many bytes of remote files at most."""
    cache.max_bytes = max_bytes


def forget_ahead() -> None:
    """Gives up what was to be fetched ahead in this process."""
    cache.forget_ahead()


def fetching() -> Counter[str]:
    """What this process fetched: parts, their bytes, and by the reason the requests that it made again."""
    return Counter(parts=cache.fetched, bytes=cache.fetched_bytes, **remote.repeated_requests())


class _Reader(io.RawIOBase):
    """A whole remote file to read from, of which one part lies here: the rest, such as a footer, is fetched."""

    def __init__(self, address: str, size: int, part: IO[bytes], first: int, last: int):
        self._address, self._size, self._part, self._first, self._last = address, size, part, first, last
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        stop = min(self._at + len(buffer), self._size)
        if self._at >= stop:
            return 0
        if self._first <= self._at and stop <= self._last:
            # Readers of one part share its file, and so its position: each says where it reads.
            content = os.pread(self._part.fileno(), stop - self._at, self._at - self._first)
        else:
            content = remote.read_bytes(self._address, self._at, stop)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@contextmanager
def open_part(address: str, first: int = 0, last: int | None = None) -> Iterator[BinaryIO]:
    """A remote file to read, of which a part, all by default, is brought here first."""
    size = remote.size_of(address)
    last = size if last is None else last
    with cache.borrow(address, first, last) as part, _Reader(address, size, part, first, last) as reader:
        yield io.BufferedReader(reader)  # type: ignore[misc]


@contextmanager
def open_file(file: str) -> Iterator[BinaryIO]:
    """A file to read, here or at an address."""
    if remote.is_address(file):
        with open_part(file) as stream:
            yield stream
    else:
        with open(file, "rb") as stream:
            yield stream


def fetch_ahead(file: str, first: int = 0, last: int | None = None) -> None:
    """Begins to bring a part of a file here that is going to be read soon, where it is at an address."""
    if remote.is_address(file):
        cache.fetch_ahead(file, first, remote.size_of(file) if last is None else last)
