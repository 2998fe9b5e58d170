"""Samples of WebDataset tars: members in a row whose paths are equal up to the file name's first dot.

The stock reader refuses shards whose samples differ in their members. What a member is, its bytes decide where its
name does not.
"""

import json
import tarfile
from collections.abc import Sequence
from typing import Any, BinaryIO

from hf_clip.model.image_decoding_hf_clip import IMAGE_SUFFIXES, OTHER_SUFFIXES, is_image

from .cache import open_file
from .errors import SourceError, one_line, report_row
from .marks import Mark, MarkedRows
from .tables import LARGEST_FIELD
from .values import Unread, describe

# Compressed, a member of gigabytes is a few kilobytes of a tar.
LARGEST_IMAGE = 2**28

_APART = (
    "A tar holds the members of a sample one after the other, such as 0001.jpg, 0001.txt, 0002.jpg: sort its members "
    "by name (tar --sort=name), or put images and texts into one folder."
)


def read_tar(file: str, start: Mark | None) -> MarkedRows:
    """Samples of a tar, from a mark that `marks_of_tar` or an earlier pass gave, or from the first."""
    mark, current, row = start or Mark(0, 0), None, {}
    first, ended = mark.offset, set()
    with open_file(file) as stream:
        stream.seek(first)
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                key, suffix = _sample_of_member(member)
                if key is None:
                    continue
                if key != current and current is not None:
                    yield mark, f"{file} sample {current}", row
                    ended.add(current)
                    mark, row = Mark(first + member.offset, mark.number + 1), {}
                    if key in ended:
                        report_row(f"{file} sample {key}", f"has members apart from each other. {_APART}", file)
                current = key
                _add_member(row, suffix, _content_of_member(archive, member, suffix), f"{file}/{member.name}")
            _require_end(file, archive, stream, first)
    if current is not None:
        yield mark, f"{file} sample {current}", row


def require_whole_samples(file: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Raises SourceError where the first samples of a tar are the halves of samples: (key, row) of each."""
    keys = [key for key, _ in rows]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise SourceError(f"{twice} has members apart from each other. {_APART}")
    with_image = [any(_is_image_field(value) for value in row.values()) for _, row in rows]
    alone = [len(row) == 1 for _, row in rows]
    if all(alone) and any(with_image) and not all(with_image):
        raise SourceError(f"the samples of {file!r} are single members, images apart from texts. {_APART}")


def explain_columns(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """What may be wrong with the names of the members, where no column for the images or captions is found."""
    unread = [(key, name, value) for key, row in rows for name, value in row.items() if isinstance(value, Unread)]
    if unread:
        key, name, value = unread[0]
        return f" {key}: the member {name!r} has {describe(value)}. Write smaller ones."
    dotted = [(key.rpartition(" sample ")[2], name) for key, row in rows for name in row if "." in name]
    if dotted:
        sample, name = dotted[0]
        return (
            f" Names are cut at their first dot: {f'{sample}.{name}'!r} is the member {name!r} of the sample "
            f"{sample!r}. Rename the members if their names have dots of another meaning."
        )
    if all(len(row) == 1 for _, row in rows):
        return f" Each of the first {len(rows)} samples has one member only. {_APART}"
    return ""


def _is_image_field(value: Any) -> bool:
    return isinstance(value, dict) and "bytes" in value


def _require_end(file: str, archive: tarfile.TarFile, stream: BinaryIO, first: int = 0) -> None:
    """Raises where no end mark follows the last member: tarfile takes a damaged header for the end."""
    # What is compressed as a whole has a checksum and an end of its own.
    if getattr(archive.fileobj, "comptype", "tar") == "tar":
        stream.seek(first + archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise SourceError(
                f"{file!r} is cut or damaged at byte {first + archive.offset}: no header and no end of the archive is "
                "there. Write or fetch it again."
            )


def marks_of_tar(file: str) -> list[Mark] | None:
    """The mark of each sample, by the tar's headers alone; None for a tar that is compressed as a whole.

    Raises:
        SourceError: the tar is cut or damaged.
    """
    try:
        archive = tarfile.open(file, "r:")
    except tarfile.ReadError:
        return None
    except OSError as error:
        raise SourceError(f"{file!r} cannot be read ({error.strerror}). Check the path and its rights.") from error
    marks, current = [], None
    with archive, open(file, "rb") as stream:
        try:
            for member in archive:
                key, _ = _sample_of_member(member)
                if key is not None and key != current:
                    marks.append(Mark(member.offset, len(marks)))
                    current = key
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SourceError(f"{file!r} is cut or damaged ({one_line(error)}). Write or fetch it again.") from error
        _require_end(file, archive, stream)
    return marks


def _sample_of_member(member: tarfile.TarInfo) -> tuple[str | None, str]:
    """(the sample's key, the rest of the name) of a tar's member; no key for one such as `.hidden` or `LICENSE`."""
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not member.isfile() or not stem or not suffix:
        return None, ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _content_of_member(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> bytes | Unread:
    """A member's bytes, of which images may have more than texts."""
    stream = archive.extractfile(member)
    if stream is None:
        return b""
    if member.size <= LARGEST_FIELD:
        return stream.read()
    head, last = b"", _last_suffix(suffix)
    if last not in IMAGE_SUFFIXES:
        head = b"" if last in OTHER_SUFFIXES else stream.read(LARGEST_FIELD)
        if not is_image(head):
            return Unread(member.size, LARGEST_FIELD)
    return head + stream.read() if member.size <= LARGEST_IMAGE else Unread(member.size, LARGEST_IMAGE)


def _last_suffix(suffix: str) -> str:
    return "." + suffix.rpartition(".")[2]


def _is_image_member(suffix: str, content: bytes | Unread) -> bool:
    if isinstance(content, Unread):
        return content.limit == LARGEST_IMAGE
    last = _last_suffix(suffix)
    return last in IMAGE_SUFFIXES or (last not in OTHER_SUFFIXES and is_image(content))


def _add_member(row: dict[str, Any], suffix: str, content: bytes | Unread, path: str) -> None:
    """Put a tar's member into its row: the image as `image`, the fields of a JSON object by their names.

    What was too large stands there as such: whoever reads that column says so, and nobody does of another.
    """
    if _is_image_member(suffix, content):
        # One shard may hold jpg, png and webp side by side, so these are one column; `left.jpg` is its own.
        column = suffix if "." in suffix else "image"
        if not _is_image_field(row.get(column)):
            row[column] = content if isinstance(content, Unread) else {"bytes": content, "path": path}
    elif isinstance(content, Unread):
        if suffix == "json":
            report_row(path, f"has {describe(content)}.", path.rpartition("/")[0])
        else:
            row[suffix] = content
    elif suffix == "json":
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            report_row(path, f"is no JSON ({one_line(error)}).", path.rpartition("/")[0])
            return
        for column, value in fields.items() if isinstance(fields, dict) else ():
            row.setdefault(column, value)
    else:
        row[suffix] = content.decode("utf-8", errors="surrogateescape").strip()
