"""Checkpoints are whole or not there: under full disks, kills, flipped bits; and the run's folder is one run's."""

import errno
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_clip.training import checkpoint as module
from hf_clip.training.checkpoint import (
    CheckpointError,
    damage,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    remove_old_checkpoints,
    save_state,
    write_folder,
)

ROOT = Path(__file__).parents[1]


def write(folder: Path, step: int = 1) -> None:
    (folder / "model.safetensors").write_bytes(bytes([step]) * 4000)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("a b")
    save_state(folder, {"step": step, "moments": torch.arange(100.0)})


@pytest.fixture
def folder(tmp_path):
    """Three whole checkpoints."""
    for step in (2, 9, 10):
        write_folder(tmp_path / f"checkpoint-{step}", lambda place, step=step: write(place, step))
    return tmp_path


def test_a_checkpoint_comes_back_as_it_was_written(folder):
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    newest = newest_checkpoint(folder, pytest.fail)
    assert newest.name == "checkpoint-10"
    state = load_state(newest)
    assert state["step"] == 10 and torch.equal(state["moments"], torch.arange(100.0))
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-2", "checkpoint-9"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.write_bytes(b"\x0b" + path.read_bytes()[1:]), "model.safetensors is not what was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "model.safetensors is not what was written"),
        (lambda path: path.unlink(), "model.safetensors"),
        (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json"),
        (lambda path: (path.parent / "manifest.json").write_text('{"model.safe'), "damaged"),
        (lambda path: (path.parent / "manifest.json").write_text("[]"), "damaged"),
        (lambda path: (path.parent / "manifest.json").write_text(""), "damaged"),
    ],
    ids=["flipped bit", "truncated", "file gone", "no manifest", "half a manifest", "list", "empty manifest"],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(folder, harm, reason):
    harm(folder / "checkpoint-10" / "model.safetensors")
    warnings = []
    assert newest_checkpoint(folder, warnings.append).name == "checkpoint-9"
    assert len(warnings) == 1 and reason in warnings[0] and "going back to the one before" in warnings[0]


def test_where_all_are_damaged_nothing_is_made_up(folder):
    for path in list_checkpoints(folder):
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="All checkpoints in .* are damaged: start again"):
        newest_checkpoint(folder, lambda warning: None)
    assert newest_checkpoint(folder / "none", pytest.fail) is None


def test_the_newest_are_kept_and_other_files_left_alone(folder):
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-1").write_text("a file")
    remove_old_checkpoints(folder, 2)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checkpoint-1", "checkpoint-10", "checkpoint-9", "checkpoint-best"]
    remove_old_checkpoints(folder, 5)
    assert len(list_checkpoints(folder)) == 2


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_c(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0\nmore lines\nof C++")


@pytest.mark.parametrize("target", ["torch.save", "os.fsync", "pathlib.Path.rename", "pathlib.Path.write_text"])
@pytest.mark.parametrize("failure", [full_disk, full_disk_in_c])
def test_a_writer_that_fails_leaves_the_last_checkpoint_as_it_was(folder, monkeypatch, target, failure):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(target, failure)
    with pytest.raises(CheckpointError) as caught:
        write_folder(folder / "checkpoint-11", write)
    message = str(caught.value)
    assert "\n" not in message and "checkpoint-11 could not be written (" in message and "free some space" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(list(folder.iterdir())) == 3


def test_writing_in_an_old_ones_place_replaces_it_only_when_whole(folder, monkeypatch):
    write_folder(folder / "checkpoint-10", lambda place: write(place, 77))
    assert load_state(folder / "checkpoint-10")["step"] == 77
    with monkeypatch.context() as patch:
        patch.setattr(module, "_flush", full_disk)
        with pytest.raises(CheckpointError):
            write_folder(folder / "checkpoint-10", lambda place: write(place, 78))
    assert load_state(folder / "checkpoint-10")["step"] == 77 and damage(folder / "checkpoint-10") is None


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared(folder):
    partial = folder / ".checkpoint-11.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(folder, pytest.fail).name == "checkpoint-10"
    write_folder(folder / "checkpoint-11", write)
    assert newest_checkpoint(folder, pytest.fail).name == "checkpoint-11" and not partial.exists()


def test_a_file_that_the_system_cuts_short(folder):
    """The writers meet the system's own error (a limit on file sizes), in this process, not a simulated one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    from safetensors.torch import save_file

    weights = {"weight": torch.zeros(100_000)}
    writers = [
        lambda place: save_state(place, weights),
        lambda place: save_file(weights, place / "model.safetensors"),
    ]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        for writer in writers:
            with pytest.raises(CheckpointError, match="could not be written"):
                write_folder(folder / "checkpoint-11", writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(list(folder.iterdir())) == 3
    assert newest_checkpoint(folder, pytest.fail).name == "checkpoint-10"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 200 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    size = ["-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if sys.platform != "linux" or mount is None or subprocess.run([mount, *size], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk):
    write_folder(small_disk / "checkpoint-1", lambda place: write(place, 1))
    size = torch.zeros(100_000)
    with pytest.raises(CheckpointError, match="checkpoint-2 could not be written"):
        write_folder(small_disk / "checkpoint-2", lambda place: save_state(place, {"moments": size}))
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint-1"]
    assert load_state(newest_checkpoint(small_disk, pytest.fail))["step"] == 1
