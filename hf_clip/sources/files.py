"""Which files are meant, what format they have, which belong to the split asked for."""

import difflib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hf_clip.model.image_decoding_hf_clip import IMAGE_SUFFIXES, is_image_file

from .errors import SourceError, first_names, one_line
from .image_files import walk_files
from .remote import Address, File, is_address, list_address, read_bytes, size_of

FORMAT_OF_SUFFIX = {
    ".parquet": "parquet",
    ".csv": "table",
    ".tsv": "table",
    ".jsonl": "table",
    ".ndjson": "table",
    ".json": "table",
    ".tar": "tar",
}
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# `train`, `train-00000-of-00002`, `train_3`, but not `train_station`.
SPLIT_IN_FILE_NAME = re.compile(rf"({'|'.join(SPLIT_OF_WORD)})([-_.]?\d+)?([-_.]of[-_.]\d+)?(-[0-9a-f]{{16}})?", re.I)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def is_hub_id(data: str) -> bool:
    """Whether `data`, of which no such file exists, reads as an id on the Hub rather than as a path."""
    path = Path(data)
    if (
        os.path.exists(path)
        or not HUB_ID.fullmatch(data)
        or path.suffix.lower() in (*FORMAT_OF_SUFFIX, *IMAGE_SUFFIXES)
    ):
        return False
    return "/" not in data or not os.path.exists(path.parent)


def is_saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def list_files(data: str | Path | Sequence[str | Path]) -> tuple[list[File], File | None]:
    """The sorted files of `data`, and the folder if `data` is one.

    An item may be a file, a folder, a pattern, an address (`remote.py`), some of these by braces
    ("{00..31}.tar"), or "@" and a file with one a line.
    """
    items = [name for item in ([data] if isinstance(data, str | Path) else data) for name in _spelled_out(item)]
    if not items:
        raise SourceError("data is an empty list. Name a file, a folder or the id of a data set.")
    found = [list_address(item) if is_address(item) else _list_local(item) for item in items]
    if len(found) == 1 and found[0][1] is not None:
        return found[0]
    return list(dict.fromkeys(file for files, _ in found for file in files)), None


def _list_local(item: str | Path) -> tuple[list[File], File | None]:
    path = Path(item).expanduser()
    matches = [path]
    if not os.path.exists(path):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise _missing(str(item), path)
    if len(matches) == 1 and matches[0].is_dir():
        return [*walk_files(matches[0])], matches[0]
    return [file for match in matches for file in (walk_files(match) if match.is_dir() else [match])], None


def _spelled_out(item: str | Path) -> list[str | Path]:
    """What an item stands for: the lines of a file, the names that braces make, mostly itself."""
    if isinstance(item, Path) or os.path.exists(item):
        return [item]
    if item.startswith("@"):
        lines = (line.strip() for line in _text_of(item[1:]).splitlines())
        return [name for line in lines if line and not line.startswith("#") for name in _spelled_out(line)]
    if "{" not in item:
        return [item]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise SourceError(f"{item!r}: braces need a package. Install it: pip install braceexpand.") from error
    try:
        return [*braceexpand(item)]
    except ValueError as error:
        raise SourceError(f"{item!r}: {error}. Close each brace, as in 'shard-{{00..31}}.tar'.") from error


def _text_of(file: str) -> str:
    try:
        content = read_bytes(file) if is_address(file) else Path(file).expanduser().read_bytes()
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"'@{file}' is no list of files ({one_line(error)}). Give a text file in UTF-8.") from error


def size_of_file(file: File) -> int:
    """The bytes that a file has, here or at an address."""
    return size_of(file) if isinstance(file, Address) else file.stat().st_size


def _missing(item: str, path: Path) -> SourceError:
    if glob.has_magic(item):
        return SourceError(f"{item!r} matches no file in {str(Path.cwd())!r}. Check the pattern.")
    parent = path.absolute().parent
    if not parent.is_dir():
        return SourceError(
            f"no such file or folder: {item!r} ({str(parent)!r} does not exist either). Check the path."
        )
    names = sorted(entry.name for entry in parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=1)
    there = f"did you mean {close[0]!r}?" if close else f"{str(parent)!r} holds {first_names(names)}."
    return SourceError(f"no such file or folder: {item!r}; {there} An id on the Hub is 'owner/name'.")


def format_of_file(file: File) -> str | None:
    """ "parquet", "table", "tar" or "images"; None for a file that is no data."""
    return FORMAT_OF_SUFFIX.get(file.suffix.lower()) or ("images" if is_image_file(file) else None)


def format_of_folder(folder: File, files: list[File]) -> tuple[str, list[File], list[File]]:
    """The one format that a folder holds, its files, and the images beside them, which a table names."""
    by_format: dict[str, list[File]] = {}
    for file in files:
        # A folder's .json files are rarely data (configurations, class indices); one that is must be named.
        if file.suffix.lower() != ".json" and (found := format_of_file(file)):
            by_format.setdefault(found, []).append(file)
    metadata = [file for file in files if file.name in METADATA_NAMES]
    if "images" in by_format and metadata:
        return "table", metadata, by_format["images"]
    if set(by_format) == {"images", "table"}:
        return "table", by_format["table"], by_format["images"]
    if not by_format:
        names = [str(file.relative_to(folder)) for file in files]
        found = f"holds only {first_names(names)}" if names else "is empty"
        raise SourceError(f"folder {str(folder)!r} {found}: no images and no data. Known are {_known_suffixes()}.")
    if len(by_format) > 1:
        found = "; ".join(f"{kind}: {first_names([file.name for file in group])}" for kind, group in by_format.items())
        raise SourceError(
            f"folder {str(folder)!r} holds several kinds of data ({found}). "
            f"Name the files to open, such as '{folder}/*{files[0].suffix}'."
        )
    kind, found_files = next(iter(by_format.items()))
    return kind, found_files, []


def only_format(files: list[File], name: str) -> str:
    """The one format that the files have. Raises SourceError where they have several, or one is no data."""
    found = [(str(file), format_of_file(file)) for file in files]
    unknown = [file for file, kind in found if kind is None]
    if unknown or not found:
        raise SourceError(f"{first_names(unknown) or name} cannot be opened as data. Known are {_known_suffixes()}.")
    formats = sorted({kind for _, kind in found if kind is not None})
    if len(formats) > 1:
        raise SourceError(f"{name!r} mixes formats ({', '.join(formats)}). Give files of one.")
    return formats[0]


def _known_suffixes() -> str:
    return f"{', '.join(FORMAT_OF_SUFFIX)} and images"


def choose_files(files: list[File], root: File | None, kind: str, split: str | None, name: str) -> list[File]:
    by_split: dict[str, list[File]] = {}
    without: list[File] = []
    for file, found in zip(files, _splits_of_files(files, root, kind), strict=True):
        (without if found is None else by_split.setdefault(found, [])).append(file)
    if root is None and split is None:
        return files
    if not by_split:
        by_split, without = {"train": without}, []
    if split is None and without:
        raise SourceError(
            f"{name!r} has the splits {', '.join(by_split)}, and files of no split: "
            f"{first_names([file.name for file in without])}. Set `split`, or name the files to open."
        )
    return by_split[choose_split(list(by_split), split, name)]


def _splits_of_files(files: list[File], root: File | None, kind: str) -> list[str | None]:
    """The split of each file by its folder or name. Class folders are splits only if all of them are."""
    if kind == "images":
        tops = [file.relative_to(root).parts[0].lower() if root else "" for file in files]
        return [SPLIT_OF_WORD[top] for top in tops] if set(tops) <= set(SPLIT_OF_WORD) else [None] * len(files)
    splits = []
    for file in files:
        folders = [part.lower() for part in (file.relative_to(root).parts[:-1] if root else ())]
        in_name = SPLIT_IN_FILE_NAME.fullmatch(file.stem)
        words = [part for part in folders if part in SPLIT_OF_WORD] + ([in_name[1].lower()] if in_name else [])
        splits.append(SPLIT_OF_WORD[words[0]] if words else None)
    return splits


def choose_split(splits: Sequence[str], split: str | None, name: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    for candidate in (split, SPLIT_OF_WORD.get(str(split).lower())):
        if candidate is not None and candidate in splits:
            return candidate
    if split is None:
        raise SourceError(f"{name!r} has the splits {', '.join(splits)}. Set `split` to one of them.")
    raise SourceError(
        f"{name!r} has no split {split!r}; there is {', '.join(splits)}. Set `split` to one of them. If the split is "
        f"a column, set `where` to COLUMN={split}."
    )
