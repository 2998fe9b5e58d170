"""`caption_to_file`: a data set's rows with a new column of captions, in a file that a stopped run goes on with."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_clip.model.captioning_hf_clip import stream_captions
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.state_key_hf_clip import state_key
from hf_clip.sources import SourceError, open_source

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 256


def caption_to_file(
    model: Any,
    processor: Any,
    data: Sequence[str | Path],
    output: str | Path,
    *,
    column: str = "generated_caption",
    image_column: str | None = None,
    batch_size: int = 16,
    **options: Any,
) -> tuple[Path, int]:
    """Writes the rows of parquet files with a new column of captions; what cannot be decoded has null there.

    Captions are kept beside the output as they are made (OUTPUT.captions.jsonl), and a call with the same arguments
    goes on behind the last.

    Args:
        model, processor: of a CoCa.
        data: parquet files, of one schema.
        output: a parquet file that is not there yet.
        column: the new column's name.
        image_column: the column of images; None finds it.
        batch_size: images captioned at once.
        options: those of `stream_captions`.

    Returns:
        The output, and how many images could not be decoded.

    Raises:
        SourceError: for files that are no parquet, or hold the column already.
        ValueError: where captions kept beside the output are of other arguments; what `stream_captions` raises.
    """
    files, output = [Path(each) for each in data], Path(output)
    for file in files:
        if file.suffix != ".parquet" or not file.is_file():
            raise SourceError(f"{file} is no parquet file, of which a new column can be made: name *.parquet.")
        if column in pq.read_schema(file).names:
            raise SourceError(f"{file} has a column {column!r} already: set `column` to another name.")
    source = open_source(files, image_column=image_column)
    kept = output.with_name(output.name + ".captions.jsonl")
    told = {"data": [str(file) for file in files], "column": column, "image_column": source.image_column}
    told |= {
        "model": _state_of(model, processor),
        "options": {name: repr(value) for name, value in sorted(options.items())},
    }
    captions = _kept_captions(kept, told)
    if captions:
        logger.info("%s: going on behind %d captions.", kept, len(captions))
    images = (row[source.image_column] for row in source.dataset.skip(len(captions)))
    made = stream_captions(model, processor, images, batch_size, return_errors=True, **options)
    with kept.open("a", encoding="utf-8") as stream:
        for caption in made:
            captions.append(None if isinstance(caption, ImageDecodeError) else caption)
            stream.write(json.dumps(captions[-1], ensure_ascii=False) + "\n")
            stream.flush()
    _write(files, output, column, captions)
    kept.unlink()
    return output, captions.count(None)


def _state_of(model: Any, processor: Any) -> str:
    """A hash of all that captions depend on: of what embeddings do, and of the decoder."""
    digest = hashlib.sha256(state_key(model, processor, "text", "image").encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(("text_decoder.", "lm_head.", "token_projection.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _kept_captions(kept: Path, told: dict[str, Any]) -> list[str | None]:
    """Those of an earlier call with the same arguments; the file is begun where there is none."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(told) + "\n", encoding="utf-8")
        return []
    # A line that was cut off by the end of a process has no end.
    whole = kept.read_bytes().rpartition(b"\n")[0] + b"\n"
    # Not splitlines: captions may hold other ends of lines, which JSON leaves as they are.
    first, *lines = whole.decode("utf-8")[:-1].split("\n")
    if not first or json.loads(first) != told:
        raise ValueError(f"{kept} has captions of another model, data or options: remove it, or name another output.")
    with kept.open("r+b") as stream:
        stream.truncate(len(whole))
    return [json.loads(line) for line in lines]


def _write(files: list[Path], output: Path, column: str, captions: list[str | None]) -> None:
    """All rows and the column, written aside and renamed."""
    waiting, aside = iter(captions), output.with_name(f".{output.name}.{os.getpid()}")
    schema = pq.read_schema(files[0]).append(pa.field(column, pa.string()))
    # Notes of datasets and pandas on the columns that there are.
    with pq.ParquetWriter(aside, schema.remove_metadata()) as writer:
        for batch in _batches(files):
            texts = pa.array([next(waiting) for _ in range(len(batch))], pa.string())
            table = pa.table([*batch.columns, texts], names=[*batch.schema.names, column])
            writer.write_table(table.cast(schema.remove_metadata()))
    with aside.open("rb+") as stream:
        os.fsync(stream.fileno())
    aside.replace(output)


def _batches(files: list[Path]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with pq.ParquetFile(file) as opened:
            yield from opened.iter_batches(_ROWS_AT_ONCE)
