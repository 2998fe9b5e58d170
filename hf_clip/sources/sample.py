"""A stream of undecoded images, and its samples."""

import ast
import json
import os
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import fsspec
import pyarrow as pa

from .errors import SourceError, column_error, one_line, report_row
from .values import ValueKindError, as_text, describe

if TYPE_CHECKING:
    from .joined_captions import JoinedCaptions

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
        extra_columns: further columns whose fields samples hold as they are.
        label_column: the column of class labels, if any: one, a list, or a list as JSON.
        label_names: the names of the classes where the data knows them (`ClassLabel`, class folders).
        concept_column: rows with equal values show one concept: they are positives of each other.
        mask_column: the column of images whose pixels are indices of classes, if any.
        num_rows: where it is known without reading everything.
        columns: the names of all columns that the data has, for messages.
        file_starts: (file, index of its first row in the stream) of each file, where known.
        find_rows: lists parts that can be read on their own, for `list_shards`; None: those of `dataset`.
        folder: where relative paths of images begin that the rows still have.
        joined: captions of another table, which a row's own are followed by.
    """

    dataset: datasets.IterableDataset
    name: str
    image_column: str
    caption_columns: tuple[str, ...] = ()
    keyword_columns: tuple[str, ...] = ()
    extra_columns: tuple[str, ...] = ()
    label_column: str | None = None
    label_names: tuple[str, ...] | None = None
    concept_column: str | None = None
    mask_column: str | None = None
    num_rows: int | None = None
    columns: tuple[str, ...] = ()
    file_starts: tuple[tuple[str, int], ...] = ()
    find_rows: Callable[[], Sequence] | None = None
    folder: str | None = None
    joined: "JoinedCaptions | None" = None

    @property
    def has_captions(self) -> bool:
        """Whether its samples can have captions, their own or joined ones."""
        return bool(self.caption_columns) or self.joined is not None

    def require_captions(self) -> "Source":
        """This source, if it has captions; else a SourceError that names the columns there are."""
        if not self.has_captions:
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
        index: the row's position in the stream, from 0.
        key: names the row in messages: "captions.csv line 7", "shard-3.tar sample 000123".
        image: {"bytes", "path"} for `decode_image`; both None where the row has no image.
        captions, keywords: without None, empty and undecodable ones; may be empty.
        labels: the classes by name, without repetitions; where the data has bare numbers, the numbers as text. None
            or one, unless the label column holds lists.
        concept: the value of the concept column as text.
        mask: {"bytes", "path"} of the mask column's image; None where there is none.
        extra: the fields of the extra columns, by their names.
    """

    index: int
    key: str
    image: dict[str, Any]
    captions: list[str]
    keywords: list[str]
    labels: tuple[str, ...]
    concept: str | None
    mask: dict[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The class of a row that has one or none.

        Raises:
            SourceError: it has several.
        """
        if len(self.labels) > 1:
            raise SourceError(
                f"{self.key} has {len(self.labels)} labels ({', '.join(self.labels[:4])}), and one is wanted. Set "
                "`label_column` to a column of single labels; zero-shot evaluation takes lists with `multi_label`."
            )
        return self.labels[0] if self.labels else None


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
        if "num_classes" in str(error):
            raise SourceError(
                f"{_row_key(source, index + 1)} has a label beyond the names of the classes ({one_line(error)}). "
                "Indices begin at 0, and -1 marks a row without a label."
            ) from error
        raise SourceError(
            f"{_row_key(source, index + 1)}: the data cannot be read from here on ({one_line(error)}). Fetch the file "
            "again."
        ) from error


def to_sample(source: Source, row: Mapping[str, Any], index: int, key: str | None = None) -> Sample:
    """The sample of a row of `source.dataset`; `index` is its position in the stream, `key` names it, if known."""
    at: str = key or row.get(ROW_KEY) or _row_key(source, index)
    image = image_of(row[source.image_column], source.folder, at, source.name) or {"bytes": None, "path": None}
    if ROW_KEY not in row and image["path"] and image["path"] not in at:
        at += f" ({image['path']})"

    def texts(columns: tuple[str, ...]) -> list[str]:
        return [text for column in columns for text in texts_of(row[column], column, at, source.name)]

    joined = [] if source.joined is None else source.joined.of(row[source.joined.key_column])
    concept = None
    if source.concept_column is not None:
        concept = single_text(row[source.concept_column], source.concept_column, at, source.name)
    mask = None
    if source.mask_column is not None:
        mask = image_of(row[source.mask_column], source.folder, at, source.name)
    return Sample(
        index=index,
        key=at,
        image={"bytes": _fetch(image), "path": image["path"]},
        captions=[*texts(source.caption_columns), *joined],
        keywords=texts(source.keyword_columns),
        labels=_labels_of(source, row, at),
        concept=concept if concept and concept.strip() else None,
        mask=None if mask is None else {"bytes": _fetch(mask), "path": mask["path"]},
        extra={column: row[column] for column in source.extra_columns},
    )


def _labels_of(source: Source, row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if source.label_column is None:
        return ()
    value, labels = row[source.label_column], []
    if source.label_names is None:
        value = _labels_in(value, source.label_column, key)
    for item in value if isinstance(value, list | tuple) else [value]:
        if source.label_names is not None and isinstance(item, int):
            # datasets writes -1 for rows without a label.
            item = source.label_names[item] if 0 <= item < len(source.label_names) else None
        text = single_text(item, source.label_column, key, source.name)
        if text and text.strip():
            labels.append(text)
    return tuple(dict.fromkeys(labels))


def _labels_in(value: Any, column: str, key: str) -> Any:
    """The list that a text is in JSON, as tables without lists have it; other values as they are."""
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_python(item, column, key)
        return value
    items = _json_list(value.strip()) if isinstance(value, str) else None
    if items is not None and not any(isinstance(item, list | dict) for item in items):
        return items
    _refuse_python(value, column, key)
    return value


def _refuse_python(value: Any, column: str, key: str) -> None:
    """Raises SourceError for a text that is a list or an object as pandas writes them into CSV.

    Lists of numbers alone are texts: a caption may well be "[1]".
    """
    text = value.strip() if isinstance(value, str) else ""
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return
    try:
        with warnings.catch_warnings():
            # Python has something to say about backslashes in texts.
            warnings.simplefilter("ignore")
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return
    if found and (isinstance(found, dict) or any(not isinstance(item, int | float) for item in found)):
        what = "an object" if isinstance(found, dict) else "a list"
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise SourceError(
            f"{key}: column {column!r} holds the text of {what}, {shown!r}. Write lists of texts as JSON "
            "(json.dumps), or the table as parquet."
        )


def single_text(value: Any, column: str, key: str, group: str) -> str | None:
    """The text of a field, or of a list of one; None, and a line that names the row, for other kinds of values."""
    if isinstance(value, list | tuple) and len(value) <= 1:
        value = value[0] if value else None
    try:
        return as_text(value)
    except ValueKindError as error:
        report_row(key, f"column {column!r} {error}, not a text or number.", f"{group} {column}")
        return None


def texts_of(value: Any, column: str, key: str, group: str) -> list[str]:
    """The captions or words in a field, as `clean_captions` has them; a line names the row that has other values."""
    if wrong := _wrong_kind(value):
        report_row(key, f"column {column!r} holds {wrong}, not texts.", f"{group} {column}")
    captions = clean_captions(value)
    for caption in captions:
        _refuse_python(caption, column, key)
    return captions


def _wrong_kind(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return next(filter(None, map(_wrong_kind, value)), None)
    if value is None or isinstance(value, str | bytes | int | float) and not isinstance(value, bool):
        return None
    return describe(value)


def clean_captions(value: Any) -> list[str]:
    """The captions in a field: a string, bytes, a number, a list of such, or a JSON list of strings.

    None, NaN and empty strings are skipped, and so is what has no UTF-8 form (undecodable bytes, lone
    surrogates), for no tokenizer takes it, and what is no text (objects, booleans, dates). A string in brackets that
    is no JSON list of strings is a caption as it stands.
    """
    if isinstance(value, list | tuple):
        return [caption for item in value for caption in clean_captions(item)]
    if _wrong_kind(value) is not None:
        return []
    text = (as_text(value) or "").strip()
    items = _json_list(text)
    if items is not None and all(item is None or isinstance(item, str) for item in items):
        return [item.strip() for item in items if item is not None and item.strip() and _has_utf8(item)]
    return [text] if text and _has_utf8(text) else []


def _json_list(text: str) -> list | None:
    """The list that a text is in JSON, if it is one."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if isinstance(items, list) else None


def _has_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def image_of(value: Any, folder: str | None, key: str, group: str) -> dict[str, Any] | None:
    """{"bytes", "path"} of a field of images: bytes, a path, a dict of both, or a list of one of these.

    None, and a line that names the row, for other kinds and for lists of several.

    Args:
        folder: where relative paths begin; None leaves them as they are.
    """
    if isinstance(value, list | tuple) and len(value) <= 1:
        value = value[0] if value else None
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        content, path = value.get("bytes"), value.get("path")
    elif value is None or isinstance(value, str):
        content, path = None, value
    else:
        report_row(key, f"holds {describe(value)} where an image belongs.", group)
        return None
    if content is not None:
        return {"bytes": content, "path": path}
    if not isinstance(path, str) or not path.strip():
        return None
    path = path.strip()
    if folder is not None and "://" not in path:
        path = os.path.join(folder, path)
    return {"bytes": None, "path": path}


def _row_key(source: Source, index: int) -> str:
    if not source.file_starts:
        return f"{source.name} row {index}"
    file, start = source.file_starts[bisect_right(source.file_starts, index, key=lambda entry: entry[1]) - 1]
    return f"{file} row {index - start}"


def _fetch(image: Mapping[str, Any]) -> bytes | None:
    """The bytes of an image; image folders on the Hub give hf:// addresses, which no decoder opens."""
    content, path = image["bytes"], image["path"]
    if content is None and path and "hf://" in path:
        try:
            with fsspec.open(path, "rb") as stream:
                return stream.read()  # type: ignore[union-attr]
        except (OSError, ValueError):
            return None
    return content
