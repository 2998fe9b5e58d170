"""The zip files of `torch.save` and `torch.jit.save`, checked before anything in them is believed.

They hold one folder: `data.pkl`, which describes; `data/0`, `data/1`, ... with the numbers, stored as they are; and
for TorchScript `code/`, which is compressed and is not opened here. Every member that is read must be stored, must
share its bytes with no other, and must have the checksum that the archive's directory gives.
"""

import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BufferedReader

import torch

from hf_clip.conversion.errors import ConversionError

# 50,000 members and more: a model with its optimizer has some thousands.
MAX_DIRECTORY_BYTES = 4 * 1024 * 1024
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_IS_ENCRYPTED = 0x1
_HAS_UTF8_NAME = 0x800
_AGAIN = "fetch the file again."


@dataclass(frozen=True, slots=True)
class _Member:
    start: int
    size: int
    checksum: int
    is_plain: bool


class Archive:
    """An open zip file. Names of members are given without the folder that all are in.

    Raises:
        ConversionError: when made, if the file is not a complete, plain zip with one folder; when read, see the
            methods.
    """

    def __init__(self, stream: BufferedReader, size: int):
        self._stream = stream
        _check_end(stream, size)
        try:
            listing = zipfile.ZipFile(stream)
        # zipfile raises nearly everything (BadZipFile, struct.error, NotImplementedError, ...) on damaged directories.
        except Exception as error:
            raise ConversionError(f"the zip's directory is damaged ({error}): {_AGAIN}") from error
        self._members = _check_members(stream, listing.infolist(), listing.start_dir)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Bytes of a member. Raises ConversionError: there is none, or it is compressed or encrypted."""
        member = self._members.get(name)
        if member is None:
            raise ConversionError(f"the zip has no member {ascii(name[:80])}: {_AGAIN}")
        if not member.is_plain:
            raise ConversionError(
                f"{ascii(name[:80])} is compressed, encrypted or a link in the zip; torch stores it plain: if the "
                "file was packed again, fetch the original."
            )
        return member.size

    def read(self, name: str, max_bytes: int) -> bytes:
        """A member's content. Raises ConversionError: as `size`; it is longer than `max_bytes`, or damaged."""
        if self.size(name) > max_bytes:
            raise ConversionError(
                f"{ascii(name[:80])} has {self.size(name)} bytes, more than the {max_bytes} that weights need."
            )
        return self.read_tensor(name).numpy().tobytes()

    def read_tensor(self, name: str) -> torch.Tensor:
        """A member's bytes as a uint8 tensor (its size,). Raises ConversionError: as `size`, or it is damaged.

        Read, not mapped: what the checksum was taken of is what is used, whatever becomes of the file, and a tensor
        that is let go gives its memory back.
        """
        content = torch.empty(self.size(name), dtype=torch.uint8)
        member = self._members[name]
        self._stream.seek(member.start)
        view = content.numpy().data
        if self._stream.readinto(view) != member.size or zlib.crc32(view) != member.checksum:
            raise ConversionError(f"{ascii(name[:80])} is damaged (its checksum differs from the zip's): {_AGAIN}")
        return content


def _check_end(stream: BufferedReader, size: int) -> None:
    """The last bytes: a whole file ends with the end of its directory, and the directory has a sensible length."""
    # The end record has 22 bytes. Two more precede it in large files: one of 56 bytes, and its locator of 20.
    stream.seek(max(0, size - 98))
    tail = stream.read().rjust(98, b"\0")
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise ConversionError(f"a zip without its end, after {size} bytes: it is cut short or damaged; {_AGAIN}")
    is_large = tail[-42:-38] == b"PK\6\7"
    if is_large and (tail[:4] != b"PK\6\6" or int.from_bytes(tail[-34:-26], "little") != size - 98):
        raise ConversionError(f"the end of the zip is damaged: {_AGAIN}")
    directory_bytes = int.from_bytes(tail[-58:-50] if is_large else tail[-10:-6], "little")
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise ConversionError(
            f"the zip's directory has {directory_bytes} bytes, more than the {MAX_DIRECTORY_BYTES} that weights need: "
            f"it is damaged, or no checkpoint; {_AGAIN}"
        )


def _check_members(stream: BufferedReader, listed: list[zipfile.ZipInfo], end: int) -> dict[str, _Member]:
    """Every member by its name within the one folder; none shares bytes with another."""
    members: dict[str, _Member] = {}
    free_from = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        shown = ascii(info.orig_filename[:80])
        parts = info.filename.split("/")
        if info.filename != info.orig_filename or "\\" in info.filename or {"", ".", ".."} & set(parts):
            raise ConversionError(f"the zip has a member of the odd name {shown}: {_AGAIN}")
        if info.filename in members:
            raise ConversionError(f"the zip has two members {shown}: {_AGAIN}")
        start = _data_start(stream, info)
        if info.header_offset < free_from or start + info.compress_size > end:
            raise ConversionError(f"the zip's member {shown} overlaps another: it is damaged or hostile.")
        free_from = start + info.compress_size
        is_stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        is_special = info.flag_bits & _IS_ENCRYPTED or stat.S_ISLNK(info.external_attr >> 16)
        members[info.filename] = _Member(start, info.file_size, info.CRC, is_stored and not is_special)
    roots = {name.split("/")[0] for name in members}
    if len(roots) != 1 or f"{min(roots)}/data.pkl" not in members:
        raise ConversionError(
            f"a zip with {len(listed)} members, not one of torch: that has one folder with data.pkl in it. "
            "If a checkpoint was packed into it, unpack it first."
        )
    return {name.partition("/")[2]: member for name, member in members.items()}


def _data_start(stream: BufferedReader, info: zipfile.ZipInfo) -> int:
    """Where a member's content begins: behind its own header, which must say the same as the directory."""
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) == _LOCAL_HEADER.size:
        signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        name = info.orig_filename.encode("utf-8" if info.flag_bits & _HAS_UTF8_NAME else "cp437")
        same = (signature, flags, method) == (b"PK\3\4", info.flag_bits, info.compress_type)
        if same and stream.read(name_length) == name:
            return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    raise ConversionError(f"the zip's member {ascii(info.filename[:80])} is not where its directory says: {_AGAIN}")
