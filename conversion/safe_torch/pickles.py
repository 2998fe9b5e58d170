"""Walks the pickles in files of weights as data. Nothing that a pickle names is imported, looked up or called.

A pickle is a program for a small stack machine. `pickletools.genops` splits it into opcodes; the walker here carries
out those that weights need, on a stack of its own, and refuses every other. Where a pickle asks for a class or a
function the walker keeps its name, and knows by heart what the few on its list would give: a tensor becomes a
`TensorRecord`, checked against its storage, and a TorchScript module becomes a `ModuleRecord`. But for those modules,
the list is a part of that of `torch.load(weights_only=True)`.

Time and memory are bounded by MAX_PICKLE_BYTES and MAX_OPCODES, as no opcode copies what it finds. Values may contain
themselves or be nested a million deep: whoever follows them must count, and must not hash, compare or print them.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from hf_clip.conversion.errors import ConversionError

# A checkpoint of OpenAI's largest model has 60 kB and 18,000 opcodes, one with its optimizer three times that.
MAX_PICKLE_BYTES = 16 * 1024 * 1024
MAX_OPCODES = 1_000_000
MAX_AXES = 8
MAX_COUNT = 2**48

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What TorchScript wraps typed containers in; the container is the first argument.
_JIT_CONTAINERS = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist", "restore_type_tag")
_ALLOWED = {
    "collections": {"OrderedDict"},
    "torch": {"Size", *STORAGE_DTYPES, *(str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES.values())},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
    "torch.jit._pickle": set(_JIT_CONTAINERS),
}


@dataclass(frozen=True, slots=True, eq=False)
class GlobalName:
    """A class or function that a pickle asks for: two words of text, on the list."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class StorageRecord:
    """`numel` numbers that lie elsewhere in the file, under `key`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """A view of a storage, in elements; it was checked to lie within, and to be no larger."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class ModuleRecord:
    """A TorchScript module: its attributes. Its class is in the archive's code, which nobody opens."""

    attributes: dict | None = None


def walk_pickle(stream: BinaryIO) -> tuple[Any, dict[str, StorageRecord]]:
    """What the pickle at the stream's position describes, and the storages that it speaks of by key.

    Gives None, bool, int, float, str, tuple, list, dict with keys of str and int, and the records of this module. The
    stream is left behind the pickle's end; the caller bounds its length.

    Raises:
        ConversionError: the pickle is damaged, or holds something other than weights.
    """
    walker = _Walker()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ConversionError(
                    f"its pickle has more than {MAX_OPCODES} opcodes: no file of weights needs them."
                )
            assert position is not None, "a stream of bytes tells its position"
            walker.take(opcode.name, argument, position)
    except ConversionError:
        raise
    # genops: an opcode that does not exist, an argument cut short, text that is none.
    except (ValueError, OverflowError) as error:
        raise _damaged(ascii(str(error))) from error
    return walker.result, walker.storages


def _damaged(why: str) -> ConversionError:
    return ConversionError(f"its pickle is damaged ({why[:100]}): fetch the file again.")


class _Walker:
    def __init__(self):
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRecord] = {}
        self.result: Any = None

    def take(self, opcode: str, argument: Any, position: int) -> None:
        """One step of the stack machine."""
        match opcode:
            case "PROTO":
                if argument != 2:
                    raise ConversionError(f"pickle protocol {argument}; torch writes 2: save it again with torch.")
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                self.push(argument)
            case "LONG1":
                # The magic number of torch's older format is the longest.
                if argument.bit_length() > 80:
                    raise _damaged(f"an integer of {argument.bit_length()} bits")
                self.push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                self.push({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[opcode]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.push(tuple(self.pop(int(opcode[-1]))))
            case "MARK":
                self.outer_stacks.append(self.stack)
                self.stack = []
            case "TUPLE":
                self.push(tuple(self.pop_to_mark()))
            case "APPEND":
                (item,) = self.pop(1)
                self.top(list).append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                self.top(list).extend(items)
            case "SETITEM":
                self.set_items(self.pop(2))
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top(object)
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise _damaged(f"memo {argument} is read before it is written")
                self.push(self.memo[argument])
            case "GLOBAL":
                self.push(_global_name(*argument.split(" ", 1)))
            case "NEWOBJ" | "REDUCE" | "BUILD" | "BINPERSID":
                getattr(self, opcode.lower())()
            case "STOP":
                (self.result,) = self.pop(1)
                if self.stack or self.outer_stacks:
                    raise _damaged("something is left on its stack")
            case _:
                raise ConversionError(
                    f"its pickle uses opcode {opcode} at byte {position}, which weights do not need; nothing was run. "
                    "Open it with the program that wrote it and save the state dict alone."
                )

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _damaged("its stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_to_mark(self) -> list[Any]:
        if not self.outer_stacks:
            raise _damaged("a mark is missing")
        taken, self.stack = self.stack, self.outer_stacks.pop()
        return taken

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise _damaged(f"a {kind.__name__} is missing")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise _damaged("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing anything else may recurse without end.
            if type(key) not in (str, int):
                raise _damaged(f"a key of type {type(key).__name__}")
            if key in target:
                raise _damaged(f"the key {_short(key)} stands twice in one dictionary")
            target[key] = value

    def newobj(self) -> None:
        kind, arguments = self.pop(2)
        if not _is_jit_class(kind) or arguments != ():
            raise _damaged("an object of a class that makes none")
        self.push(ModuleRecord())

    def build(self) -> None:
        (state,) = self.pop(1)
        target = self.top(object)
        if type(state) is not dict:
            raise _damaged("a state that is no dictionary")
        # For an ordered dictionary the state is `_metadata`: versions of the modules' layout, not needed.
        if type(target) is not dict:
            if type(target) is not ModuleRecord or target.attributes is not None:
                raise _damaged("a state for what has none")
            target.attributes = state

    def binpersid(self) -> None:
        """A storage: ("storage", type, key, device, numel); the older format adds None, or a view of it."""
        (identity,) = self.pop(1)
        if type(identity) is not tuple or len(identity) not in (5, 6):
            raise _damaged("a storage that is none")
        word, kind, key, _, numel = identity[:5]
        is_storage = type(kind) is GlobalName and kind.module == "torch" and kind.name in STORAGE_DTYPES
        if type(word) is not str or word != "storage" or not is_storage or type(key) is not str:
            raise _damaged("a storage that is none")
        if identity[5:] not in ((), (None,)):
            raise ConversionError("a storage is a view of another, as torch 0.3 wrote it: save it again with torch.")
        record = StorageRecord(key, STORAGE_DTYPES[kind.name], _count(numel, "storage's length"))
        known = self.storages.setdefault(key, record)
        if (known.dtype, known.numel) != (record.dtype, record.numel):
            raise _damaged(f"two descriptions of storage {_short(key)}")
        self.push(known)

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not GlobalName or _is_jit_class(function) or type(arguments) is not tuple:
            raise _damaged("a call of what cannot be called")
        match function.name, arguments:
            case "OrderedDict", ():
                self.push({})
            case "_rebuild_tensor_v2", (storage, offset, shape, stride, bool(), dict()):
                self.push(_tensor(storage, offset, shape, stride))
            case "_rebuild_parameter", (TensorRecord() as tensor, bool(), dict()):
                self.push(tensor)
            case "Size", (tuple() as shape,):
                self.push(shape)
            case name, (container, *_) if name in _JIT_CONTAINERS:
                self.push(container)
            case _:
                raise _damaged(f"{function.name} with other arguments than it takes")


def _global_name(module: str, name: str) -> GlobalName:
    if module != "__torch__" and not module.startswith("__torch__.") and name not in _ALLOWED.get(module, ()):
        raise ConversionError(
            f"its pickle asks for {_short(f'{module}.{name}')}, which weights do not need; nothing was run. Take the "
            "file for hostile, or open it with the program that wrote it and save the state dict alone."
        )
    return GlobalName(module, name)


def _is_jit_class(value: Any) -> bool:
    return type(value) is GlobalName and value.module.split(".")[0] == "__torch__"


def _short(text: Any) -> str:
    """Quoted, with whatever cannot be printed escaped."""
    return ascii(text if len(str(text)) <= 80 else f"{str(text)[:77]}...")


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < MAX_COUNT:
        shown = value if type(value) is int else type(value).__name__
        raise _damaged(f"a {what} of {shown}")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorRecord:
    """A tensor that lies within its storage and has no more elements: an axis of stride 0 cannot blow it up."""
    if type(storage) is not StorageRecord or type(shape) is not tuple or type(stride) is not tuple:
        raise _damaged("a tensor without storage, shape or stride")
    if len(shape) != len(stride) or len(shape) > MAX_AXES:
        raise _damaged(f"a tensor with {len(shape)} sizes and {len(stride)} strides")
    offset = _count(offset, "tensor's offset")
    sizes = [_count(size, "tensor's size") for size in shape]
    steps = [_count(step, "tensor's stride") for step in stride]
    if 0 in sizes:
        needed, numel = offset, math.prod(max(size, 1) for size in sizes)
        largest = max(storage.numel, 2**31)
    else:
        needed = offset + 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        numel, largest = math.prod(sizes), storage.numel
    if needed > storage.numel or numel > largest:
        raise _damaged(
            f"a tensor {shape} of stride {stride} at {offset} does not fit its storage of {storage.numel} elements"
        )
    return TensorRecord(storage, offset, shape, stride)
