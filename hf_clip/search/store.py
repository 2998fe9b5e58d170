"""The LanceDB database behind an index: a table of rows for each model, and one that says which models there are.

Every write is one atomic commit of Lance's. A reader asks for the newest version at each question; what it was reading
may be cleaned up under it, and then it asks once more.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import filelock
import lancedb
import numpy as np
import pyarrow as pa
from lancedb.table import Table

from .errors import SearchError, one_line, writing

# The folder of an index within the images' folder. Its dot hides it from everything that looks for images.
FOLDER = ".hf-clip.lance"
MODELS = "models"
EMBEDDING = "embedding"
# Rows that a question finds: files that are there and could be read.
IS_FOUND = "missing = false AND error IS NULL"
METADATA = ("path", "hash", "size", "mtime", "width", "height", "taken", "error", "missing")
# So many values stand in one condition of SQL.
VALUES_AT_ONCE = 1000
# Up to so many rows a table is written again at each update: it takes a fraction of a second.
SMALL_TABLE = 50_000
_TRIES = 5

Result = TypeVar("Result")


def row_schema(width: int) -> pa.Schema:
    """The columns of a table of rows. Embeddings are float16: half the bytes, and 1e-4 of a cosine."""
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("hash", pa.string(), nullable=False),
            pa.field("size", pa.int64()),
            # Nanoseconds, as the file system has them: a file that differs in one was changed.
            pa.field("mtime", pa.timestamp("ns")),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            # As text, so that `taken > '2024-01-01'` means what it says.
            pa.field("taken", pa.string()),
            pa.field("error", pa.string()),
            pa.field("missing", pa.bool_(), nullable=False),
            pa.field(EMBEDDING, pa.list_(pa.float16(), width)),
        ]
    )


@dataclass
class ModelEntry:
    """A model of an index.

    Attributes:
        id: a hash of all that its embeddings depend on; the name of its table.
        source: what `load` took, as the caller wrote it.
        options: more arguments of `load`.
        fingerprint: of the source's files, by which a change is noticed without reading weights.
        width: D, of its embeddings.
        is_current: whether questions go to it.
        is_whole: whether an update of it went through to the end.
        decoders: which files could be decoded at the last update.
        tensors: safetensors: probes of both towers, and what `calibration.Calibration` keeps.
        facts: numbers of the calibration and of the approximate index.
    """

    id: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    width: int = 0
    is_current: bool = False
    is_whole: bool = False
    decoders: str = ""
    tensors: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)


_MODEL_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("options", pa.string()),
        ("fingerprint", pa.string()),
        ("width", pa.int32()),
        ("is_current", pa.bool_()),
        ("is_whole", pa.bool_()),
        ("decoders", pa.string()),
        ("tensors", pa.large_binary()),
        ("facts", pa.string()),
    ]
)


class Store:
    """The database of an index.

    Args:
        place: its folder, or an address that LanceDB takes (s3://...).
    """

    def __init__(self, place: str):
        self.place = place
        self.is_remote = "://" in place

    @cached_property
    def _database(self) -> lancedb.DBConnection:
        # Every read sees what was committed last, by whatever process. The folder is made by this.
        try:
            return lancedb.connect(self.place, read_consistency_interval=timedelta(0))
        except (OSError, RuntimeError, ValueError) as error:
            if not self.is_remote:
                raise
            raise SearchError(f"`index={self.place}` cannot be reached: {one_line(error)}") from error

    def exists(self) -> bool:
        return (self.is_remote or Path(self.place).is_dir()) and self._has(MODELS)

    def _has(self, table: str) -> bool:
        try:
            self._database.open_table(table)
        except SearchError:
            raise
        except (ValueError, FileNotFoundError) as error:
            if self.is_remote and "not found" not in str(error):
                raise SearchError(f"`index={self.place}` cannot be read: {one_line(error)}") from error
            return False
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time. Raises SearchError at once if there is another. Object storage has no lock."""
        if self.is_remote:
            yield
            return
        folder = Path(self.place)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / "writer.lock", timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise SearchError(f"{folder} is being updated by another process: wait until it is done.") from None
        try:
            yield
        finally:
            lock.release()

    # Models.

    def version(self) -> int:
        """Differs once a model's entry was written."""
        return self.read(MODELS, lambda table: table.version) if self.exists() else 0

    def entries(self) -> list[ModelEntry]:
        """All models, the current one first."""
        if not self.exists():
            return []
        names = [item.name for item in fields(ModelEntry)]
        rows = self.read(MODELS, lambda table: table.search().select(names).limit(None).to_list())
        for row in rows:
            row["options"], row["facts"] = json.loads(row["options"]), json.loads(row["facts"])
        return sorted((ModelEntry(**row) for row in rows), key=lambda entry: not entry.is_current)

    def put(self, *entries: ModelEntry) -> None:
        """Writes entries, in one commit."""
        rows = [{**asdict(one), "options": json.dumps(one.options), "facts": json.dumps(one.facts)} for one in entries]
        table = self._database.create_table(MODELS, schema=_MODEL_SCHEMA, exist_ok=True)
        content = pa.Table.from_pylist(rows, _MODEL_SCHEMA)
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(content)
        compact(table)

    def remove(self, entry: ModelEntry) -> None:
        """Forgets a model and its rows."""
        table = self._database.open_table(MODELS)
        table.delete(f"id = {quoted(entry.id)}")
        compact(table)
        if self._has(f"images_{entry.id}"):
            self._database.drop_table(f"images_{entry.id}")

    # Rows.

    def images(self, entry: ModelEntry) -> Table:
        """The table of a model, made if there is none."""
        name = f"images_{entry.id}"
        if not self._has(name):
            self._database.create_table(name, schema=row_schema(entry.width), exist_ok=True)
        return self._database.open_table(name)

    def read(self, table: str | ModelEntry, ask: Callable[[Table], Result]) -> Result:
        """What `ask` reads from a table; asked again if the version that it was reading was cleaned up meanwhile."""
        name = table if isinstance(table, str) else f"images_{table.id}"
        for left in reversed(range(_TRIES)):
            try:
                return ask(self._database.open_table(name))
            except (OSError, RuntimeError, ValueError) as error:
                text = str(error).lower()
                if not left or not any(word in text for word in ("not found", "notfound", "no such file")):
                    raise SearchError(f"{self.place} cannot be read: {one_line(error)}") from error
                time.sleep(0.02)
        raise AssertionError

    def columns(self, entry: ModelEntry, names: Sequence[str], where: str | None = None) -> pa.Table:
        """Whole columns of a model's rows."""

        def ask(table: Table) -> pa.Table:
            query = table.search().select(list(names))
            return (query.where(where) if where else query).limit(None).to_arrow()

        return self.read(entry, ask)

    def rows_with(self, entry: ModelEntry, column: str, values: Sequence[str], names: Sequence[str]) -> pa.Table:
        """The rows whose column has one of the values."""
        wanted = list(values)
        parts = [
            self.columns(entry, names, f"{column} IN ({', '.join(map(quoted, wanted[at : at + VALUES_AT_ONCE]))})")
            for at in range(0, max(len(wanted), 1), VALUES_AT_ONCE)
            if wanted
        ]
        return pa.concat_tables(parts) if parts else row_schema(entry.width).empty_table().select(list(names))

    def path_of(self, entry: ModelEntry, row: int) -> str | None:
        """The path of the row of that number, if there is one."""
        try:
            found = self.read(entry, lambda table: table.take_row_ids([row]).select(["path"]).to_arrow())
        # Lance raises for numbers that it never gave.
        except SearchError:
            return None
        return found["path"][0].as_py() if found.num_rows else None


def add_rows(table: Table, content: pa.Table, replaced: bool) -> None:
    """Commits rows; where `replaced`, in place of those with the same path."""
    if not content.num_rows:
        return
    if replaced:
        table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(content)
    else:
        table.add(content)


def delete_paths(table: Table, paths: Sequence[str]) -> None:
    for at in range(0, len(paths), VALUES_AT_ONCE):
        table.delete(f"path IN ({', '.join(map(quoted, paths[at : at + VALUES_AT_ONCE]))})")


def set_missing(table: Table, paths: Sequence[str], missing: bool) -> None:
    for at in range(0, len(paths), VALUES_AT_ONCE):
        where = f"path IN ({', '.join(map(quoted, paths[at : at + VALUES_AT_ONCE]))})"
        table.update(where=where, values={"missing": missing})


def compact(table: Table) -> None:
    """Small files become large ones, and versions before the last one go."""
    with warnings.catch_warnings():
        # It warns of readers of older versions. Ours ask again, and the lock keeps other writers out.
        warnings.simplefilter("ignore")
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def to_rows(content: Sequence[Mapping[str, Any]], embeddings: Sequence[np.ndarray | None], width: int) -> pa.Table:
    """Rows as a table: METADATA of each, and its embedding (D,), None for a file without."""
    schema = row_schema(width)
    columns = {name: pa.array([row[name] for row in content], schema.field(name).type) for name in METADATA}
    is_null = np.array([one is None for one in embeddings], bool)
    flat = np.zeros((len(content), width), np.float16)
    for at, one in enumerate(embeddings):
        if one is not None:
            flat[at] = one
    values = pa.array(flat.ravel())
    columns[EMBEDDING] = pa.FixedSizeListArray.from_arrays(values, width, mask=pa.array(is_null))
    return pa.table(columns, schema)


def as_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of embeddings without nulls as (N, D) float32."""
    return as_halves(column).astype(np.float32)


def as_halves(column: pa.ChunkedArray) -> np.ndarray:
    """A column of embeddings without nulls as (N, D) float16, as it is kept."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    width = column.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
