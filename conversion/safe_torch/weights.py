"""Files of weights, read without running anything in them.

The format is found by looking at the bytes, never by the file's name:

- zips of `torch.jit.save` (OpenAI's archives) and of `torch.save` (state dicts, training checkpoints): checked by
  `archive.py`, walked by `pickles.py`, tensors made here. torch's own readers would not do: `torch.jit.load` runs the
  archive's code, and `torch.load`, which calls what is on a longer list, does not see flipped bits where it maps.
- files of `torch.save` from before torch 1.6: their pickles are walked in the same way, and only then given to
  `torch.load(weights_only=True)`. They have no checksums.
- safetensors, whole or in shards with an index: by the safetensors library. The format has no checksums.
"""

import io
import json
import math
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hf_clip.conversion.errors import ConversionError

from .archive import Archive
from .pickles import MAX_PICKLE_BYTES, ModuleRecord, StorageRecord, TensorRecord, walk_pickle

Scalar = bool | int | float | str | None

MAX_DEPTH = 64
MAX_NAMES = 100_000
# How often the same bytes may be used: tied weights do so twice.
MAX_SHARING = 4
MAX_INDEX_BYTES = 64 * 1024 * 1024
# The names of 100,000 tensors.
MAX_HEADER_BYTES = 25 * 1024 * 1024
_HEAD_BYTES = 1024
_OLD_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_OLD_TORCH_PICKLES = 5
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Where trainers keep a model's state dict, in the order in which they are looked at.
_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights")
_AGAIN = "fetch the file again."
_ALONE = "save the model's state dict alone, with torch.save or as safetensors."


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: the file (the index, where there are shards).
        kind: "torchscript", "torch" or "safetensors".
        tensors: by name as the file has it, on the CPU, dtype and shape as stored. A TorchScript archive gives what
            its `state_dict()` would, OpenAI's with the scalars `input_resolution`, `context_length` and `vocab_size`;
            a training checkpoint what is in its `state_dict`, `module.` prefixes too. Tied tensors share memory. Take
            them out one by one where they are copied or cast: each gives its memory back when it is let go. Those of
            safetensors are private mappings, so that file must not be cut short while they live. On the meta device
            where only names, shapes and dtypes were asked for.
        values: plain values beside the tensors: attributes of TorchScript modules by dotted name, top-level entries of
            a training checkpoint (epoch, name), metadata of safetensors.
    """

    path: Path
    kind: str
    tensors: dict[str, torch.Tensor]
    values: dict[str, Scalar]


def read_weights(path: str | Path, *, on_meta: bool = False) -> WeightsFile:
    """Reads a file of weights, or a folder with one `*.safetensors.index.json`. Nothing in it is run.

    Args:
        on_meta: read names, shapes and dtypes alone, which takes no time, whatever the file's size.

    Raises:
        ConversionError: in one line, why the file cannot be read and what to do.
    """
    path = Path(path)
    try:
        index = _find_index(path)
        return _read_file(path, on_meta) if index is None else _read_shards(index, on_meta)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        what = "a link to a file that is gone" if path.is_symlink() else "no such file"
        raise ConversionError(f"{path}: {what}. Check the path.") from error
    except (OSError, MemoryError) as error:
        raise ConversionError(f"{path}: the file cannot be read ({error}). Check its rights and the disk.") from error


def _find_index(path: Path) -> Path | None:
    """The index of shards that a path means: the one in a folder, or a file of JSON."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json"))
        if len(found) != 1:
            raise ConversionError(
                f"a folder with {len(found)} files *.safetensors.index.json: pass the file of weights in it."
            )
        return found[0]
    # Opening a pipe waits for its writer for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ConversionError("neither a file nor a folder (a pipe, a device or a socket): pass the file itself.")
    with path.open("rb") as stream:
        return path if _text(stream.read(_HEAD_BYTES)).startswith(b"{") else None


def _read_file(path: Path, on_meta: bool) -> WeightsFile:
    size = path.stat().st_size
    with path.open("rb") as stream:
        return _reader_of(stream.read(_HEAD_BYTES), size)(path, stream, size, on_meta)


def _text(head: bytes) -> bytes:
    """The beginning of a file as far as it is text: without byte order mark and blanks, in lower case."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()


def _reader_of(head: bytes, size: int) -> Callable[[Path, BufferedReader, int, bool], WeightsFile]:
    if head.startswith(b"PK\3\4"):
        return _read_zip
    if head.startswith(_OLD_TORCH):
        return _read_old_torch
    # safetensors: the length of a JSON header in 8 bytes, then the header.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return _read_safetensors
    raise ConversionError(_why_no_weights(head, size))


def _why_no_weights(head: bytes, size: int) -> str:
    text = _text(head)
    if size == 0:
        return "the file has 0 bytes: fetch it again."
    if not any(head):
        return f"the file begins with {len(head)} zeros, as a download that was not finished: fetch it again."
    if text.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer of {size} bytes, not the weights: run `git lfs pull` in its folder."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return (
            "a web page (HTML or XML) saved under this name, not weights: fetch the file itself, signed in if need be."
        )
    if head[257:262] == b"ustar" or head.startswith(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")
    ):
        return "a packed file (tar, gzip or the like): unpack it and pass what is in it."
    if head.startswith(b"\x80"):
        return "a pickle that torch.save did not write; nothing of it was run. Save the state dict with torch.save."
    return (
        f"not weights of a known format: it begins with {ascii(head[:16])[1:]}. Pass a file of torch.save, "
        "torch.jit.save or safetensors."
    )


def _read_zip(path: Path, stream: BufferedReader, size: int, on_meta: bool) -> WeightsFile:
    archive = Archive(stream, size)
    byte_order = archive.read("byteorder", 16).decode("latin-1") if "byteorder" in archive else "little"
    if byte_order != sys.byteorder:
        raise ConversionError(f"its numbers are {ascii(byte_order)}-endian, this machine's {sys.byteorder}-endian.")
    pickled = io.BytesIO(archive.read("data.pkl", MAX_PICKLE_BYTES))
    root, storages = walk_pickle(pickled)
    if pickled.read(1):
        raise ConversionError("there are bytes behind the end of its pickle: it is damaged or hostile.")
    kind = "torchscript" if type(root) is ModuleRecord else "torch"
    records, values = _attributes(root) if kind == "torchscript" else _entries(root, TensorRecord)
    for key, storage in storages.items():
        if archive.size(f"data/{key}") != storage.numel * storage.dtype.itemsize:
            raise ConversionError(
                f"storage {ascii(key[:80])} has {archive.size(f'data/{key}')} bytes, its pickle tells of "
                f"{storage.numel} elements of {storage.dtype}: it is damaged or hostile."
            )
    _check_sharing(records, size)
    if on_meta:
        return WeightsFile(path, kind, _on_meta(records), values)
    loaded: dict[StorageRecord, torch.Tensor] = {}
    tensors = {name: _tensor(archive, record, loaded) for name, record in records.items()}
    return WeightsFile(path, kind, tensors, values)


def _tensor(archive: Archive, record: TensorRecord, loaded: dict[StorageRecord, torch.Tensor]) -> torch.Tensor:
    storage = record.storage
    if storage not in loaded:
        loaded[storage] = archive.read_tensor(f"data/{storage.key}").view(storage.dtype)
    return loaded[storage].as_strided(record.shape, record.stride, record.offset)


def _on_meta(records: dict[str, TensorRecord]) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(record.shape, dtype=record.storage.dtype, device="meta") for name, record in records.items()
    }


def _check_sharing(records: dict[str, TensorRecord], size: int) -> None:
    """A million tensors over one storage cost nothing here, and all memory where they are copied."""
    used = sum(math.prod(record.shape) * record.storage.dtype.itemsize for record in records.values())
    if used > MAX_SHARING * size:
        raise ConversionError(
            f"its {len(records)} tensors have {used} bytes, more than {MAX_SHARING} times the file's {size}: it is "
            "damaged or hostile."
        )


def _attributes(root: ModuleRecord) -> tuple[dict[str, TensorRecord], dict[str, Scalar]]:
    """Tensors and plain values of a module and those within it, by dotted names."""
    tensors: dict[str, TensorRecord] = {}
    values: dict[str, Scalar] = {}
    waiting = [("", root, 0)]
    # Modules may share modules: a few of them, nested, have more names than memory holds.
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        for key, value in (module.attributes or {}).items():
            seen += 1
            name = f"{prefix}{key}"
            if seen > MAX_NAMES or depth > MAX_DEPTH or type(key) is not str or name in tensors or name in values:
                raise ConversionError(
                    f"its modules are nested more than {MAX_DEPTH} deep, have more than {MAX_NAMES} names, or one "
                    "name twice: it is damaged or hostile."
                )
            if type(value) is ModuleRecord:
                waiting.append((f"{name}.", value, depth + 1))
            elif type(value) is TensorRecord:
                tensors[name] = value
            elif _is_scalar(value):
                values[name] = value
    return _require(tensors, values), values


def _entries(root: Any, kind: type) -> tuple[dict[str, Any], dict[str, Scalar]]:
    """Tensors (of class `kind`) and plain values of a state dict, or of a training checkpoint with one in it."""
    if not isinstance(root, dict) or not isinstance(root.get("state_dict", root), dict):
        raise ConversionError(f"it holds a {type(root).__name__} without a state dict: {_ALONE}")
    found = root.get(_holder(root, kind), root)
    tensors = {key: value for key, value in found.items() if isinstance(value, kind)}
    values = {key: value for key, value in root.items() if _is_scalar(value)}
    beside = found.keys() - tensors.keys() - (values.keys() if found is root else set())
    if tensors and beside:
        raise ConversionError(f"its state dict holds {_listed(beside)} beside tensors: {_ALONE}")
    if not all(type(key) is str for key in (*tensors, *values)):
        raise ConversionError(f"it has numbers where names of tensors should be: {_ALONE}")
    return _require(tensors, found), values


def _holder(root: dict, kind: type) -> str | None:
    """The key of the state dict in what a trainer saved; None where there is none within."""
    holders = [
        key
        for key, value in root.items()
        if isinstance(value, dict) and any(isinstance(one, kind) for one in value.values())
    ]
    if "state_dict" in root:
        return "state_dict"
    # Numbers of a trainer may be tensors too; averages and teachers stand beside the model.
    named = [key for key in _HOLDERS if key in holders]
    if named:
        return named[0]
    is_bare = any(isinstance(value, kind) for value in root.values())
    return holders[0] if len(holders) == 1 and not is_bare else None


def _require(tensors: dict[str, Any], beside: dict) -> dict[str, Any]:
    if not tensors:
        raise ConversionError(f"it holds no tensors, but {_listed(beside) or 'nothing'}: {_ALONE}")
    return tensors


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(ascii(name if type(name) is int else name[:80]) for name in names)[:8])


def _is_scalar(value: Any) -> bool:
    return type(value) in (bool, int, float, str, type(None))


def _read_old_torch(path: Path, stream: BufferedReader, size: int, on_meta: bool) -> WeightsFile:
    """A file of torch.save before 1.6: five pickles, the fourth of which is what was saved, then the storages."""
    records, values = _walk_old_torch(stream, size)
    if on_meta:
        return WeightsFile(path, "torch", _on_meta(records), values)
    stream.seek(0)
    try:
        # Given a path, torch goes by its suffix.
        loaded = torch.load(stream, map_location="cpu", weights_only=True)
    # UnpicklingError, RuntimeError, EOFError, KeyError, struct.error, ...
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ConversionError(f"torch cannot read it ({reason}): it is damaged; {_AGAIN}") from error
    tensors, values = _entries(loaded, torch.Tensor)
    return WeightsFile(path, "torch", {name: tensor.detach() for name, tensor in tensors.items()}, values)


def _walk_old_torch(stream: BufferedReader, size: int) -> tuple[dict[str, TensorRecord], dict[str, Scalar]]:
    """What the file holds. Raises ConversionError where torch should not be given it."""
    stream.seek(0)
    pickles = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    walked = [walk_pickle(pickles) for _ in range(_OLD_TORCH_PICKLES)]
    root, storages = walked[3]
    records, values = _entries(root, TensorRecord)
    if pickles.tell() + sum(storage.numel * storage.dtype.itemsize for storage in storages.values()) > size:
        raise ConversionError(f"its storages are longer than its {size} bytes: it is cut short; {_AGAIN}")
    _check_sharing(records, size)
    return records, values


def _read_safetensors(path: Path, stream: BufferedReader, size: int, on_meta: bool) -> WeightsFile:
    stream.seek(0)
    if (header_bytes := int.from_bytes(stream.read(8), "little")) > MAX_HEADER_BYTES:
        raise ConversionError(f"its header has {header_bytes} bytes, more than the {MAX_HEADER_BYTES} of any model.")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            tensors = {name: _slice_on_meta(file, name) if on_meta else file.get_tensor(name) for name in names}
            values = dict(file.metadata() or {})
    # SafetensorError, and what torch says of dtypes that it lacks.
    except Exception as error:
        raise ConversionError(
            f"safetensors cannot read it ({str(error)[:200]}): it is cut short or damaged; {_AGAIN}"
        ) from error
    return WeightsFile(path, "safetensors", _require(tensors, values), values)


def _slice_on_meta(file: Any, name: str) -> torch.Tensor:
    part = file.get_slice(name)
    if (dtype := _SAFETENSORS_DTYPES.get(part.get_dtype())) is None:
        raise ValueError(f"the tensor {ascii(name[:80])} is of the unknown type {part.get_dtype()}")
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")


def _read_shards(index: Path, on_meta: bool) -> WeightsFile:
    """The files that an index names, beside it; each holds the tensors that the index says, and no other."""
    shards, values = _read_index(index)
    tensors: dict[str, torch.Tensor] = {}
    kinds = set()
    for shard, names in shards.items():
        file = index.parent / shard
        if not file.is_file():
            raise ConversionError(f"the shard {ascii(shard)} is missing: fetch it into the same folder.")
        try:
            part = _read_file(file, on_meta)
        except ConversionError as error:
            raise ConversionError(f"shard {ascii(shard)}: {error}") from error
        if part.tensors.keys() != names:
            differing = min(part.tensors.keys() ^ names)
            raise ConversionError(
                f"shard {ascii(shard)} and the index disagree on {ascii(differing[:80])}: fetch all files again."
            )
        tensors |= part.tensors
        kinds.add(part.kind)
    if len(kinds) != 1:
        raise ConversionError(f"its shards are of several formats ({', '.join(sorted(kinds))}): fetch them again.")
    return WeightsFile(index, kinds.pop(), tensors, values)


def _read_index(index: Path) -> tuple[dict[str, set[str]], dict[str, Scalar]]:
    """Names of tensors by shard, and the index's metadata."""
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ConversionError(f"JSON of {index.stat().st_size} bytes, more than any index of shards has.")
    try:
        content = json.loads(index.read_bytes())
        pairs = [(str(name), str(shard)) for name, shard in content["weight_map"].items()]
        values = {key: value for key, value in content.get("metadata", {}).items() if _is_scalar(value)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(
            "JSON, but not the index of a checkpoint in shards: pass the file of weights, not its config."
        ) from error
    shards: dict[str, set[str]] = {}
    for name, shard in pairs:
        if Path(shard).name != shard or "\\" in shard or shard == index.name:
            raise ConversionError(
                f"the index names {ascii(shard[:80])}, which is not a file beside it: fetch it again."
            )
        shards.setdefault(shard, set()).add(name)
    if not shards:
        raise ConversionError("an index of no shards: fetch it again.")
    return shards, values
