"""Ray: parts of a stream encoded on many machines, and a table searched by many, with the answers of one process.

Every task and every actor can be done again elsewhere: a node that dies costs time alone.
"""

# Shapes: D width of the shared space, K rows found.

import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .errors import SearchError, one_line
from .queries import find
from .store import ModelEntry, Store

# Models that this worker has, by the name of Ray's object.
_MODELS: dict[str, tuple[Any, Any]] = {}
_TRIES = 5


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SearchError("ray is not installed: pip install 'hf_clip[ray]'.") from error
    return ray


def connect(address: str) -> bool:
    """Connects to Ray, unless this program is, wherever that is. Returns whether it has done so.

    Raises:
        SearchError: Ray is not installed, or does not answer there.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    try:
        with _own_sigterm():
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    # Ray raises what its many parts raise.
    except Exception as error:
        raise SearchError(
            f"`ray={address}` cannot be reached ({one_line(error)[:160]}): give auto, HOST:PORT, or local for this "
            "machine alone."
        ) from error
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM for itself where a program connects; it stays what the program made of it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Python sets handlers in its main thread alone, and gives None for those that it has not set.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    is_ours = connect(address)
    ray = import_ray()
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


# Embedding a stream.


def rows_on_ray(
    address: str, encoding: tuple[Any, Any, int], jobs: Iterator[tuple[int, Sequence[Any]]]
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each job, in the order in which they are done.

    Args:
        address: of Ray.
        encoding: model, processor and batch size.
        jobs: numbers, each with samples. They are read ahead by no more than what keeps all nodes busy.
    """
    import torch

    model, processor, batch_size = encoding
    with _connected(address) as ray:
        needs = {"num_gpus": 1} if model.device.type == "cuda" else {"num_cpus": 1}
        # What dies with a node, the task or its result, is made again on another.
        task = ray.remote(_rows).options(max_retries=-1, scheduling_strategy="SPREAD", **needs)
        shared = ray.put((model, processor))
        waiting: dict[Any, int] = {}

        def done() -> Iterator[tuple[int, pa.Table]]:
            ready, _ = ray.wait(list(waiting))
            for result in ready:
                yield waiting.pop(result), _result(ray, result)

        for number, samples in jobs:
            # The bits of a product may depend on how many threads share it.
            waiting[task.remote([shared], _carried(samples), batch_size, torch.get_num_threads())] = number
            # Asked each time: nodes come and go.
            workers = ray.cluster_resources().get("GPU" if "num_gpus" in needs else "CPU", 1)
            while len(waiting) >= 2 * max(workers, 1):
                yield from done()
        while waiting:
            yield from done()


def _rows(shared: Sequence[Any], samples: Sequence[Any], batch_size: int, threads: int) -> pa.Table:
    """On a worker: the rows of some samples."""
    import ray
    import torch

    from .embedding_files import rows_of

    # Nested, so that Ray does not give each task a model of its own.
    name = shared[0].hex()
    if name not in _MODELS:
        _MODELS.clear()
        _MODELS[name] = ray.get(shared[0])
    torch.set_num_threads(threads)
    return rows_of(*_MODELS[name], samples, batch_size)


def _carried(samples: Sequence[Any]) -> list[Any]:
    """Samples with the bytes of their files: another machine may not have these."""
    return [replace(sample, image=_with_bytes(sample.image)) for sample in samples]


def _with_bytes(image: Any) -> Any:
    if isinstance(image, Mapping) and image.get("bytes") is None and image.get("path"):
        try:
            content = Path(image["path"]).read_bytes()
        except OSError:
            content = b""
        # What is wrong with a file is said as where it lies.
        return {**image, "bytes": content} if content else image
    return image


def _result(ray: Any, result: Any) -> Any:
    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


# Serving a table.


class Shards:
    """A table that actors search, each its part of the rows; together they compare all.

    Args:
        place: of the index, which every node must reach: object storage, or a folder that they share.
        address: of Ray.
        count: how many actors; by default one for each CPU.
    """

    def __init__(self, place: str, address: str, count: int | None = None):
        self._store = Store(place)
        connect(address)
        self._ray = import_ray()
        count = count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        # They wait most of the time, and none of them must find a CPU to come back after its node died.
        actor = self._ray.remote(_Shard).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
        )
        self._actors = [actor.remote(place) for _ in range(count)]
        # The version of the table, and where the rows of each actor begin.
        self._known: tuple[str, int, list[int]] | None = None

    def find(
        self,
        entry: ModelEntry,
        query: np.ndarray,
        top_k: int,
        *,
        where: str | None = None,
        with_embeddings: bool = False,
    ) -> tuple[list[dict[str, Any]], np.ndarray | None, bool]:
        """What `queries.find` gives where every row is compared."""
        slim = ModelEntry(entry.id, entry.source, width=entry.width)
        for _ in range(_TRIES):
            ranges = self._ranges(slim)
            asked = [
                actor.find.remote(slim, query, top_k, where, within, with_embeddings)
                for actor, within in zip(self._actors, ranges, strict=True)
            ]
            answers = [_result(self._ray, one) for one in asked]
            # Between two versions a compaction may have given a row of one part to another.
            if len({version for version, *_ in answers}) == 1:
                break
        rows = [row for _, part, _ in answers for row in part]
        best = sorted(range(len(rows)), key=lambda at: -rows[at]["score"])[:top_k]
        embeddings = [one for _, _, part in answers if part is not None for one in part]
        kept = np.stack([embeddings[at] for at in best]) if embeddings else None
        return [rows[at] for at in best], kept, True

    def _ranges(self, entry: ModelEntry) -> list[str]:
        """A condition for each actor; together they are true of every row once."""
        version = self._store.read(entry, lambda table: table.version)
        if self._known is None or self._known[:2] != (entry.id, version):
            ids = np.sort(self._store.columns(entry, ["_rowid"])["_rowid"].to_numpy())
            places = [len(ids) * at // len(self._actors) for at in range(1, len(self._actors))]
            self._known = entry.id, version, [int(ids[place]) if len(ids) else 0 for place in places]
        starts = self._known[2]
        low = ["", *(f"_rowid >= {start}" for start in starts)]
        high = [*(f"_rowid < {start}" for start in starts), ""]
        return [" AND ".join(filter(None, ends)) or "true" for ends in zip(low, high, strict=True)]


class _Shard:
    """On a worker: the part of a table that a question names."""

    def __init__(self, place: str):
        self._store = Store(place)

    def find(
        self, entry: ModelEntry, query: np.ndarray, top_k: int, where: str | None, within: str, with_embeddings: bool
    ) -> tuple[int, list[dict[str, Any]], np.ndarray | None]:
        condition = f"({where}) AND {within}" if where else within
        version = self._store.read(entry, lambda table: table.version)
        try:
            rows, embeddings, _ = find(
                self._store, entry, query, top_k, where=condition, is_exact=True, with_embeddings=with_embeddings
            )
        except SearchError as error:
            # What this adds to a condition is none of the caller's.
            said = str(error).replace(f"`where={condition}`", f"`where={where}`").replace(f" AND {within}", "")
            raise SearchError(said) from None
        return version, rows, embeddings
