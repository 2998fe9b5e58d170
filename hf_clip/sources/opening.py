"""Opening: one function for each form that data can have, all ending in the same kind of stream."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import config
from datasets.iterable_dataset import ExamplesIterable

from hf_clip.model.image_decoding_hf_clip import IMAGE_SUFFIXES

from .columns import Columns, Request, Share, choose_columns, kind_of_feature, kind_of_values, on_its_own
from .errors import SourceError, different_columns, first_names, how_to_set, logger, one_line
from .files import (
    File,
    choose_files,
    choose_split,
    format_of_folder,
    is_hub_id,
    is_saved_to_disk,
    list_files,
    only_format,
)
from .joined_captions import CaptionTable, JoinedCaptions
from .marks import PROBLEM
from .readers import generate_images, generate_row_groups, generate_rows, read_rows, require_files
from .remote import is_address
from .row_groups import find_row_groups, index_parquet
from .sample import ROW_KEY, Source, image_of, iterate_samples
from .shards import Keep, find_indexed_rows, find_marked_rows
from .tables import csv_header, looks_like_a_row
from .tars import explain_columns, require_whole_samples
from .values import ValueKindError, as_text, spellings, whole_number

ROWS_TO_LOOK_AT = 100
# So many rows more are looked at for a column that the caller names and the first do not have.
ROWS_TO_SEARCH = 100_000
UNDECODED, TEXT = datasets.Image(decode=False), datasets.Value("string")
IMAGES_PER_SHARD = 1024


def open_source(
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    keyword_columns: str | Sequence[str] = (),
    extra_columns: str | Sequence[str] = (),
    label_column: str | None = None,
    concept_column: str | None = None,
    where: Mapping[str, Any] | None = None,
    mask_column: str | None = None,
    join: CaptionTable | None = None,
    share: Share = on_its_own,
) -> Source:
    """Open `data` as a stream of undecoded images with captions, labels or both.

    Args:
        data: one of
            - parquet files with images inside, of `datasets`, pandas or pyarrow (bytes, or bytes and path);
            - CSV, TSV, JSON lines or parquet with image paths, absolute or relative to the table;
            - WebDataset tars (`.jpg`, `.png`, ... with `.txt`, `.json` or `.cls` beside them);
            - a folder of such files, of images with `metadata.csv` or `metadata.jsonl`, or of one folder a
              class;
            - a folder written by `save_to_disk`;
            - the id of a data set on the Hub, "owner/name" or "owner/name:configuration".
            Files can be a list or a pattern such as "data/*.parquet" or "shard-{00..31}.tar"; "@" and the name of a
            file stand for its lines. Parquet files with images and tars may lie at addresses (s3://, hf://, https://).
        split: which split, of data that has several. Data without splits is all "train".
        image_column, caption_columns, label_column, concept_column: by default found by their names.
        keyword_columns: words for what the image shows, where they are not captions; none by default.
        extra_columns: further columns, whose fields samples hold as they are; none by default.
        where: keep the rows whose column has the value, or one of a list of values; class names are values.
        mask_column: images whose pixels are indices of classes; none by default.
        join: captions of another table, which belong to the rows with the same value in a column (as pandas' `merge`
            with `how="left"`). They follow those of `caption_columns`, which are none then by default.
        share: calls what it is given on one of several processes, which open `data` together, and gives the result on
            all: files are listed and looked into once. By default each process does so by itself.

    Returns:
        The source. Its first row was read, so that what is wrong with the data as a whole shows at once.

    Raises:
        SourceError: whatever is wrong with `data` or with an argument.
    """
    request = Request(
        split=split,
        image_column=image_column,
        caption_columns=None if caption_columns is None else _names(caption_columns),
        keyword_columns=_names(keyword_columns),
        extra_columns=_names(extra_columns),
        label_column=label_column,
        concept_column=concept_column,
        where={column: _accepted_values(column, value) for column, value in (where or {}).items()},
        mask_column=mask_column,
        share=share,
    )
    return _open(data, request) if join is None else _open_joined(data, request, share(join.read))


def _open(data: str | Path | Sequence[str | Path], request: Request) -> Source:
    if isinstance(data, str) and is_hub_id(data):
        return _open_hub(data, request)
    return _open_local(data, request)


def _open_joined(data: str | Path | Sequence[str | Path], request: Request, joined: JoinedCaptions) -> Source:
    """`data` with its key among the columns that are read, and no captions of its own but those that are named."""
    extra = tuple(dict.fromkeys((*request.extra_columns, joined.key_column)))
    captions = request.caption_columns or ()
    source = _open(data, replace(request, caption_columns=captions, extra_columns=extra, has_joined=True))
    joined.require_keys_of(source)
    return replace(source, joined=joined)


def _open_local(data: str | Path | Sequence[str | Path], request: Request) -> Source:
    files, root = request.share(partial(list_files, data))
    if isinstance(root, Path) and is_saved_to_disk(root):
        return _open_saved_to_disk(root, request)
    name = str(data) if isinstance(data, str | Path) else first_names([str(item) for item in data], 3)
    images: list[File] = []
    if root is None:
        kind = only_format(files, name)
    else:
        kind, files, images = format_of_folder(root, files)
    files = choose_files(files, root, kind, request.split, name)
    if kind not in ("parquet", "tar"):
        _require_local(files)
    if kind == "images":
        return _open_images([*map(Path, files)], root, name, request)
    if kind == "parquet":
        return _open_parquet(files, name, request)
    source = _open_rows(files, name, request)
    if images:
        _report_unnamed([*map(Path, images)], [*map(Path, files)], name, source.image_column)
    return source


def _require_local(files: Sequence[File]) -> None:
    """Raises SourceError where images lie each in a file of its own, and not on this machine."""
    if remote := [file for file in files if is_address(file)]:
        raise SourceError(
            f"{remote[0]!r}: at addresses, parquet files with images inside and tars are read. Write one of these, or "
            "fetch tables and images to this machine."
        )


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _open_parquet(files: list[File], name: str, request: Request) -> Source:
    index = request.share(partial(index_parquet, [str(file) for file in files]))
    features = index.features
    columns = choose_columns(name, {column: kind_of_feature(features[column]) for column in features}, request)
    if kind_of_feature(features[columns.image]) in ("text", "texts"):
        _require_local(files)
        return _open_rows(files, name, request)
    if not index.num_rows:
        raise SourceError(f"{name!r} has no rows. Check that it was written to its end.")
    read = {column: features[column] for column in columns.read}
    dataset = _stream(
        generate_row_groups,
        {**read, **dict.fromkeys(columns.images, UNDECODED), ROW_KEY: TEXT},
        {"files": list(index.files), "columns": columns},
    )
    find_rows = partial(find_row_groups, index, columns)
    known = {"num_rows": index.num_rows, "file_starts": index.file_starts}
    return _finish(dataset, name, columns, request, all_columns=features, find_rows=find_rows, **known)


def _stream(generate: Callable, features: Mapping[str, Any], arguments: dict[str, Any]) -> datasets.IterableDataset:
    """The (key, row) of a generator as a stream of `datasets`.

    As `IterableDataset.from_generator` makes it, without the builder: that one needs a cache folder that can be
    written to, and nothing is cached here.
    """
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.IterableDataset(ExamplesIterable(generate, arguments), info=info)


def _open_saved_to_disk(folder: Path, request: Request) -> Source:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SourceError(
            f"{str(folder)!r} is not a complete save_to_disk folder ({one_line(error)}). Save it again."
        ) from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    splits = {str(split): dataset for split, dataset in splits.items()}
    dataset = splits[choose_split(list(splits), request.split, str(folder))]
    if len(dataset) == 0:
        raise SourceError(f"{str(folder)!r} has no rows. Save the data set again.")
    stream = dataset.to_iterable_dataset(num_shards=-(-len(dataset) // IMAGES_PER_SHARD))
    return _open_typed(stream, str(folder), request, len(dataset), saved=dataset)


def _open_hub(data: str, request: Request) -> Source:
    repository, _, configuration = data.partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None, streaming=True)
        splits = {str(split): dataset for split, dataset in found.items()}
        split = choose_split(list(splits), request.split, data)
        dataset = splits[split]
        if dataset.features is None:
            head = pa.Table.from_pylist(list(dataset.take(ROWS_TO_LOOK_AT)))
            dataset = dataset.cast(datasets.Features.from_arrow_schema(head.schema))
        known = (dataset.info.splits or {}).get(split)
        return _open_typed(dataset, data, request, known.num_examples if known else None)
    except SourceError:
        raise
    # The network, the Hub, fsspec and a dozen readers each raise their own.
    except Exception as error:
        raise SourceError(
            f"{data!r} is no file or folder in {str(Path.cwd())!r}, and as a data set on the Hub it could "
            f"not be opened ({one_line(error)}). "
            f"Check the name, the network and HF_HUB_OFFLINE, or give a local path.{_fix_of_cache(error)}"
        ) from error


def _fix_of_cache(error: Exception) -> str:
    """What to do where the error is one of the cache folder, which data sets of the Hub cannot do without."""
    if isinstance(error, OSError) and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.ENOTDIR,
    ):
        return f" Set HF_HOME to a folder that can be written to (it is {config.HF_CACHE_HOME!r})."
    return ""


def _open_typed(
    dataset: datasets.IterableDataset,
    name: str,
    request: Request,
    num_rows: int | None,
    saved: datasets.Dataset | None = None,
) -> Source:
    """Open a stream whose features are known and whose images are inside; `saved` has its rows by index."""
    features = dataset.features
    assert features is not None
    columns = choose_columns(name, {column: kind_of_feature(features[column]) for column in features}, request)
    if kind_of_feature(features[columns.image]) in ("text", "texts"):
        raise SourceError(
            f"column {columns.image!r} of {name!r} holds text, not images. Columns: {', '.join(features)}. "
            f"{how_to_set('image_column')}. Paths are read from local CSV, JSON lines and parquet files."
        )
    dataset, find_rows = dataset.select_columns(columns.read), None
    if saved is not None:
        rows = saved.select_columns(columns.read)
        find_rows = partial(find_indexed_rows, rows.cast_column(columns.image, _undecoded(features[columns.image])))
    known = {"num_rows": num_rows, "folder": None if saved is None else os.path.abspath(name)}
    return _finish(dataset, name, columns, request, all_columns=features, find_rows=find_rows, **known)


def _undecoded(feature: Any) -> Any:
    """The feature of images, or of lists of images, without decoding."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return datasets.List(_undecoded(feature.feature))
    return UNDECODED


def _open_rows(files: list[File], name: str, request: Request) -> Source:
    """Open tables of image paths and tars."""
    columns, all_columns = request.share(partial(_look_into_rows, files, name, request))
    features = {
        column: datasets.List(TEXT) if column in columns.lists else TEXT for column in (*columns.read, ROW_KEY)
    }
    names = [str(each) for each in files]
    arguments = {"files": names, "columns": columns}
    dataset = _stream(generate_rows, {**features, **dict.fromkeys(columns.images, UNDECODED)}, arguments)
    find_rows = partial(find_marked_rows, names, columns)
    return _finish(dataset, name, columns, request, all_columns=all_columns, find_rows=find_rows)


def _look_into_rows(files: list[File], name: str, request: Request) -> tuple[Columns, list[str]]:
    """The columns to read of tables of image paths and tars, and all that there are, by their first rows."""
    file, suffix = str(files[0]), files[0].suffix.lower()
    first = list(islice(read_rows(file), ROWS_TO_LOOK_AT))
    rows = [(key, row) for key, row in first if PROBLEM not in row]
    for key, row in first:
        # One row in another encoding among the first is rarely the only one.
        if PROBLEM in row and (not rows or "UTF-8" in row[PROBLEM]):
            raise SourceError(f"{key} {row[PROBLEM]}")
    if not rows:
        raise SourceError(f"{file!r} has no rows. Write the file again, or drop it.")
    if suffix == ".tar":
        require_whole_samples(file, rows)
    head: dict[str, list[Any]] = {}
    for _, row in rows:
        for column, value in row.items():
            head.setdefault(column, []).append(value)
    for other in files[1:]:
        if other.suffix.lower() in (".csv", ".tsv") and set(found := csv_header(str(other))) != set(head):
            raise different_columns(file, head, str(other), found)
    if suffix not in (".csv", ".tsv", ".parquet"):
        _search_columns(files, head, request)
    try:
        columns = choose_columns(name, {column: kind_of_values(values) for column, values in head.items()}, request)
    except SourceError as error:
        hint = explain_columns(rows) if suffix == ".tar" else ""
        if suffix in (".csv", ".tsv") and looks_like_a_row(list(head), IMAGE_SUFFIXES):
            hint = f" The first line of {file!r} is no header, but a row: write the names of the columns above it."
        raise SourceError(f"{error}{hint}") from None
    if suffix != ".tar":
        folder = os.path.dirname(os.path.abspath(file))
        require_files(file, [image_of(row.get(columns.image), folder, key, file) for key, row in rows])
    holds_lists = (column for column in columns.read if any(isinstance(value, list) for value in head[column]))
    return replace(columns, lists=(*columns.captions, *holds_lists)), list(head)


def _search_columns(files: Sequence[File], head: dict[str, list[Any]], request: Request) -> None:
    """Add to `head` the columns that the caller names and that only later rows have."""
    named = (request.image_column, *(request.caption_columns or ()), *request.keyword_columns, *request.extra_columns)
    named = (*named, *request.where, request.label_column, request.concept_column, request.mask_column)
    missing = {column for column in named if column} - set(head)
    later = (row for file in files for _, row in read_rows(str(file)))
    for row in islice(later if missing else (), ROWS_TO_SEARCH):
        for column in missing & set(row):
            head[column] = [row[column]]
        if not (missing := missing - set(row)):
            return


def _report_unnamed(images: Sequence[Path], tables: Sequence[Path], name: str, column: str) -> None:
    """A line on the images beside the tables that no row names."""
    named = set()
    for table in tables:
        folder = os.path.dirname(os.path.abspath(table))
        for key, row in read_rows(str(table)):
            image = None if PROBLEM in row else image_of(row.get(column), folder, key, str(table))
            named.add(os.path.normpath(image["path"]) if image and image["path"] else "")
    folders = {table.parent for table in tables}
    beside = [image for image in images if not folders.isdisjoint(image.parents)]
    unnamed = [image for image in beside if os.path.normpath(os.path.abspath(image)) not in named]
    if unnamed:
        logger.warning(
            "%r: %d of %d images are skipped, for no row of %s names them: %s.",
            *(name, len(unnamed), len(beside), first_names([table.name for table in tables], 2)),
            first_names([image.name for image in unnamed], 3),
        )


def _open_images(files: list[Path], root: File | None, name: str, request: Request) -> Source:
    """Open a folder with one folder a class."""
    names = sorted({file.parent.name for file in files})
    if all(label.isascii() and label.isdigit() for label in names):
        # Folders with the indices of classes as names: 2 comes before 10.
        names.sort(key=int)
    fix = "Add a metadata.csv with the columns file_name and caption, or sort them into one folder a class."
    if root is None or len(names) == 1:
        raise SourceError(f"{name!r} holds images without captions or classes. {fix}")
    depths = Counter(len(file.parts) for file in files)
    usual = max(depths, key=lambda depth: (depths[depth], depth))
    strays = [file.relative_to(root).as_posix() for file in files if len(file.parts) != usual]
    if strays:
        raise SourceError(
            f"the images in {name!r} are at different depths ({first_names(strays, 3)}): their folders are no "
            f"classes. {fix}"
        )
    columns = choose_columns(name, {"image": "image", "label": "label"}, request)
    features = {"image": UNDECODED, "label": datasets.ClassLabel(names=names), ROW_KEY: TEXT}
    paths = [str(file) for file in files]
    shards = [tuple(paths[i : i + IMAGES_PER_SHARD]) for i in range(0, len(paths), IMAGES_PER_SHARD)]
    dataset = _stream(generate_images, features, {"shards": shards})
    return _finish(dataset, name, columns, request, all_columns=("image", "label"), num_rows=len(files))


def _finish(
    dataset: datasets.IterableDataset,
    name: str,
    columns: Columns,
    request: Request,
    *,
    all_columns: Sequence[str] | Mapping[str, Any],
    num_rows: int | None = None,
    file_starts: tuple[tuple[str, int], ...] = (),
    folder: str | None = None,
    find_rows: Callable[[Keep | None], Sequence] | None = None,
) -> Source:
    """Cast the images, keep the rows asked for, read the first."""
    features = dataset.features
    assert features is not None
    for column in columns.images:
        if (undecoded := _undecoded(features[column])) != features[column]:
            dataset = dataset.cast_column(column, undecoded)
    label = features.get(columns.label) if columns.label else None
    label = getattr(label, "feature", label)
    unfiltered, keep = dataset, None
    if request.where:
        named = {column: names for column in columns.where if (names := getattr(features[column], "names", None))}
        classes = {column: _accepted_classes(names, request.where[column]) for column, names in named.items()}
        wanted = {"where": request.where, "classes": classes}
        dataset = dataset.filter(_has_values, fn_kwargs=wanted)
        keep = partial(_has_values, **wanted)
        num_rows, file_starts = None, ()
    source = Source(
        dataset=dataset,
        name=name,
        image_column=columns.image,
        caption_columns=columns.captions,
        keyword_columns=columns.keywords,
        extra_columns=columns.extra,
        label_column=columns.label,
        label_names=tuple(label.names) if isinstance(label, datasets.ClassLabel) else None,
        concept_column=columns.concept,
        mask_column=columns.mask,
        num_rows=num_rows,
        columns=tuple(all_columns),
        file_starts=file_starts,
        folder=folder,
        find_rows=None if find_rows is None else partial(find_rows, keep),
    )
    if request.share(lambda: next(iterate_samples(source), None) is None):
        raise _no_rows(unfiltered, name, request)
    return source


def _no_rows(dataset: datasets.IterableDataset, name: str, request: Request) -> SourceError:
    rows = list(dataset.take(1000))
    if not rows:
        return SourceError(f"{name!r} has no rows. Check that it was written to its end.")
    asked = ", ".join(f"{column}={'|'.join(values)}" for column, values in request.where.items())
    there = []
    for column in request.where:
        names = getattr((dataset.features or {})[column], "names", None)
        found = names or sorted({text for row in rows for text in _texts(row[column])})
        there.append(f"{column}: {first_names(found)}")
    return SourceError(f"no row of {name!r} has {asked}. Values there, among others: {'; '.join(there)}.")


def _has_values(
    row: Mapping[str, Any], where: Mapping[str, tuple[str, ...]], classes: Mapping[str, frozenset[int]]
) -> bool:
    for column, accepted in where.items():
        value = row[column]
        if column in classes and isinstance(value, int):
            if value not in classes[column]:
                return False
            continue
        texts = {spelling for text in _texts(value) for spelling in spellings(text)}
        if texts.isdisjoint(accepted):
            return False
    return True


def _accepted_classes(names: Sequence[str], accepted: Sequence[str]) -> frozenset[int]:
    """The indices of the classes that values of `where` mean: by name, or by index where no name is a number."""
    numbers = [whole_number(name) for name in names]
    found: set[int] = set()
    for value in accepted:
        number = whole_number(value)
        if value in names:
            found.update(index for index, name in enumerate(names) if name == value)
        elif number is not None and any(each is not None for each in numbers):
            # Of folders 1 to 3, the value 2 must not be the one of index 2 as well.
            found.update(index for index, each in enumerate(numbers) if each == number)
        elif number is not None:
            found.add(number)
    return frozenset(found)


def _texts(value: Any) -> list[str]:
    """The value of a field, or those of a list, as texts; values that have none are equal to nothing."""
    texts = []
    for item in value if isinstance(value, list) else [value]:
        try:
            texts.append(as_text(item) or "")
        except ValueKindError:
            continue
    return texts


def _accepted_values(column: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple | set) else (value,)
    try:
        texts = [as_text(item) or "" for item in values]
    except ValueKindError as error:
        raise SourceError(
            f"`where`: the value of {column!r} {error}. Give a text, a number or a list of these."
        ) from None
    return tuple(spelling for text in texts for spelling in spellings(text))
