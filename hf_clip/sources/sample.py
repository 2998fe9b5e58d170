"""A stream of undecoded images, and its samples."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import fsspec
import pyarrow as pa

from .errors import SourceError, column_error, one_line

ROW_KEY = "__key__"


@dataclass(frozen=True)
class Source:
    """A stream of undecoded images, with what is needed to read its rows.

    Attributes:
        dataset: rows of the chosen columns only; images are {"bytes", "path"} (`Image(decode=False)`). The
            order of the rows is that of the sorted files and the same at every pass.
        name: what the user knows the data by, for messages.
        image_column: the column of images in `dataset`.
        caption_columns: each holds a string, a list of strings or such a list as JSON. May be empty if there
            are labels.
        keyword_columns: likewise, of single words for what an image shows.
        label_column: the column of class labels, if any.
        label_names: the names of the classes where the data knows them (`ClassLabel`, class folders).
        concept_column: rows with equal values show one concept: they are positives of each other.
        num_rows: where it is known without reading everything.
        columns: the names of all columns that the data has, for messages.
        file_starts: (file, index of its first row in the stream) of each file, where known.
        find_rows: lists parts that can be read on their own, for `list_shards`; None: those of `dataset`.
    """

    dataset: datasets.IterableDataset
    name: str
    image_column: str
    caption_columns: tuple[str, ...] = ()
    keyword_columns: tuple[str, ...] = ()
    label_column: str | None = None
    label_names: tuple[str, ...] | None = None
    concept_column: str | None = None
    num_rows: int | None = None
    columns: tuple[str, ...] = ()
    file_starts: tuple[tuple[str, int], ...] = ()
    find_rows: Callable[[], list] | None = None

    def require_captions(self) -> "Source":
        """This source, if it has captions; else a SourceError that names the columns there are."""
        if not self.caption_columns:
            raise column_error(self.name, "caption_columns", self.columns)
        return self

    def require_label(self) -> "Source":
        """This source, if it has class labels; else a SourceError that names the columns there are."""
        if self.label_column is None:
            raise column_error(self.name, "label_column", self.columns)
        return self


@dataclass(frozen=True)
class Sample:
    """One row of a source.

    Attributes:
        index: the row's place in the stream, from 0.
        key: where the row is, for messages: "captions.csv line 7", "shard-3.tar sample 000123".
        image: {"bytes", "path"} for `decode_image`; both None where the row has no image.
        captions, keywords: without None, empty and undecodable ones; may be empty.
        label: the class by name; where the data has bare numbers, the number as text.
        concept: the value of the concept column as text.
    """

    index: int
    key: str
    image: dict[str, Any]
    captions: list[str]
    keywords: list[str]
    label: str | None
    concept: str | None


def iterate_samples(source: Source) -> Iterator[Sample]:
    """The samples of `source` in order; a bad image or caption is yielded, for the caller to count.

    Raises:
        SourceError: the file itself cannot be read any further.
    """
    index = -1
    try:
        for index, row in enumerate(source.dataset):
            yield to_sample(source, row, index)
    except SourceError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        place = _row_key(source, index + 1)
        raise SourceError(
            f"{place}: the data cannot be read from here on ({one_line(error)}). Fetch the file again."
        ) from error


def to_sample(source: Source, row: Mapping[str, Any], index: int, key: str | None = None) -> Sample:
    """The sample of a row of `source.dataset`; `index` is its place in the stream, `key` where it is, if known."""
    label = row[source.label_column] if source.label_column is not None else None
    if source.label_names is not None and isinstance(label, int):
        # datasets writes -1 for rows without a label.
        label = source.label_names[label] if 0 <= label < len(source.label_names) else None
    concept = row[source.concept_column] if source.concept_column is not None else None
    image = row[source.image_column] or {}
    path = image.get("path")
    return Sample(
        index=index,
        key=key or row.get(ROW_KEY) or _row_key(source, index) + (f" ({path})" if path else ""),
        image={"bytes": _fetch(image), "path": path},
        captions=[caption for column in source.caption_columns for caption in clean_captions(row[column])],
        keywords=[word for column in source.keyword_columns for word in clean_captions(row[column])],
        label=_as_name(label),
        concept=_as_name(concept),
    )


def clean_captions(value: Any) -> list[str]:
    """The captions in a field: a string, bytes, a list of such, or a JSON list of strings.

    None, NaN and empty strings are left out, and so is what has no UTF-8 form (undecodable bytes, lone
    surrogates), for no tokenizer takes it. A string in brackets that is no JSON list of strings is a
    caption as it stands.
    """
    if value is None or value != value:
        return []
    if isinstance(value, list | tuple):
        return [caption for item in value for caption in clean_captions(item)]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="surrogateescape")
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list) and all(item is None or isinstance(item, str) for item in items):
            return [item.strip() for item in items if item is not None and item.strip() and _has_utf8(item)]
    return [text] if text and _has_utf8(text) else []


def as_text(value: Any) -> str | None:
    """A label, a concept or a value of `where` as text. JSON and YAML write True as true."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_name(value: Any) -> str | None:
    """A label or a concept as text; None for NaN and blanks, or all rows without one would be of one kind."""
    text = None if value != value else as_text(value)
    return text if text and text.strip() else None


def _has_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _row_key(source: Source, index: int) -> str:
    if not source.file_starts:
        return f"{source.name} row {index}"
    file, start = source.file_starts[bisect_right(source.file_starts, index, key=lambda entry: entry[1]) - 1]
    return f"{file} row {index - start}"


def _fetch(image: Mapping[str, Any]) -> bytes | None:
    """The bytes of an image; image folders on the Hub give hf:// addresses, which no decoder opens."""
    content, path = image.get("bytes"), image.get("path")
    if content is None and path and "hf://" in path:
        try:
            with fsspec.open(path, "rb") as stream:
                return stream.read()
        except (OSError, ValueError):
            return None
    return content
