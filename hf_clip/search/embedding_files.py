"""`embed_to_file`: embeddings of whatever `open_source` takes, in a file for other systems, on one process or many.

The stream is cut into parts of PART_ROWS rows, whoever encodes them: each is a file that appears whole or not at all,
in a folder beside the output. Ranks share the parts by their numbers, without a word to one another: the one that
finds all parts there joins them. A run that goes on, with another number of ranks too, makes the parts that are
missing, bit for bit.
"""

# Shapes: B rows of a batch, D width of the shared space.

import contextlib
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hf_clip.model.embedding_hf_clip import batched, image_batches
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.state_key_hf_clip import state_key

from .errors import SearchError, writing
from .hub_output import HUB, hub_name, push_file

if TYPE_CHECKING:
    from hf_clip.model.typing_hf_clip import DualEncoder, Processor

logger = logging.getLogger(__name__)

PART_ROWS = 256
FORMATS = (".parquet", ".lance")
PLAN = "plan.json"


def embed_to_file(
    model: "DualEncoder",
    processor: "Processor",
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    batch_size: int = 32,
    ray: str | None = None,
    show_progress: bool | None = None,
    **source_options: Any,
) -> Path | str:
    """Embeds the images of a data set into a parquet file or a Lance table, resumable, on one process or on many.

    Under `torchrun` (RANK and WORLD_SIZE are set) each rank calls it alike, and makes its part. What is stopped goes
    on when it is called again, on any number of ranks; the rows and their bits are the same.

    Args:
        model: a dual encoder, on the device that it is to use.
        processor: its processor.
        data: what `hf_clip.open_source` takes. Data sets of the Hub are streamed.
        output: a file *.parquet, or a table *.lance, which LanceDB opens by its name in the folder above. Its columns:
            `index` (in the stream), `key` (names the row, such as "pairs.parquet row 7"), `embedding` (a list of fixed
            size of D float32, of unit length; null where the image cannot be read), `error` (why). Or a data set of
            the Hub, hf://datasets/OWNER/NAME, which is made, private, where there is none; until it is there, all is
            kept in the folder where this runs, as OWNER--NAME.parquet.
        batch_size: images encoded at once.
        ray: an address of Ray (auto, HOST:PORT, local), whose nodes encode what this process reads and writes. A node
            that dies loses nothing.
        show_progress: whether to draw a bar on standard error; by default where that is a terminal.
        source_options: more arguments of `open_source`, such as `split` and `image_column`.

    Returns:
        The output. On ranks that find parts of others missing it is not there yet.

    Raises:
        SearchError: the output exists or cannot be written, or parts of another model or data lie beside it.
        SourceError: the data cannot be read.
    """
    from hf_clip.sources import open_source

    file, name = _place_of(output)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if file.exists() and name is None:
        if world_size > 1:
            # Another rank found all parts there, of a run that was stopped before it joined them.
            return file
        raise SearchError(f"`output={output}` exists: name another file, or remove it.")
    source = open_source(data, **source_options)
    parts = file.with_name(f".{file.name}.parts")
    with writing(file.parent, "output"):
        _begin(parts, _plan(model, processor, source, source_options, batch_size), file)
        # It is whole, and the Hub gave no answer.
        is_mine = file.exists() and rank == 0
        if not file.exists():
            encoding, share = (model, processor, batch_size), (rank, world_size)
            number = _write_parts(parts, source, encoding, share, ray, show_progress)
            is_mine = _join(parts, number, file, keeps_parts=name is not None)
    return _push(file, name, parts) if name is not None and is_mine else file


def _push(file: Path, name: str, parts: Path) -> str:
    """Sends a whole file to the Hub, and removes it and its parts here. Returns the address."""
    push_file(file, name)
    file.unlink()
    shutil.rmtree(parts, ignore_errors=True)
    return f"{HUB}{name}"


def _place_of(output: str | Path) -> tuple[Path, str | None]:
    """The file that is written on this machine, and the data set of the Hub that it goes to, if any."""
    name = hub_name(output)
    file = Path(output) if name is None else Path(f"{name.replace('/', '--')}.parquet")
    if file.suffix not in FORMATS:
        raise SearchError(f"`output={output}` is neither *.parquet nor *.lance: name one of these.")
    return file, name


def _plan(model: Any, processor: Any, source: Any, options: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """All that the rows depend on."""
    return {
        "model": state_key(model, processor, "image"),
        "data": source.name,
        "options": json.loads(json.dumps(options, default=str)),
        "batch_size": batch_size,
    }


def _write_parts(
    parts: Path,
    source: Any,
    encoding: tuple[Any, Any, int],
    share: tuple[int, int],
    ray: str | None,
    show_progress: bool | None,
) -> int:
    """Writes the rank's parts that are missing. Returns how many parts there are in all."""
    from hf_clip.sources import iterate_samples

    rank, world_size = share
    model, processor, batch_size = encoding
    is_terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    shown = is_terminal if show_progress is None else show_progress
    sizes: list[int] = []

    def missing() -> Iterator[tuple[int, list[Any]]]:
        samples = iterate_samples(source)
        while chunk := list(islice(samples, PART_ROWS)):
            number = len(sizes)
            sizes.append(len(chunk))
            if number % world_size == rank and not _part(parts, number).exists():
                yield number, chunk
            else:
                bar.update(len(chunk))

    with tqdm(total=source.num_rows, unit=" images", disable=not shown or rank > 0) as bar:
        if ray is None:
            made = ((number, rows_of(model, processor, chunk, batch_size)) for number, chunk in missing())
        else:
            from .ray_nodes import rows_on_ray

            made = rows_on_ray(ray, encoding, missing())
        for number, content in made:
            _write_part(_part(parts, number), content)
            bar.update(content.num_rows)
    if not sizes:
        raise SearchError(f"{source.name} has no rows.")
    return len(sizes)


def _begin(parts: Path, plan: Mapping[str, Any], output: Path) -> None:
    """Makes the folder of parts. Raises SearchError if it holds another plan's."""
    parts.mkdir(parents=True, exist_ok=True)
    file = parts / PLAN
    if not file.exists():
        _write_whole(file, json.dumps(plan).encode())
    there = json.loads(file.read_text(encoding="utf-8"))
    if there != plan:
        differs = ", ".join(name for name in plan if there.get(name) != plan[name])
        raise SearchError(
            f"{parts} holds parts of another run for {output} (its {differs} differs): remove that folder, or name "
            "another `output`."
        )


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:08d}.parquet"


def rows_of(model: Any, processor: Any, chunk: Sequence[Any], batch_size: int) -> pa.Table:
    """The rows of some samples; bit for bit the same, whoever encodes them."""
    embeddings: list[Any] = []
    errors: list[str | None] = []
    images = [sample.image for sample in chunk]
    for batch, embeddings_BD in image_batches(
        model, processor, images, batch_size, return_errors=True, show_progress=False
    ):
        made = iter([] if embeddings_BD is None else embeddings_BD.cpu().numpy())
        for item in batch:
            is_error = isinstance(item, ImageDecodeError)
            errors.append(str(item) if is_error else None)
            embeddings.append(None if is_error else next(made))
    width = next((len(one) for one in embeddings if one is not None), None)
    columns = {
        "index": pa.array([sample.index for sample in chunk], pa.int64()),
        "key": pa.array([sample.key for sample in chunk], pa.string()),
        "error": pa.array(errors, pa.string()),
    }
    if width is None:
        return pa.table(columns)
    flat = np.concatenate([np.zeros(width, np.float32) if one is None else one for one in embeddings])
    is_null = pa.array([one is None for one in embeddings])
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), width, mask=is_null)
    return pa.table(columns)


def _write_part(file: Path, content: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    _write_whole(file, sink.getvalue().to_pybytes())


def _write_whole(file: Path, content: bytes) -> None:
    """The file appears whole or not at all, whoever else writes it."""
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _join(parts: Path, count: int, output: Path, *, keeps_parts: bool) -> bool:
    """Joins the parts, if all are there and nobody else does. Returns whether this process did."""
    is_mine = False
    files = [_part(parts, number) for number in range(count)]
    lock = parts.with_name(f"{parts.name}.lock")
    # Whoever made the last part must see that it is the last: it waits for one that is looking.
    with filelock.FileLock(lock):
        if not output.exists() and all(file.exists() for file in files):
            _write_output(files, output)
            is_mine = True
        if output.exists() and not keeps_parts:
            shutil.rmtree(parts, ignore_errors=True)
    if output.exists():
        lock.unlink(missing_ok=True)
    return is_mine


def _write_output(files: Sequence[Path], output: Path) -> None:
    schema = _schema_of(files, output)
    if output.suffix == ".parquet":
        unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
        with pq.ParquetWriter(unfinished, schema) as writer:
            for group in batched(_batches(files, schema), 32):
                writer.write_table(pa.Table.from_batches(group, schema))
        os.replace(unfinished, output)
    else:
        import lancedb

        reader = pa.RecordBatchReader.from_batches(schema, _batches(files, schema))
        lancedb.connect(str(output.parent)).create_table(output.stem, reader, schema=schema, on_bad_vectors="null")


def _schema_of(files: Sequence[Path], output: Path) -> pa.Schema:
    """The columns, with the width of embeddings from the first part that has one."""
    for file in files:
        found = pq.read_schema(file)
        if "embedding" in found.names:
            order = ("index", "key", "embedding", "error")
            return pa.schema([found.field(name) for name in order])
    raise SearchError(f"no image could be read: there is nothing to write to {output}.")


def _batches(files: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for file in files:
        content = pq.read_table(file)
        if "embedding" not in content.column_names:
            empty = pa.nulls(content.num_rows, schema.field("embedding").type)
            content = content.append_column("embedding", empty)
        yield from content.select(schema.names).cast(schema).to_batches()
