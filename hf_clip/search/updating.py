"""Keeping the rows of a model in step with the images: by state first, then by hash, and only then by encoding.

A row is written once its image is encoded, at most ENCODES_AT_ONCE rows at a time: a kill costs no more than these.
What is there is never removed before what takes its place is written.
"""

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
from lancedb.table import Table
from tqdm import tqdm

from . import store as stored
from .errors import SearchError
from .items import Item, Items
from .models import LazyModel
from .photos import Photo, read_photo
from .store import EMBEDDING, METADATA, ModelEntry, Store

logger = logging.getLogger(__name__)

ENCODES_AT_ONCE = 256
# Rows whose embeddings are known are cheap, and each commit is a file.
ROWS_AT_ONCE = 8192
SECONDS_AT_MOST = 60.0
READERS = 4


@dataclass
class Update:
    """What an update found and did: numbers of images.

    Attributes:
        total: rows that questions find.
        added, changed, touched, moved, copied, returned: new ones; other content under a known path; the same content
            with another time; known content under a new path, its old path gone or still there; back again.
        broken: files that were read, and give no image.
        missing: rows whose file is gone, kept until `prune`.
        pruned: rows forgotten.
        encoded: images that the model encoded.
        errors: why a file gives no image, by path: those of this update.
        unreadable: rows without an image, all.
        others: files of kinds that are not read, by suffix.
        folders: folders that could not be read, with the reason; nothing in them is forgotten.
        is_root_empty: nothing was found where the index has rows: nothing was changed.
        seconds: of it all.
    """

    total: int = 0
    added: int = 0
    changed: int = 0
    touched: int = 0
    moved: int = 0
    copied: int = 0
    returned: int = 0
    broken: int = 0
    missing: int = 0
    pruned: int = 0
    encoded: int = 0
    unreadable: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    folders: dict[str, str] = field(default_factory=dict)
    is_root_empty: bool = False
    seconds: float = 0.0

    @property
    def writes(self) -> int:
        named = self.added, self.changed, self.touched, self.moved, self.copied, self.returned, self.broken
        return sum(named) + self.pruned


@dataclass
class _Rows:
    """The rows that there are, by path; `hashes` is read when something changed."""

    states: dict[str, tuple[int, int]]
    missing: set[str]
    broken: set[str]
    hashes: dict[str, str] = field(default_factory=dict)


def read_rows(store: Store, entry: ModelEntry) -> _Rows:
    content = store.columns(entry, ["path", "size", "mtime", "missing", "error"])
    paths = content["path"].to_pylist()
    states = zip(content["size"].to_pylist(), content["mtime"].cast(pa.int64()).to_pylist(), strict=True)
    missing, broken = content["missing"].to_numpy(), content["error"].is_valid().to_numpy()
    return _Rows(
        dict(zip(paths, states, strict=True)),
        {paths[at] for at in np.flatnonzero(missing)},
        {paths[at] for at in np.flatnonzero(broken)},
    )


class Updater:
    """One update of one model's rows. The store is locked by the caller."""

    def __init__(self, store: Store, entry: ModelEntry, model: LazyModel, report: Update, show_progress: bool | None):
        self.store, self.entry, self.model, self.report = store, entry, model, report
        self.show_progress = show_progress
        self.table: Table = store.images(entry)
        self.rows = read_rows(store, entry)
        self._since_compaction = 0
        self._new: list[tuple[dict[str, Any], Any]] = []
        self._begin()

    def _begin(self) -> None:
        """Empties the buffer of rows."""
        # (row, what its embedding comes from: pixels, or None where the hash is known).
        self._new, self._pixels, self._flushed_at = [], {}, time.monotonic()

    def run(self, items: Items, prune: bool, retry_errors: bool) -> None:
        report, rows = self.report, self.rows
        states = {path: state for path, state in rows.states.items() if not (retry_errors and path in rows.broken)}
        changed = items.changed(states)
        report.others, report.folders = items.others, dict(items.unreadable)
        if items.total != 0:
            content = self.store.columns(self.entry, ["path", "hash"])
            rows.hashes = dict(zip(content["path"].to_pylist(), content["hash"].to_pylist(), strict=True))
            self._known = set(rows.hashes.values()) if not retry_errors else self._hashes_of_images()
            self._write_changed(changed, items)
        if not items.seen and rows.states:
            report.is_root_empty = True
            return
        self._settle(items, prune)
        if report.writes:
            self._compact(is_last=True)

    def _hashes_of_images(self) -> set[str]:
        broken = self.rows.broken
        return {value for path, value in self.rows.hashes.items() if path not in broken}

    # What is new or changed.

    def _write_changed(self, changed: Iterator[Item], items: Items) -> None:
        bar = progress_bar(items.total, self.show_progress)
        try:
            for item, photo in self._read(changed):
                self._take(item, photo)
                bar.update()
            self._flush()
        except BaseException:
            # Stopped by a signal or an error: what was encoded is kept.
            if self._new and not isinstance(sys.exc_info()[1], SearchError):
                self._flush(is_last_try=True)
            raise
        finally:
            bar.close()

    def _read(self, items: Iterator[Item]) -> Iterator[tuple[Item, Photo]]:
        """Items with what was read of them, in order, read ahead by threads."""
        waiting: deque[tuple[Item, Future[Photo]]] = deque()

        def read(item: Item) -> Photo:
            return read_photo(item.source, self.model.prepare, self._known.__contains__)

        with ThreadPoolExecutor(READERS) as pool:
            try:
                for item in items:
                    waiting.append((item, pool.submit(read, item)))
                    if len(waiting) >= 16 * READERS:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _take(self, item: Item, photo: Photo) -> None:
        if photo.is_passing:
            self.report.errors[item.path] = photo.error or ""
            return
        old = self.rows
        if item.path not in old.missing and old.hashes.get(item.path) == photo.hash:
            if old.states[item.path] == (item.size, item.mtime) and photo.pixels is None:
                # A row of a table, which has no state of its own, and did not change.
                return
        state = {"path": item.path, "hash": photo.hash, "size": item.size, "mtime": item.mtime, "missing": False}
        row = {**state, "width": photo.width, "height": photo.height, "taken": photo.taken, "error": photo.error}
        if photo.error:
            self.report.errors[item.path] = photo.error
        elif photo.pixels is not None:
            self._pixels.setdefault(photo.hash, photo.pixels)
        is_reused = photo.pixels is None and photo.error is None
        self._new.append((row, is_reused))
        late = time.monotonic() - self._flushed_at > SECONDS_AT_MOST
        if len(self._pixels) >= ENCODES_AT_ONCE or len(self._new) >= ROWS_AT_ONCE or late:
            self._flush()

    def _flush(self, is_last_try: bool = False) -> None:
        new, pixels = self._new, self._pixels
        self._begin()
        if not new:
            return
        made: dict[str, np.ndarray] = {}
        hashes = list(pixels)
        for at in range(0, len(hashes), 32):
            part = hashes[at : at + 32]
            made.update(zip(part, self.model.embed_pixels([pixels[one] for one in part]), strict=True))
        self.report.encoded += len(made)
        self._reuse([row for row, is_reused in new if is_reused], made)
        content = [row for row, _ in new]
        embeddings = [None if row["error"] else made[row["hash"]] for row in content]
        by_path = [row["path"] in self.rows.states for row in content]
        for replaced in (False, True):
            at = [place for place, is_known in enumerate(by_path) if is_known is replaced]
            part = stored.to_rows([content[one] for one in at], [embeddings[one] for one in at], self.entry.width)
            stored.add_rows(self.table, part, replaced)
        self._count(content)
        self._known |= {row["hash"] for row in content}
        self._since_compaction += len(content)
        if not is_last_try:
            self._compact()

    def _reuse(self, rows: Sequence[dict[str, Any]], made: dict[str, np.ndarray]) -> None:
        """Fills rows whose content is in the table, or in this very buffer, under whatever path."""
        wanted = {row["hash"] for row in rows} - set(made)
        known = self.store.rows_with(self.entry, "hash", sorted(wanted), [*METADATA, EMBEDDING])
        by_hash = {}
        for at, one in enumerate(known.select(METADATA).to_pylist()):
            by_hash[one["hash"]] = one
            if one["error"] is None:
                made[one["hash"]] = np.asarray(known[EMBEDDING][at].values, np.float16)
        for row in rows:
            if found := by_hash.get(row["hash"]):
                row |= {name: found[name] for name in ("width", "height", "taken", "error")}

    def _count(self, content: Sequence[dict[str, Any]]) -> None:
        report, rows = self.report, self.rows
        for row in content:
            path, digest = row["path"], row["hash"]
            if row["error"] is not None:
                report.broken += 1
            elif path in rows.states:
                if rows.hashes.get(path) == digest:
                    report.touched += 1
                else:
                    report.changed += 1
            elif digest in self._known:
                # Told apart from moves once it is seen what is gone.
                report.copied += 1
            else:
                report.added += 1
            rows.states[path], rows.hashes[path] = (row["size"], row["mtime"]), digest
            rows.missing.discard(path)

    # What is gone.

    def _settle(self, items: Items, prune: bool) -> None:
        report, rows = self.report, self.rows
        unreadable = tuple(f"{folder}/" for folder in items.unreadable)
        gone = {path for path in rows.states if path not in items.seen and not path.startswith(unreadable or ("\0",))}
        back = sorted(path for path in rows.missing if path in items.seen)
        if back:
            stored.set_missing(self.table, back, False)
            report.returned = len(back)
        if gone - rows.missing and not rows.hashes:
            content = self.store.columns(self.entry, ["path", "hash"])
            rows.hashes = dict(zip(content["path"].to_pylist(), content["hash"].to_pylist(), strict=True))
        # Content that is there under another path was moved: its old row says nothing that the new one does not.
        there = {digest for path, digest in rows.hashes.items() if path not in gone}
        moved = {path for path in gone if rows.hashes.get(path) in there}
        report.moved = min(len(moved), report.copied)
        report.copied -= report.moved
        forgotten = gone if prune else moved
        stored.delete_paths(self.table, sorted(forgotten))
        report.pruned = len(forgotten - moved)
        missing = gone - forgotten
        stored.set_missing(self.table, sorted(missing - rows.missing), True)
        report.missing = len(missing)
        if missing - rows.missing or moved:
            self._since_compaction += 1
            self._compact(is_last=True)

    def _compact(self, is_last: bool = False) -> None:
        """Joins files once so many rows are new that it is worth writing the others again."""
        if is_last:
            total = len(self.rows.states)
            fragments = cast(Any, self.table.stats())["fragment_stats"]["num_fragments"]
            if total < stored.SMALL_TABLE or self._since_compaction > total / 50 or fragments > 32:
                stored.compact(self.table)
        elif self._since_compaction > max(16 * ENCODES_AT_ONCE, len(self.rows.states) / 5):
            stored.compact(self.table)
            self._since_compaction = 0


def progress_bar(total: int | None, show_progress: bool | None, unit: str = " images") -> tqdm:
    """Images a second and time left: a bar in a terminal, else a line each half minute."""
    is_terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    shown = is_terminal if show_progress is None else show_progress
    return tqdm(total=total, unit=unit, disable=not shown or total == 0, mininterval=0.1 if is_terminal else 30.0)
