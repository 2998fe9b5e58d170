"""Opening: one function for each way that data can stand, all ending in the same kind of stream."""

import glob
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from .columns import Columns, Request, choose_columns, kind_of_feature, kind_of_values
from .errors import SourceError, differs, how_to_set, one_line, some
from .files import choose_files, choose_split, format_of_folder, is_hub_id, is_saved_to_disk, list_files, only_format
from .readers import PARQUET_BATCH_ROWS, check_paths, csv_header, generate_images, generate_rows, locate, read_rows
from .sample import ROW_KEY, Source, as_text, iterate_samples
from .shards import Keep, find_indexed_rows, find_marked_rows, find_row_groups

ROWS_TO_LOOK_AT = 100
IMAGES_PER_SHARD = 1024


def open_source(
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    keyword_columns: str | Sequence[str] = (),
    label_column: str | None = None,
    concept_column: str | None = None,
    where: Mapping[str, Any] | None = None,
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
            Files can be a list or a pattern such as "data/*.parquet".
        split: which split, of data that has several. Data without splits is all "train".
        image_column, caption_columns, label_column, concept_column: by default found by their names.
        keyword_columns: words for what the image shows, where they are not captions; none by default.
        where: keep the rows whose column has the value, or one of a list of values; class names are values.

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
        label_column=label_column,
        concept_column=concept_column,
        where={column: _accepted_values(value) for column, value in (where or {}).items()},
    )
    if isinstance(data, str) and is_hub_id(data):
        return _open_hub(data, request)
    files, root = list_files(data)
    if root is not None and is_saved_to_disk(root):
        return _open_saved_to_disk(root, request)
    name = str(data) if isinstance(data, str | Path) else some([str(item) for item in data], 3)
    if root is None:
        kind = only_format(files, name)
    else:
        kind, files = format_of_folder(root, files)
    files = choose_files(files, root, kind, split, name)
    if kind == "images":
        return _open_images(files, root, name, request)
    if kind == "parquet":
        return _open_parquet(files, name, request)
    return _open_rows(files, name, request)


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _open_parquet(files: list[Path], name: str, request: Request) -> Source:
    schema, starts, total = None, [], 0
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(
                f"{str(file)!r} is no readable parquet file ({one_line(error)}). Fetch it again."
            ) from error
        with parquet:
            found = parquet.schema_arrow.remove_metadata()
            starts.append((str(file), total))
            total += parquet.metadata.num_rows
            if schema is None:
                schema, features = found, datasets.Features.from_arrow_schema(parquet.schema_arrow)
        if set(found.names) != set(schema.names):
            raise differs(str(files[0]), schema.names, str(file), found.names)
    columns = choose_columns(name, {column: kind_of_feature(features[column]) for column in features}, request)
    if kind_of_feature(features[columns.image]) == "text":
        return _open_rows(files, name, request)
    dataset = datasets.load_dataset(
        "parquet",
        # datasets takes each name as a pattern.
        data_files={"train": [glob.escape(str(file.absolute())) for file in files]},
        split="train",
        streaming=True,
        columns=columns.read,
        batch_size=PARQUET_BATCH_ROWS,
        # By default pyarrow fetches all row groups of a file at once, and holds them.
        fragment_scan_options=pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True),
    )
    # One shard a row group, so that no more than one is in memory, and lanes and workers share a single file.
    dataset = dataset.reshard()
    find_rows = partial(find_row_groups, files, columns)
    known = {"num_rows": total, "file_starts": tuple(starts)}
    return _finish(dataset, name, columns, request, all_columns=features, find_rows=find_rows, **known)


def _open_saved_to_disk(folder: Path, request: Request) -> Source:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SourceError(
            f"{str(folder)!r} is not a whole save_to_disk folder ({one_line(error)}). Save it again."
        ) from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    dataset = splits[choose_split(list(splits), request.split, str(folder))]
    if len(dataset) == 0:
        raise SourceError(f"{str(folder)!r} has no rows. Save the data set again.")
    stream = dataset.to_iterable_dataset(num_shards=-(-len(dataset) // IMAGES_PER_SHARD))
    return _open_typed(stream, str(folder), request, len(dataset), saved=dataset)


def _open_hub(data: str, request: Request) -> Source:
    repository, _, configuration = data.partition(":")
    try:
        splits = datasets.load_dataset(repository, configuration or None, streaming=True)
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
            "Check the name, the network and HF_HUB_OFFLINE, or give a local path."
        ) from error


def _open_typed(
    dataset: datasets.IterableDataset,
    name: str,
    request: Request,
    num_rows: int | None,
    saved: datasets.Dataset | None = None,
) -> Source:
    """Open a stream whose features are known and whose images are inside; `saved` has its rows by number."""
    features = dataset.features
    columns = choose_columns(name, {column: kind_of_feature(features[column]) for column in features}, request)
    if kind_of_feature(features[columns.image]) == "text":
        raise SourceError(
            f"column {columns.image!r} of {name!r} holds text, not images. Columns: {', '.join(features)}. "
            f"{how_to_set('image_column')}. Paths are read from local CSV, JSON lines and parquet files."
        )
    dataset, find_rows = dataset.select_columns(columns.read), None
    if saved is not None:
        rows = saved.select_columns(columns.read).cast_column(columns.image, datasets.Image(decode=False))
        find_rows = partial(find_indexed_rows, rows)
    return _finish(dataset, name, columns, request, all_columns=features, num_rows=num_rows, find_rows=find_rows)


def _open_rows(files: list[Path], name: str, request: Request) -> Source:
    """Open tables of image paths and tars."""
    head: dict[str, list[Any]] = {}
    rows = [row for _, row in islice(read_rows(str(files[0])), ROWS_TO_LOOK_AT)]
    if not rows:
        raise SourceError(f"{str(files[0])!r} has no rows. Write the file again, or leave it out.")
    for row in rows:
        for column, value in row.items():
            head.setdefault(column, []).append(value)
    for file in files[1:]:
        if file.suffix.lower() in (".csv", ".tsv") and set(found := csv_header(file)) != set(head):
            raise differs(str(files[0]), head, str(file), found)
    columns = choose_columns(name, {column: kind_of_values(values) for column, values in head.items()}, request)
    if files[0].suffix.lower() != ".tar":
        check_paths(files[0], [locate(row.get(columns.image), files[0]) for row in rows])
    features = datasets.Features(
        {column: datasets.Value("string") for column in (*columns.read, ROW_KEY)}
        | {column: datasets.List(datasets.Value("string")) for column in columns.captions}
        | {columns.image: datasets.Image(decode=False)}
    )
    dataset = datasets.IterableDataset.from_generator(
        generate_rows,
        features=features,
        gen_kwargs={"files": [str(file) for file in files], "columns": columns},
    )
    find_rows = partial(find_marked_rows, files, columns)
    return _finish(dataset, name, columns, request, all_columns=head, find_rows=find_rows)


def _open_images(files: list[Path], root: Path | None, name: str, request: Request) -> Source:
    """Open a folder with one folder a class."""
    names = sorted({file.parent.name for file in files})
    mend = "Add a metadata.csv with the columns file_name and caption, or sort them into one folder a class."
    if root is None or len(names) == 1:
        raise SourceError(f"{name!r} holds images without captions or classes. {mend}")
    strays = [file.relative_to(root).as_posix() for file in files if len(file.parts) != len(files[-1].parts)]
    if strays:
        raise SourceError(
            f"the images in {name!r} stand at different depths ({some(strays, 3)}): their folders are no "
            f"classes. {mend}"
        )
    columns = choose_columns(name, {"image": "image", "label": "label"}, request)
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=names),
            ROW_KEY: datasets.Value("string"),
        }
    )
    paths = [str(file) for file in files]
    shards = [tuple(paths[i : i + IMAGES_PER_SHARD]) for i in range(0, len(paths), IMAGES_PER_SHARD)]
    dataset = datasets.IterableDataset.from_generator(
        generate_images, features=features, gen_kwargs={"shards": shards}
    )
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
    find_rows: Callable[[Keep | None], list] | None = None,
) -> Source:
    """Cast the images, keep the rows asked for, read the first."""
    dataset = dataset.cast_column(columns.image, datasets.Image(decode=False))
    label = dataset.features.get(columns.label) if columns.label else None
    whole, keep = dataset, None
    if request.where:
        names = {column: getattr(dataset.features[column], "names", None) for column in columns.where}
        wanted = {"where": request.where, "names": names}
        dataset = dataset.filter(_has_values, fn_kwargs=wanted)
        keep = partial(_has_values, **wanted)
        num_rows, file_starts = None, ()
    source = Source(
        dataset=dataset,
        name=name,
        image_column=columns.image,
        caption_columns=columns.captions,
        keyword_columns=columns.keywords,
        label_column=columns.label,
        label_names=tuple(label.names) if isinstance(label, datasets.ClassLabel) else None,
        concept_column=columns.concept,
        num_rows=num_rows,
        columns=tuple(all_columns),
        file_starts=file_starts,
        find_rows=None if find_rows is None else partial(find_rows, keep),
    )
    if next(iterate_samples(source), None) is None:
        raise _no_rows(whole, name, request)
    return source


def _no_rows(dataset: datasets.IterableDataset, name: str, request: Request) -> SourceError:
    rows = list(dataset.take(1000))
    if not rows:
        return SourceError(f"{name!r} has no rows. Check that it was written to its end.")
    asked = ", ".join(f"{column}={'|'.join(values)}" for column, values in request.where.items())
    there = []
    for column in request.where:
        names = getattr(dataset.features[column], "names", None)
        found = names or sorted({as_text(row[column]) or "" for row in rows})
        there.append(f"{column}: {some(found)}")
    return SourceError(f"no row of {name!r} has {asked}. Values there, among others: {'; '.join(there)}.")


def _has_values(row: Mapping[str, Any], where: Mapping[str, tuple[str, ...]], names: Mapping[str, Any]) -> bool:
    for column, accepted in where.items():
        value = row[column]
        texts = {as_text(item) for item in (value if isinstance(value, list) else [value])}
        if names[column] and isinstance(value, int) and 0 <= value < len(names[column]):
            texts.add(names[column][value])
        if texts.isdisjoint(accepted):
            return False
    return True


def _accepted_values(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple | set) else (value,)
    return tuple(str(as_text(item)) for item in values)
