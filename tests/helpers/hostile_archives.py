"""Makes damaged and hostile files of weights, and reads honest ones by other means than the code under test.

The pickles are put together opcode by opcode, as no pickler would write them.
"""

import io
import math
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path

import torch

ROOT = "hostile"
OLD_TORCH_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def many(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def table(*pairs: tuple[bytes, bytes]) -> bytes:
    """A dictionary."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + many(*arguments) + b"R"


def jit_module(*pairs: tuple[bytes, bytes]) -> bytes:
    return named("__torch__", "Module") + b")\x81" + table(*pairs) + b"b"


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 4, *rest: bytes) -> bytes:
    return many(text("storage"), named("torch", kind), text(key), text("cpu"), integer(numel), *rest) + b"Q"


def tensor(stored: bytes | None = None, offset: int = 0, shape=(4,), stride=(1,)) -> bytes:
    hooks = call("collections", "OrderedDict")
    sizes = (many(*map(integer, numbers)) for numbers in (shape, stride))
    stored = storage() if stored is None else stored
    return call("torch._utils", "_rebuild_tensor_v2", stored, integer(offset), *sizes, b"\x89", hooks)


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def archive(body: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as torch writes it, whose data.pkl is `body`; `data/0` holds four floats where nothing else is said."""
    members = {"data/0": struct.pack("<4f", 1, 2, 3, 4)} if members is None else members
    return pack(
        [(f"{ROOT}/{name}", content) for name, content in {"data.pkl": whole(body), **members}.items()], compression
    )


def old_file(body: bytes, keys: tuple[str, ...] = ("0",), numel: int = 4) -> bytes:
    """A file of torch.save before torch 1.6, with one storage of floats a key."""
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    stored = b"".join(struct.pack("<q4f", numel, 1, 2, 3, 4) for _ in keys)
    return OLD_TORCH_HEAD + whole(body) + whole(listed) + stored


def pack(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return packed.getvalue()


def unpack(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def bombs() -> dict[str, bytes]:
    """Files that cost a careless reader its memory, its stack or its time."""
    nested_keys = b"}" + b")" + b"\x85" * 200_000 + b"Ns"
    sharing = (
        b"}(" + b"".join(text(f"w{i}") + (tensor() if not i else b"h\x01") + b"q\x01" for i in range(90_000)) + b"u"
    )
    # Each module holds the one before twice: 2 ** 50 names.
    laughs = jit_module((text("w"), tensor()))
    for _ in range(50):
        laughs = named("__torch__", "M") + b")\x81}(" + text("a") + laughs + b"q\x02" + text("b") + b"h\x02ub"
    itself = named("__torch__", "M") + b")\x81q\x00" + table((text("w"), tensor()), (text("me"), b"h\x00")) + b"b"
    bodies = {
        "nested tuples as a key": nested_keys,
        "nested tuples": b"}" + text("a") + b")" + b"\x85" * 200_000 + b"s",
        "nested lists": b"}" + text("a") + b"]" * 200_000 + b"a" * 199_999 + b"s",
        "modules within modules": laughs,
        "a module in itself": itself,
        "an integer of 8 MB": b"\x8b" + struct.pack("<i", 8_000_000) + b"\x7f" * 8_000_000,
        "an integer of 8 million digits": b"L" + b"9" * 8_000_000 + b"L\n",
        "an integer of 255 bytes": integer(2**2030),
        "a text that is not there": b"X" + struct.pack("<I", 2**32 - 1) + b"a",
        "a huge storage": table((text("w"), tensor(storage(numel=2**40), shape=(2**40,)))),
        "a huge tensor": table((text("w"), tensor(shape=(2**40,)))),
        "a tensor blown up by stride 0": table((text("w"), tensor(shape=(2**20, 2**20), stride=(0, 0)))),
        "an empty tensor of huge sides": table((text("w"), tensor(shape=(0, 2**40, 2**40), stride=(0, 0, 0)))),
        "a bytearray of a terabyte": table((text("w"), call("builtins", "bytearray", integer(2**40)))),
        "a tensor made by its class": table((text("w"), call("torch", "FloatTensor", integer(2**40)))),
    }
    made = {}
    for name, body in bodies.items():
        made[name] = archive(body)
        made[f"{name}, before torch 1.6"] = old_file(body)
    names = b"".join(text(f"w{i}") + b"h\x01" for i in range(20_000))
    sharing = b"}(" + text("w") + tensor(storage(numel=2**20), shape=(2**20,)) + b"q\x01" + names + b"u"
    zeros = {"data/0": bytes(4 * 2**20)}
    made["one storage, 20,000 tensors"] = archive(sharing, zeros)
    made["one storage, 20,000 tensors, before torch 1.6"] = old_file(sharing) + zeros["data/0"]
    made["a zip bomb of zeros"] = archive(table((text("w"), tensor())), zeros, zipfile.ZIP_DEFLATED)
    nothings = b"](" + b"N" * 1_100_000 + b"e"
    good = table((text("w"), tensor()))
    made["a pickle without end"] = archive(table((text("state_dict"), good), (text("more"), nothings)))
    made["a pickle of 20 MB"] = archive(b"N0" * 10_000_000)
    made["20,000 members"] = pack([(f"{ROOT}/data/{'0' * 200}{i}", b"") for i in range(20_000)])
    made["a header of safetensors that is not there"] = struct.pack("<Q", 90_000_000) + b"{" * 1000
    made["an index nested without end"] = b'{"weight_map":' + b"[" * 1_000_000
    return made


class Stock(pickle.Unpickler):
    """Python's own unpickler as the oracle: tensors through numpy's buffers, modules as empty classes."""

    def __init__(self, content: bytes, members: dict[str, bytes]):
        super().__init__(io.BytesIO(content))
        self.members = members

    def find_class(self, module: str, name: str):
        if module.startswith("__torch__"):
            return type("Module", (), {})
        if module == "torch._utils":
            return {"_rebuild_tensor_v2": _strided, "_rebuild_parameter": lambda data, *_: data}[name]
        return {
            "OrderedDict": dict,
            "Size": tuple,
            **{kind: kind for kind in ("FloatStorage", "HalfStorage", "LongStorage", "BFloat16Storage")},
        }[name]

    def persistent_load(self, identity):
        _, kind, key, _, numel = identity
        dtype = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "LongStorage": torch.int64}.get(
            kind, torch.bfloat16
        )
        content = bytearray(self.members[f"data/{key}"])
        values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        assert values.numel() == numel
        return values


def _strided(values, offset, shape, stride, *_):
    assert math.prod(shape) <= values.numel()
    return torch.as_strided(values, shape, stride, offset)


def stock_tensors(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a zip of torch by Python's own zip reader and unpickler."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        names = [name for name in file.namelist() if name.endswith("/data.pkl") or "/data/" in name]
        members = {name.split("/", 1)[1]: file.read(name) for name in names}
    root = Stock(members["data.pkl"], members).load()
    if not isinstance(root, dict):
        return dict(_flatten(vars(root), ""))
    return {name: value for name, value in root.get("state_dict", root).items() if isinstance(value, torch.Tensor)}


def _flatten(attributes: dict, prefix: str):
    for key, value in attributes.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif hasattr(value, "__dict__"):
            yield from _flatten(vars(value), f"{prefix}{key}.")


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """One thing that disks and downloads do to a file."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 2, 8, 64, 1000]))
    middle = content[start:end]
    kind = rng.choice(["flip", "cut", "lose", "repeat", "zeros", "noise", "end"])
    if kind == "flip":
        return content[:start] + bytes([content[start] ^ 1 << rng.randrange(8)]) + content[start + 1 :]
    if kind == "end":
        # The directory, where a byte does most.
        at = len(content) - 1 - rng.randrange(min(1500, len(content)))
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    return (
        content[:start]
        + {
            "cut": b"",
            "lose": content[end:],
            "repeat": middle + content[start:],
            "zeros": bytes(len(middle)) + content[end:],
            "noise": rng.randbytes(len(middle)) + content[end:],
        }[kind]
    )


def forge(rng: random.Random, content: bytes) -> bytes:
    """Another archive in which all checksums are right: members or opcodes are not what they were."""
    members = unpack(content)
    at = rng.randrange(len(members))
    name, stored = members[at]
    pickled = next(index for index, (name, _) in enumerate(members) if name.endswith("/data.pkl"))
    kind = rng.choice(["name", "again", "drop", "swap", "short", "long", "packed", *["pickle"] * 8])
    if kind == "pickle":
        members[pickled] = (members[pickled][0], forge_pickle(rng, members[pickled][1]))
    elif kind == "name":
        names = [name + "x", "../" + name, "/" + name, name.replace("/", "\\"), f"other/{name}", name.upper(), "x\0y"]
        members[at] = (rng.choice(names), stored)
    elif kind == "swap":
        other = rng.randrange(len(members))
        members[at], members[other] = (name, members[other][1]), (members[other][0], stored)
    elif kind == "again":
        members.append((name, rng.randbytes(len(stored))))
    elif kind == "drop":
        del members[at]
    elif kind in ("short", "long"):
        members[at] = (name, stored[:-4] if kind == "short" else stored + bytes(4))
    return pack(members, zipfile.ZIP_DEFLATED if kind == "packed" else zipfile.ZIP_STORED)


def forge_pickle(rng: random.Random, content: bytes) -> bytes:
    """The pickle with one opcode or one number changed."""
    steps = list(pickletools.genops(content))
    ends = [position for _, _, position in steps[1:]] + [len(content)]
    at = rng.randrange(len(steps))
    opcode, _, start = steps[at]
    numbers = [i for i, (opcode, _, _) in enumerate(steps) if opcode.name in ("BININT1", "BININT2")]
    kind = rng.choice(["number", "number", "drop", "again", "other", "byte", "move"])
    if kind == "number":
        at = rng.choice(numbers)
        start = steps[at][2]
        new = integer(rng.choice([0, 1, 2, 3, 8, 2**31, 2**48, 2**62, 2**63, 2**79, -1, rng.randrange(300)]))
    elif kind == "byte":
        spot = rng.randrange(len(content))
        return content[:spot] + bytes([rng.randrange(256)]) + content[spot + 1 :]
    elif kind == "move":
        spot = rng.choice(steps)[2]
        rest = content[:start] + content[ends[at] :]
        return rest[:spot] + content[start : ends[at]] + rest[spot:]
    else:
        codes = [bytes([code]) for code in b"()]}NsaeuRbQ\x81\x85\x86\x870.2l"]
        new = {"drop": b"", "again": content[start : ends[at]] * 2, "other": rng.choice(codes)}[kind]
    return content[:start] + new + content[ends[at] :]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
