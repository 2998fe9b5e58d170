"""Files of weights: the right tensors or one clear error, whatever is in them, and nothing of it is ever run."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.safe_torch import weights
from hf_clip.conversion.safe_torch.pickles import walk_pickle
from hf_clip.conversion.safe_torch.weights import read_weights
from tests.helpers import hostile_archives as hostile
from tests.helpers.counts import soak_count
from tests.helpers.hostile_archives import archive, call, integer, named, storage, table, tensor, text, whole, write
from tests.helpers.peers import load_openai_module
from tests.helpers.warm_python import warm_python

W = text("w")


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        # Bits, as a forged tensor may hold NaN.
        assert (
            found[name]
            .contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(value.detach().contiguous().view(-1).view(torch.uint8))
        ), name


def refusal(path: Path) -> str:
    """The message of the error, which must be one line that begins with the path."""
    with pytest.raises(ConversionError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 500
    return message


def torchscript(path: Path, module: nn.Module, *inputs: torch.Tensor) -> Path:
    torch.jit.save(torch.jit.trace(module.eval(), inputs, check_trace=False), str(path))
    return path


class Tied(nn.Module):
    """Small, with what archives hold: nesting, buffers, integers, tied and transposed weights, two dtypes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.body[1].running_mean.uniform_()
        self.head = nn.Linear(4, 4)
        self.tail = nn.Linear(4, 4, bias=False)
        self.tail.weight = self.head.weight
        self.proj = nn.Parameter(torch.randn(4, 6).half().t())
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x):
        return self.tail(self.head(self.body(x).mean((2, 3)))) + self.proj.float().sum() + self.input_resolution


def checkpoint(module: nn.Module) -> dict:
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    return {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One honest file of each kind, with the tensors that it holds."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    module = Tied()
    plain = module.state_dict()
    saved = checkpoint(Tied())
    torch.save(saved, folder / "torch")
    torch.save(saved, folder / "old", _use_new_zipfile_serialization=False)
    torchscript(folder / "torchscript", module, torch.randn(1, 3, 2, 2))
    save_file(
        {name: value.contiguous().clone() for name, value in plain.items()}, folder / "safetensors", {"format": "pt"}
    )
    expected = {"torchscript": plain, "safetensors": plain, "torch": saved["state_dict"], "old": saved["state_dict"]}
    return {name: (folder / name, tensors) for name, tensors in expected.items()}


@pytest.fixture(scope="module")
def openai_model():
    return load_openai_module("model")


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("vision", [(2, 64, 8), ((1, 1, 1, 1), 2, None)], ids=["vit", "resnet"])
def test_openais_archives_give_the_state_dict_of_the_module(openai_model, vision, is_half, tmp_path):
    model = openai_model.CLIP(16, 64, *vision, 7, 40, 32, 2, 2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_()
    # As OpenAI's wrapper has them.
    for name, value in {"input_resolution": 64, "context_length": 7, "vocab_size": 40}.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    if is_half:
        openai_model.convert_weights(model)
    path = torchscript(tmp_path / "x", model, torch.randn(1, 3, 64, 64), torch.randint(0, 39, (1, 7)))
    read = read_weights(path)
    assert read.kind == "torchscript"
    assert_same(read.tensors, torch.jit.load(path).state_dict())
    assert_same(read.tensors, model.state_dict())
    assert read.tensors["input_resolution"].item() == 64
    assert read.values["visual.training"] is False


@pytest.mark.parametrize("kind", ["torch", "old"])
def test_a_training_checkpoint_gives_its_weights_and_what_else_it_tells(files, kind):
    path, expected = files[kind]
    read = read_weights(path)
    assert (read.kind, read.values) == ("torch", {"epoch": 3, "name": "run"})
    assert_same(read.tensors, expected)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_plain_state_dict(tmp_path, is_new):
    module = Tied().bfloat16()
    torch.save(module.state_dict(), tmp_path / "x", _use_new_zipfile_serialization=is_new)
    assert_same(read_weights(tmp_path / "x").tensors, module.state_dict())
    parameters = {"empty": nn.Parameter(torch.empty(0, 3)), "row": nn.Parameter(torch.arange(8.0)[2:6]), "epoch": 2}
    torch.save(parameters, tmp_path / "x", _use_new_zipfile_serialization=is_new)
    read = read_weights(tmp_path / "x")
    assert read.values == {"epoch": 2} and not read.tensors["row"].requires_grad
    assert_same(read.tensors, {name: parameters[name] for name in ("empty", "row")})


def test_tied_weights_stay_tied_and_writing_to_them_leaves_the_file_alone(files):
    path, expected = files["torchscript"]
    tensors = read_weights(path).tensors
    tensors["head.weight"].fill_(7)
    assert tensors["tail.weight"].eq(7).all()
    assert_same(read_weights(path).tensors, expected)


def test_safetensors_whole_and_in_shards(files, tmp_path):
    path, expected = files["safetensors"]
    read = read_weights(path)
    assert (read.kind, read.values) == ("safetensors", {"format": "pt"})
    assert_same(read.tensors, expected)
    halves = list(expected)[::2], list(expected)[1::2]
    for number, names in enumerate(halves):
        save_file({name: expected[name].contiguous().clone() for name in names}, tmp_path / f"{number}.safetensors")
    places = {name: f"{number}.safetensors" for number, names in enumerate(halves) for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    for asked in (index, tmp_path):
        read = read_weights(asked)
        assert (read.kind, read.values, read.path) == ("safetensors", {"total_size": 9}, index)
        assert_same(read.tensors, expected)
    index.write_text(json.dumps({"weight_map": dict(list(places.items())[1:])}))
    assert "disagree" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a": "../0.safetensors"}}))
    assert "not a file beside it" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a": "2.safetensors"}}))
    assert "is missing" in refusal(index)
    (tmp_path / "2.safetensors").write_text(json.dumps({"weight_map": {"a": index.name}}))
    assert "not weights of a known format" in refusal(index)


def test_the_name_of_a_file_means_nothing(files, tmp_path):
    for path, expected in files.values():
        for name in ("model.safetensors", "model.pt", "page.html"):
            assert_same(read_weights(write(tmp_path / name, path.read_bytes())).tensors, expected)


# Nothing is run.


class Runs:
    """Pickled, it writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Armed(nn.Module):
    """TorchScript whose `__setstate__`, run by torch.jit.load, writes a file."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor):
        return x + self.weight

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
        torch.save(state[0], "written")


def test_the_setstate_of_an_archive_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Armed()), "armed.pt")
    assert "damaged" in refusal(Path("armed.pt"))
    assert not Path("written").exists()
    # The archive is armed indeed.
    torch.jit.load("armed.pt")
    assert Path("written").exists()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("nest", ["alone", "state_dict", "optimizer", "key"])
def test_what_a_pickle_calls_is_not_called(tmp_path, nest, is_new, protocol):
    target = tmp_path / "written"
    state, evil = {"w": torch.ones(2)}, Runs(target)
    content = {
        "alone": evil,
        "state_dict": {**state, "evil": evil},
        "optimizer": {"state_dict": state, "optimizer": {"state": [(1, {"a": evil})]}},
        "key": {**state, evil: 1},
    }[nest]
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_new}
    torch.save(content, tmp_path / "x", **options)
    message = refusal(tmp_path / "x")
    assert not target.exists()
    assert "posix.system" in message or protocol == 4
    torch.load(tmp_path / "x", weights_only=False)
    assert target.exists()


def test_torchs_own_guard_stands_behind_the_walker(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_walk_old_torch", lambda *_: ({}, {}))
    content = {"state_dict": {"w": torch.ones(2)}, "more": Runs(tmp_path / "written")}
    torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=False)
    assert "torch cannot read it" in refusal(tmp_path / "x")
    assert not (tmp_path / "written").exists()


def test_a_bare_pickle_is_not_unpickled(tmp_path):
    for protocol in range(6):
        path = write(tmp_path / "x", pickle.dumps(Runs(tmp_path / "written"), protocol))
        assert "pickle that torch.save did not write" in refusal(path) or protocol < 2
    assert not (tmp_path / "written").exists()


def test_the_code_of_an_archive_is_not_opened(files, tmp_path):
    path, expected = files["torchscript"]
    evil = pickle.dumps(Runs(tmp_path / "written"))
    needed = ("data.pkl", "data", "version", "byteorder")
    members = [
        (name, content if name.split("/")[1] in needed else evil)
        for name, content in hostile.unpack(path.read_bytes())
    ]
    assert sum(content == evil for _, content in members) > 5
    # Broken checksums show that what is not needed is not even read.
    content = hostile.pack(members).replace(evil, bytes(len(evil)))
    assert_same(read_weights(write(tmp_path / "x", content)).tensors, expected)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "body",
    [
        named("os", "system"),
        named("torch.hub", "load"),
        call("builtins", "eval", text("1")),
        call("torch", "load", text("/etc/passwd")),
        call("torch.storage", "_load_from_bytes", text("")),
        call("torch.hub", "load", text("a")),
        call("collections", "OrderedDict.fromkeys", text("a")),
        call("__torch__", "OrderedDict"),
        call("__torch__x", "Module"),
        call("_codecs", "encode", text("a"), text("zip")),
        named("collections", "OrderedDict") + b")\x81",
        named("collections", "OrderedDict") + b")" + table() + b"\x92",
        text("os") + text("system") + b"\x93",
        b"(" + text("a") + b"ios\nsystem\n",
        b"(cos\nsystem\no",
        b"\x82\x01",
        b"Pos\n",
    ],
)
def test_globals_and_opcodes_beyond_the_list_are_refused(tmp_path, body):
    for content in (archive(table((W, body))), hostile.old_file(table((W, body)))):
        assert "pickle" in refusal(write(tmp_path / "x", content))


# Damage and forgery.


def test_a_tensor_made_by_hand_reads(tmp_path):
    """The errors below are of what is wrong in them, not of how they are made."""
    for content in (
        archive(table((W, tensor()))),
        hostile.old_file(table((W, tensor(storage("0", "FloatStorage", 4, b"N"))))),
    ):
        assert read_weights(write(tmp_path / "x", content)).tensors["w"].tolist() == [1, 2, 3, 4]
    turned = archive(table((W, tensor(offset=1, shape=(2, 1), stride=(2, 9)))))
    assert read_weights(write(tmp_path / "x", turned)).tensors["w"].tolist() == [[2], [4]]


@pytest.mark.parametrize(
    "wrong",
    [
        tensor(offset=1),
        tensor(offset=-1, shape=(2,)),
        tensor(offset=2**63),
        tensor(shape=(5,)),
        tensor(shape=(-1,)),
        tensor(shape=(2, 2), stride=(1,)),
        tensor(shape=(2,), stride=(4,)),
        tensor(shape=(2,), stride=(-1,)),
        tensor(shape=(4, 4), stride=(1, 0)),
        tensor(shape=(2**32, 2**32), stride=(0, 0)),
        tensor(shape=(1,) * 9, stride=(1,) * 9),
        tensor(storage(numel=3), shape=(3,)),
        tensor(storage(numel=5)),
        tensor(storage(kind="DoubleStorage")),
        tensor(storage(kind="HalfStorage")),
        tensor(storage(kind="float32")),
        tensor(storage("1")),
        tensor(storage("../data.pkl")),
        tensor(integer(3)),
        storage(),
        tensor(storage("0", "FloatStorage", 4, integer(1))),
        tensor() + text("v") + tensor(storage(kind="IntStorage")),
        tensor() + W + tensor(),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(tmp_path, wrong):
    refusal(write(tmp_path / "x", archive(table((W, wrong)))))
    refusal(write(tmp_path / "x", hostile.old_file(table((W, wrong)))))


def test_zips_that_hide_something_are_refused(tmp_path):
    honest = archive(table((W, tensor())))
    members = hostile.unpack(honest)
    link = zipfile.ZipInfo("hostile/data/0")
    link.external_attr = 0o120777 << 16
    linked = io.BytesIO()
    with zipfile.ZipFile(linked, "w") as file:
        file.writestr(*members[0])
        file.writestr(link, members[1][1])
    overlapping = bytearray(honest)
    # The directory's entry of data/0 sends to the member before it.
    at = honest.rindex(b"PK\1\2")
    overlapping[at + 42 : at + 46] = bytes(4)
    # A member within a member, header and all.
    inner = hostile.pack([("hostile/data/1", members[1][1])])
    inner = inner[: inner.index(b"PK\1\2")]
    nested = bytearray(hostile.pack([members[0], ("hostile/data/0", inner), ("hostile/data/1", members[1][1])]))
    at = nested.rindex(b"PK\1\2")
    nested[at + 42 : at + 46] = struct.pack("<I", nested.index(inner))
    forged = {
        "overlaps": bytes(nested),
        "compressed": hostile.pack(members, zipfile.ZIP_DEFLATED),
        "two members": hostile.pack([*members, members[1]]),
        "one folder": hostile.pack([*members, ("other/data.pkl", b"")]),
        "odd name": hostile.pack([*members, ("hostile/../../etc/passwd", b"")]),
        "a link": linked.getvalue(),
        "not where its directory says": bytes(overlapping),
        "without its end": honest + b"behind",
        "behind the end of its pickle": hostile.pack([(members[0][0], members[0][1] + b"N."), members[1]]),
        "big": hostile.pack([*members, ("hostile/byteorder", b"big")]),
        "not one of torch": hostile.pack([("a/word/document.xml", b"<x/>")]),
    }
    for expected, content in forged.items():
        assert expected in refusal(write(tmp_path / "x", content))


@pytest.mark.parametrize("kind", ["torchscript", "torch"])
def test_every_flipped_bit_of_the_numbers_is_seen(files, kind, tmp_path):
    path, _ = files[kind]
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        needed = [info for info in file.infolist() if "/data/" in info.filename and info.file_size]
    used = read_weights(path)
    rng = random.Random(0)
    seen = 0
    for info in needed:
        name_length, extra_length = struct.unpack("<2H", content[info.header_offset + 26 : info.header_offset + 30])
        at = info.header_offset + 30 + name_length + extra_length + rng.randrange(info.file_size)
        flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        try:
            # What is the optimizer's is not read.
            assert_same(read_weights(write(tmp_path / "x", flipped)).tensors, used.tensors)
        except ConversionError as error:
            assert "checksum" in str(error)
            seen += 1
    assert seen == len({value.untyped_storage().data_ptr() for value in used.tensors.values()})


@pytest.mark.parametrize("kind", ["torchscript", "torch"])
def test_damaged_zips_give_an_error_or_the_right_tensors(files, kind, tmp_path):
    path, expected = files[kind]
    content, rng, refused = path.read_bytes(), random.Random(1), 0
    count = soak_count(60, 2000)
    for _ in range(count):
        damaged = write(tmp_path / "x", hostile.damage_bytes(rng, content))
        try:
            read = read_weights(damaged)
        except ConversionError:
            refused += 1
            continue
        assert_same(read.tensors, expected)
    assert count / 2 < refused < count


@pytest.mark.parametrize("kind", ["torchscript", "torch"])
def test_forged_zips_give_an_error_or_what_pythons_own_unpickler_gives(files, kind, tmp_path):
    path, _ = files[kind]
    content, rng, refused = path.read_bytes(), random.Random(2), 0
    count = soak_count(60, 2000)
    for _ in range(count):
        forged = hostile.forge(rng, content)
        try:
            read = read_weights(write(tmp_path / "x", forged))
        except ConversionError:
            refused += 1
            continue
        assert_same(read.tensors, hostile.stock_tensors(forged))
    assert count / 4 < refused < count


@pytest.mark.parametrize("kind", ["old", "safetensors"])
def test_damaged_files_without_checksums_give_an_error_or_no_more_than_they_hold(files, kind, tmp_path):
    path, _ = files[kind]
    content, rng = path.read_bytes(), random.Random(3)
    for _ in range(soak_count(60, 2000)):
        damaged = hostile.damage_bytes(rng, content)
        try:
            read = read_weights(write(tmp_path / "x", damaged))
        except ConversionError:
            continue
        assert sum(value.nbytes for value in read.tensors.values()) <= 4 * len(damaged)


def test_bombs_cost_neither_memory_nor_time(tmp_path):
    """One process with 600 MB more than torch itself takes, where a stack overflow would be a crash."""
    for number, (name, content) in enumerate(hostile.bombs().items()):
        write(tmp_path / f"{number:03d} {name}", content)
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.safe_torch.weights import read_weights
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 600_000_000,) * 2)
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        read_weights(path)
    except ConversionError as error:
        assert not isinstance(error.__cause__, MemoryError), error
    else:
        print(path.name)
"""
    run = subprocess.run([*warm_python(), "-c", script], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr[-2000:]


def test_reading_takes_the_weights_memory_once(tmp_path):
    """Peak of a process of its own for each file of 80 MB, read and cast tensor by tensor."""
    script = """
import os, sys
from pathlib import Path
import torch
from hf_clip.conversion.safe_torch.weights import read_weights
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
torch.ones(9).half().float().sum()
for path in sys.argv[1:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    before, tensors = peak(), read_weights(path).tensors
    kept = []
    while tensors:
        kept.append(tensors.popitem()[1].float())
    assert sum(value.sum().item() for value in kept) == 45 * 2_000_000
    print(os.path.basename(path), (peak() - before) / 80e6, flush=True)
    os._exit(0)
"""
    tensors = {f"w{i}": torch.zeros(2_000_000) + i for i in range(10)}
    halves = {name: value.half() for name, value in tensors.items()}
    torch.save({"state_dict": tensors, "optimizer": halves}, tmp_path / "torch")
    torch.save({"state_dict": halves, "optimizer": tensors}, tmp_path / "half")
    torch.save(tensors, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "safetensors")
    command = [*warm_python(), "-c", script, *sorted(tmp_path.iterdir())]
    run = subprocess.run(command, capture_output=True, text=True)
    for path in tmp_path.iterdir():
        path.unlink()
    shares = {name: float(share) for name, share in map(str.split, run.stdout.splitlines())}
    assert shares.keys() == {"torch", "half", "old", "safetensors"}, run.stderr[-2000:]
    assert max(shares.values()) <= 1.3, shares


# What is no file of weights.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "0 bytes"),
        (bytes(5000), "zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 599\n", "Git LFS"),
        (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"\xef\xbb\xbf {}", "JSON"),
        (b"\x1f\x8b\x08" + bytes(50), "packed"),
        (b"GGUF" + bytes(range(100)), "not weights of a known format"),
        (b"PK\3\4", "cut short"),
        (struct.pack("<Q", 20) + b'{"a":1}', "safetensors cannot read"),
    ],
)
def test_what_holds_no_weights_is_named(tmp_path, content, expected):
    assert expected in refusal(write(tmp_path / "x", content))


@pytest.mark.parametrize("kind", ["torchscript", "torch", "old", "safetensors"])
def test_downloads_cut_short_are_named(files, kind, tmp_path):
    content = files[kind][0].read_bytes()
    for part in (0.2, 0.5, 0.9, 0.999):
        assert "fetch" in refusal(write(tmp_path / "x", content[: int(len(content) * part)]))


def test_places_without_a_file_are_named(files, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "link").symlink_to(files["torch"][0])
    os.mkfifo(tmp_path / "pipe")
    assert "a folder with 0 files" in refusal(tmp_path / "folder")
    assert "link to a file that is gone" in refusal(tmp_path / "gone")
    assert "cannot be read" in refusal(tmp_path / "round")
    assert "a pipe" in refusal(tmp_path / "pipe")
    assert "no such file" in refusal(tmp_path / "nowhere")
    # The Hub's cache is made of links.
    assert_same(read_weights(tmp_path / "link").tensors, files["torch"][1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {"towers": {"w": torch.ones(1)}}, "args": 1}, "holds no tensors, but 'args', 'model'"),
        ({}, "holds no tensors"),
        ([torch.ones(1)], "list without a state dict"),
        ({"state_dict": [torch.ones(1)]}, "without a state dict"),
        ({"w": torch.ones(1), "extra": {"a": 1}}, "'extra' beside tensors"),
        ({"state_dict": {"w": torch.ones(1), "n": 1}}, "'n' beside tensors"),
        ({1: torch.ones(1)}, "numbers where names"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_checkpoints_without_a_plain_state_dict_say_what_they_hold(tmp_path, content, expected, is_new):
    torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=is_new)
    assert expected in refusal(tmp_path / "x")


# The walker.

numbers = st.integers(-(2**79), 2**79) | st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
    ),
)


@settings(max_examples=soak_count(50, 2000), deadline=None)
@given(plain)
def test_plain_values_are_walked_as_they_were_pickled(value):
    assert walk_pickle(io.BytesIO(pickle.dumps(value, 2))) == (value, {})


OPCODES = [bytes([code]) for code in b"()]}tlaseuRbQ0N.2\x81\x85\x86\x87\x88\x89\x90\x92\x93"]
GLOBALS = [named("__torch__", "M"), named("torch", "Size"), named("os", "system"), named("collections", "OrderedDict")]
steps = st.one_of(
    st.sampled_from([*OPCODES, *GLOBALS, tensor(), storage(), table()]),
    st.text(max_size=2).map(text),
    st.integers(-3, 300).map(integer),
    st.binary(max_size=4).map(lambda content: b"U" + bytes([len(content)]) + content),
    st.builds(lambda code, place: code + bytes([place]), st.sampled_from([b"q", b"h"]), st.integers(0, 4)),
)
programs = st.lists(steps).map(b"".join)


@settings(max_examples=soak_count(100, 5000), deadline=None)
@given(programs | st.binary())
def test_any_program_ends_in_a_value_that_python_would_give_or_in_the_error(body):
    stream = io.BytesIO(whole(body))
    try:
        value, storages = walk_pickle(stream)
    except ConversionError:
        return
    content = whole(body)[: stream.tell()]
    members = {f"data/{key}": bytes(record.numel * record.dtype.itemsize) for key, record in storages.items()}
    stock = hostile.Stock(content, members).load()
    if type(stock) in (dict, list, tuple, int, float, str, bool, type(None)):
        assert type(value) is type(stock)
    if isinstance(stock, (dict, list, tuple, str)):
        assert len(value) == len(stock)
