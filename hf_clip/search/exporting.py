"""An index for other systems: parquet, faiss, Qdrant, a data set on the Hub."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import SearchError, writing
from .hub_output import push_file
from .store import EMBEDDING, IS_FOUND, METADATA, ModelEntry, Store, as_matrix

COLUMNS = tuple(name for name in METADATA if name not in ("error", "missing"))


def read_all(store: Store, entry: ModelEntry) -> pa.Table:
    """Metadata and unit embeddings (float32, lists of fixed size) of all rows that questions find, by path."""
    content = store.columns(entry, [*COLUMNS, EMBEDDING], IS_FOUND).sort_by("path")
    vectors = unit(as_matrix(content[EMBEDDING]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), entry.width)
    return content.set_column(content.column_names.index(EMBEDDING), EMBEDDING, column)


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) rows of unit length: those of an index are so to float16's three digits."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def to_parquet(store: Store, entry: ModelEntry, file: Path) -> int:
    """Writes a parquet file, which appears whole or not at all. Returns how many rows it has."""
    content = read_all(store, entry)
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with writing(file.parent, "output"):
        try:
            pq.write_table(content, unfinished)
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)
    return content.num_rows


def to_hub(store: Store, entry: ModelEntry, name: str) -> int:
    """Writes a data set on the Hub: paths, metadata and embeddings. Returns how many rows it has."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.parquet"
        count = to_parquet(store, entry, file)
        push_file(file, name)
    return count


def to_faiss(store: Store, entry: ModelEntry, file: Path) -> int:
    """Writes an exact faiss index (inner product), and beside it FILE.paths: line i names the image of id i."""
    faiss = _import("faiss", "faiss-cpu")
    content = read_all(store, entry)
    index = faiss.IndexFlatIP(entry.width)
    index.add(np.ascontiguousarray(as_matrix(content[EMBEDDING])))
    with writing(file.parent, "output"):
        faiss.write_index(index, str(file))
        # A line break within a name is written as two characters.
        names = (path.replace("\\", "\\\\").replace("\n", "\\n") for path in content["path"].to_pylist())
        file.with_name(f"{file.name}.paths").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return content.num_rows


def to_qdrant(store: Store, entry: ModelEntry, client: Any, collection: str) -> int:
    """Writes a collection of Qdrant's, in place of one of that name: the path's UUID, the embedding, and metadata."""
    models = _import("qdrant_client", "qdrant-client").models
    content = read_all(store, entry)
    if client.collection_exists(collection):
        client.delete_collection(collection)
    settings = models.VectorParams(size=entry.width, distance=models.Distance.COSINE)
    client.create_collection(collection, vectors_config=settings)
    for points in _points(content, models):
        client.upsert(collection, points)
    return content.num_rows


def _points(content: pa.Table, models: Any) -> Iterator[list]:
    for batch in content.to_batches(max_chunksize=1000):
        vectors = as_matrix(pa.chunked_array([batch.column(EMBEDDING)]))
        rows = batch.select(list(COLUMNS)).set_column(COLUMNS.index("mtime"), "mtime", batch["mtime"].cast(pa.int64()))
        yield [
            models.PointStruct(
                id=str(uuid.uuid5(uuid.NAMESPACE_URL, row["path"])), vector=vector.tolist(), payload=row
            )
            for row, vector in zip(rows.to_pylist(), vectors, strict=True)
        ]


def to_dataset(store: Store, entry: ModelEntry) -> Any:
    """A `datasets.Dataset` of paths, metadata and embeddings, to push to the Hub or save. No image is in it."""
    datasets = _import("datasets", "datasets")
    return datasets.Dataset(read_all(store, entry))


def _import(name: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise SearchError(f"{name} is not installed: pip install {package}.") from error
