"""Stored teachers: training data written once more, with what other models make of its images and captions."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_clip.conversion import load
from hf_clip.model.embedding_hf_clip import embed_images, embed_texts
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image
from hf_clip.sources import DataSpec, Source, clean_captions, to_sample

from .data_config import teacher_columns

# Rows that are held at once, and those of a row group.
ROWS = 512


def write_teachers(
    spec: DataSpec,
    teachers: Sequence[tuple[str, Any, Any]],
    output: str | Path,
    *,
    synthetic_columns: Sequence[str] = (),
    batch_size: int = 64,
) -> int:
    """Writes data as one parquet file, with the embeddings that teachers make of it (Vasu et al. 2023, "MobileCLIP").

    For each teacher there is a column NAME_image, the embedding of an image, and NAME_captions, those of all captions
    behind one another: float16 numbers as bytes. They are unit embeddings times the root of the teacher's logit scale,
    so that their products are its logits. All columns that `spec` names are kept. A row whose image cannot be decoded,
    or that has no caption, is kept without a teacher: training skips and counts it.

    Args:
        spec: the data; its `extra_columns` are kept as they are.
        teachers: (name, model, processor) of each.
        synthetic_columns: of captions that `data.synthetic_columns` will name; they come behind the others.
        output: the parquet file; whole or not there.

    Returns:
        How many rows have their teachers.

    Raises:
        SourceError: the data cannot be read. ValueError: two teachers of one name, or a column of such a name.
    """
    extra = dict.fromkeys([*spec.extra_columns, *synthetic_columns])
    source = replace(spec, extra_columns=tuple(extra)).open().require_captions()
    names = [name for name, _, _ in teachers]
    columns = [column for name in names for column in teacher_columns(name)]
    if len(set(names)) < len(names) or (taken := set(columns) & set(source.columns)):
        what = (
            f"column {sorted(taken)[0]!r} is there already" if len(set(names)) == len(names) else "a name stands twice"
        )
        raise ValueError(f"`teachers` are named {', '.join(names)}: {what}: give another name.")
    output = Path(output)
    unfinished = output.with_name(f".{output.name}.partial")
    taught, writer = 0, None
    try:
        for rows in _parts(source):
            made = [_teach(source, rows, teacher, synthetic_columns, batch_size) for teacher in teachers]
            for row, place in rows:
                for (name, _, _), columns_of in zip(teachers, made, strict=True):
                    row |= dict(zip(teacher_columns(name), columns_of.get(place, (None, None)), strict=True))
                taught += all(place in columns_of for columns_of in made)
            table = _table([row for row, _ in rows], source, columns)
            writer = writer or pq.ParquetWriter(unfinished, table.schema)
            writer.write_table(table.cast(writer.schema), row_group_size=ROWS)
        if writer is not None:
            writer.close()
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
    return taught


def _parts(source: Source) -> Iterator[list[tuple[dict[str, Any], int]]]:
    """Rows with their images' bytes, and their places in the stream, some at a time."""
    rows = enumerate(source.dataset)
    while part := list(islice(rows, ROWS)):
        made = []
        for index, row in part:
            sample = to_sample(source, row, index)
            image = dict(sample.image)
            if image["bytes"] is None and image["path"] and os.path.isfile(image["path"]):
                image["bytes"] = Path(image["path"]).read_bytes()
            image["path"] = os.path.basename(image["path"]) if image["path"] else None
            kept = {name: value for name, value in row.items() if not name.startswith("__")}
            made.append(({**kept, source.image_column: image}, index))
        yield made


def _teach(
    source: Source,
    rows: list[tuple[dict[str, Any], int]],
    teacher: tuple[str, Any, Any],
    synthetic_columns: Sequence[str],
    batch_size: int,
) -> dict[int, tuple[bytes, bytes]]:
    """What a teacher makes of the rows that have an image and captions, by their places."""
    _, model, processor = teacher
    images, texts, places, counts = [], [], [], []
    for row, place in rows:
        sample = to_sample(source, row, place)
        synthetic = (text for column in synthetic_columns for text in clean_captions(sample.extra[column]))
        captions = [*sample.captions, *synthetic]
        try:
            image = decode_image(sample.image)
        except ImageDecodeError:
            continue
        if captions:
            images.append(image)
            texts += captions
            places.append(place)
            counts.append(len(captions))
    if not places:
        return {}
    root = float(model.logit_scale.exp().item()) ** 0.5
    image_ND = np.asarray(embed_images(model, processor, images, batch_size=batch_size)) * root
    text_MD = np.asarray(embed_texts(model, processor, texts, batch_size=batch_size)) * root
    made, start = {}, 0
    for place, image_D, count in zip(places, image_ND, counts, strict=True):
        of_texts = text_MD[start : start + count]
        made[place] = (image_D.astype(np.float16).tobytes(), of_texts.astype(np.float16).tobytes())
        start += count
    return made


def _table(rows: list[dict[str, Any]], source: Source, teacher_columns: list[str]) -> pa.Table:
    """A table whose types do not depend on which values are missing."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    known = {source.image_column: image, **dict.fromkeys(teacher_columns, pa.binary())}
    features = source.dataset.features or {}
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = known.get(name)
        if kind is None and name in features:
            feature = features[name]
            kind = feature.arrow_schema if hasattr(feature, "arrow_schema") else None
        columns[name] = pa.array(values, kind) if kind is not None else _array(values)
    return pa.table(columns)


def _array(values: list[Any]) -> pa.Array:
    if any(isinstance(value, list) for value in values):
        return pa.array(values, pa.list_(pa.string()))
    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string())
    return pa.array(values)


def open_teachers(
    sources: Sequence[str], names: Sequence[str] | None, device: Any = "cpu"
) -> list[tuple[str, Any, Any]]:
    """(name, model, processor) of each teacher; they are called `teacher`, or `teacher_1` and so on, by default."""
    if names is None:
        names = ["teacher"] if len(sources) == 1 else [f"teacher_{number}" for number in range(1, len(sources) + 1)]
    return [(name, *load(source, device=device)) for name, source in zip(names, sources, strict=True)]
