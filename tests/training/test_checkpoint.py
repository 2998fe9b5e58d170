"""Checkpoints are whole or not there: under full disks, kills, flipped bits; and the run's folder is one run's."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from hf_clip.training import checkpoint as module
from hf_clip.training import hub_checkpoints as push
from hf_clip.training.checkpoint import (
    CheckpointError,
    SaveClock,
    damage,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    remove_old_checkpoints,
    save_state,
    write_folder,
)
from hf_clip.training.config import CheckpointConfig
from hf_clip.training.data_fingerprint import DataChangedError, fingerprint, require_same_data
from hf_clip.training.hub_checkpoints import CheckpointPusher
from tests.helpers.squares import recipe, write_recipe


def write(folder: Path, step: int = 1) -> None:
    (folder / "model.safetensors").write_bytes(bytes([step]) * 4000)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("a b")
    save_state(folder, {"step": step, "moments": torch.arange(100.0)})


def forget(manifest: Path, name: str) -> None:
    manifest.write_text(
        json.dumps({key: value for key, value in json.loads(manifest.read_text()).items() if key != name})
    )


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
        (lambda path: (path.parent / "manifest.json").write_text("{}"), "lists no weights or no training_state.pt"),
        (lambda path: forget(path.parent / "manifest.json", "model.safetensors"), "lists no weights"),
        (lambda path: forget(path.parent / "manifest.json", "training_state.pt"), "lists no weights"),
    ],
    ids=["flipped bit", "truncated", "file gone", "no manifest", "half a manifest", "list", "empty manifest"]
    + ["nothing in the manifest", "no weights in it", "no state in it"],
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
    remove_old_checkpoints(folder, CheckpointConfig(keep_last=2), 10)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checkpoint-1", "checkpoint-10", "checkpoint-9", "checkpoint-best"]
    remove_old_checkpoints(folder, CheckpointConfig(keep_last=5), 10)
    assert len(list_checkpoints(folder)) == 2


def test_some_are_kept_for_good_and_the_one_in_use_for_now(folder):
    for step in (11, 12, 13, 14, 15):
        write_folder(folder / f"checkpoint-{step}", write)
    config = CheckpointConfig(keep_last=1, keep_every=5)
    remove_old_checkpoints(folder, config, 15, in_use=folder / "checkpoint-12")
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-10", "checkpoint-12", "checkpoint-15"]
    remove_old_checkpoints(folder, config, 15)
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-10", "checkpoint-15"]


def test_a_damaged_later_one_does_not_push_out_the_whole_one(folder):
    """A run that passed over checkpoint-10 saves step 9 again: kept by its number, the damaged one would be all."""
    (folder / "checkpoint-10/manifest.json").unlink()
    remove_old_checkpoints(folder, CheckpointConfig(keep_last=1), 9)
    assert newest_checkpoint(folder, lambda warning: None).name == "checkpoint-9"
    assert not (folder / "checkpoint-2").exists()


def test_minutes_are_counted_from_the_last_checkpoint(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock, never = SaveClock(0.5), SaveClock(None)
    now[0] += 29
    assert not clock.is_due()
    now[0] += 1
    assert clock.is_due() and clock.is_due()
    clock.restart()
    assert not clock.is_due() and not never.is_due()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_c(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0\nmore lines\nof C++")


def full_disk_in_safetensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_disk_in_tokenizers(*_, **__):
    raise Exception("No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("target", "failure"),
    [(target, full_disk) for target in ("torch.save", "os.fsync", "pathlib.Path.rename", "pathlib.Path.write_text")]
    + [("torch.save", full_disk_in_c), (f"{__name__}.save_state", full_disk_in_safetensors)]
    + [(f"{__name__}.save_state", full_disk_in_tokenizers)],
)
def test_a_writer_that_fails_leaves_the_last_checkpoint_as_it_was(folder, monkeypatch, target, failure):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(target, failure)
    with pytest.raises(CheckpointError) as caught:
        write_folder(folder / "checkpoint-11", write)
    message = str(caught.value)
    assert "\n" not in message and "checkpoint-11 could not be written (" in message and "free some space" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("failure", [RuntimeError("CUDA error"), KeyError("name"), KeyboardInterrupt()])
def test_what_is_no_full_disk_is_passed_on_and_leaves_nothing_half_written(folder, failure):
    def fail(place):
        write(place)
        raise failure

    with pytest.raises(type(failure)) as caught:
        write_folder(folder / "checkpoint-11", fail)
    assert caught.value is failure and len(list(folder.iterdir())) == 3


def test_files_and_folders_are_on_disk_before_the_name_is(folder, monkeypatch):
    events, fsync, rename = [], os.fsync, Path.rename

    def record_fsync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(folder).as_posix())
        return fsync(handle)

    def record_rename(path, target):
        events.append("rename")
        return rename(path, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here to see which file is flushed")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    write_folder(folder / "checkpoint-11", write)
    names = ["", "/manifest.json", "/model.safetensors", "/tokenizer", "/tokenizer/merges.txt", "/training_state.pt"]
    assert sorted(events[:-2]) == [f".checkpoint-11.partial{name}" for name in names]
    assert events[-2:] == ["rename", "."]


def test_writing_in_an_old_ones_place_replaces_it_only_when_whole(folder, monkeypatch):
    write_folder(folder / "checkpoint-10", lambda place: write(place, 77))
    assert load_state(folder / "checkpoint-10")["step"] == 77
    with monkeypatch.context() as patch:
        patch.setattr(module, "_flush", full_disk)
        with pytest.raises(CheckpointError):
            write_folder(folder / "checkpoint-10", lambda place: write(place, 78))
    assert load_state(folder / "checkpoint-10")["step"] == 77 and damage(folder / "checkpoint-10") is None


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("is_killed", [True, False])
def test_an_end_at_any_moment_of_a_replacement_leaves_a_whole_checkpoint(folder, monkeypatch, kept, is_killed):
    """Renames: the old one away, the new one into its place. A kill runs nothing more, a second Ctrl-C does."""
    write_folder(folder / "checkpoint-10", lambda place: write(place, 77))
    rename, renames = Path.rename, []

    def end(path, target):
        if len(renames) == kept:
            raise KeyboardInterrupt
        renames.append(target)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", end)
        if is_killed:
            patch.setattr(module, "_put_back", lambda _: None)
        with contextlib.suppress(KeyboardInterrupt):
            write_folder(folder / "checkpoint-10", lambda place: write(place, 78))
    newest = newest_checkpoint(folder, pytest.fail)
    assert (newest.name, load_state(newest)["step"]) == ("checkpoint-10", 78 if kept == 2 else 77)


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


@pytest.mark.slow
def test_a_full_disk(small_disk):
    write_folder(small_disk / "checkpoint-1", lambda place: write(place, 1))
    size = torch.zeros(100_000)
    with pytest.raises(CheckpointError, match="checkpoint-2 could not be written"):
        write_folder(small_disk / "checkpoint-2", lambda place: save_state(place, {"moments": size}))
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint-1"]
    assert load_state(newest_checkpoint(small_disk, pytest.fail))["step"] == 1


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / "data" / name).write_bytes(b"12345")
    return tmp_path / "data"


def test_data_is_known_again_by_names_sizes_and_rows(shards, monkeypatch):
    before = fingerprint(["data", "owner/name"], 20)
    assert before == {"number of files": 2, "number of rows": 20, "data/a.parquet": 5, "data/b.parquet": 5}
    require_same_data(before, fingerprint(["data", "owner/name"], 20))
    with pytest.raises(DataChangedError, match=r"\(number of rows: 20 before, 21 now\): restore it, or start"):
        require_same_data(before, fingerprint(["data"], 21))
    (shards / "b.parquet").write_bytes(b"123456")
    with pytest.raises(DataChangedError, match=r"\(data/b.parquet: 5 before, 6 now\)"):
        require_same_data(before, fingerprint(["data"], 20))
    (shards / "b.parquet").rename(shards / "c.parquet")
    with pytest.raises(DataChangedError, match=r"b.parquet: 5 before, None now; data/c.parquet: None before, 6 now"):
        require_same_data(before, fingerprint(["data"], 20))
    monkeypatch.setattr("hf_clip.training.data_fingerprint.MAX_NAMED_FILES", 1)
    many = fingerprint(["data"], None)
    assert many["number of files"] == 2 and len(many) == 2
    (shards / "c.parquet").write_bytes(b"1")
    with pytest.raises(DataChangedError, match="hash of names and sizes"):
        require_same_data(many, fingerprint(["data"], None))


def test_a_file_that_is_missing_is_no_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "checkpoint-1", lambda place: (place / "none").read_bytes())
    assert list(tmp_path.iterdir()) == []


class FakeHub:
    """What `HfApi` does of a repository, in memory; it fails as often as it is told."""

    def __init__(self, failures: int = 0):
        self.files: dict[str, bytes] = {}
        self.failures, self.calls = failures, []
        self.gate, self.is_private = None, True

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.is_private)

    def hf_hub_download(self, repo_id, name):
        file = Path(tempfile.mkdtemp()) / name
        file.write_bytes(self.files[name])
        return str(file)

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append("create")
        assert (repo_id, private, exist_ok) == ("owner/name", True, True)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route\nto the Hub")

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        if self.gate is not None:
            self.gate.wait()
        self.calls.append(commit_message)
        for file in filter(Path.is_file, folder_path.rglob("*")):
            name = file.relative_to(folder_path).as_posix()
            if any(Path(name).match(pattern) or name.startswith(pattern.rstrip("*")) for pattern in allow_patterns):
                self.files[name] = file.read_bytes()

    def list_repo_files(self, repo_id):
        return list(self.files)

    def delete_folder(self, path_in_repo, repo_id, commit_message):
        self.files = {name: content for name, content in self.files.items() if not name.startswith(f"{path_in_repo}/")}


@pytest.fixture
def run_folder(folder, tmp_path_factory):
    """A run's folder with checkpoints 2, 9 and 10."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(folder, run / "checkpoints")
    (run / "recipe.yaml").write_text("steps: 1")
    (run / "metrics.jsonl").write_text("{}")
    return run


def start_pusher(monkeypatch, run_folder, hub) -> tuple[CheckpointPusher, list[str]]:
    lines = []
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    return CheckpointPusher("owner/name", run_folder, lines.append), lines


@pytest.mark.parametrize("is_private", [True, False])
def test_a_repository_of_another_run_or_of_everyone_is_left_alone(run_folder, monkeypatch, is_private):
    hub = FakeHub()
    hub.is_private = is_private
    theirs = {"recipe.yaml": b"steps: 2", "checkpoints/checkpoint-50/model.safetensors": b"theirs"}
    hub.files = dict(theirs) if is_private else {}
    pusher, lines = start_pusher(monkeypatch, run_folder, hub)
    pusher.push(run_folder / "checkpoints/checkpoint-10")
    pusher.close()
    assert hub.files == (theirs if is_private else {})
    assert ("it holds another run, of another recipe" if is_private else "it is public") in lines[0]
    if is_private:
        # A run that goes on finds its own recipe, and replaces its own copies.
        hub.files = {"recipe.yaml": b"steps: 1", "checkpoints/checkpoint-2/model.safetensors": b"old"}
        pusher, _ = start_pusher(monkeypatch, run_folder, hub)
        pusher.push(run_folder / "checkpoints/checkpoint-10")
        pusher.close()
        assert {name.split("/")[1] for name in hub.files if "/" in name} == {"checkpoint-10"}


def test_a_run_that_is_resumed_with_other_logging_is_the_same_run(tmp_path):
    one = write_recipe(tmp_path / "one.yaml", recipe("train.parquet"))
    logged = write_recipe(tmp_path / "logged.yaml", recipe("train.parquet", log_every=7, eval_every=50))
    other = write_recipe(tmp_path / "other.yaml", recipe("train.parquet", batch_size=32))
    (tmp_path / "broken.yaml").write_text("steps: none")
    assert push._is_of_one_run(one, one) and push._is_of_one_run(logged, one) and push._is_of_one_run(one, logged)
    assert not push._is_of_one_run(other, one) and not push._is_of_one_run(tmp_path / "broken.yaml", one)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_hub_refuses_is_not_tried_again(run_folder, monkeypatch, status):
    hub = FakeHub()

    def refuse(*_, **__):
        hub.calls.append("create")
        answer = httpx2.Response(status, request=httpx2.Request("POST", "http://hub.invalid/api/repos/create"))
        raise HfHubHTTPError("you may not", response=answer)

    hub.create_repo = refuse
    pusher, lines = start_pusher(monkeypatch, run_folder, hub)
    pusher._push(run_folder / "checkpoints/checkpoint-9")
    pusher.close()
    assert hub.calls == ["create"] and lines == ["checkpoint-9 could not be pushed to owner/name (you may not)."]


def test_the_copy_on_the_hub_is_a_run_that_can_be_resumed(run_folder, monkeypatch, tmp_path):
    hub = FakeHub()
    hub.files["checkpoints/checkpoint-1/model.safetensors"] = hub.files["README.md"] = b"of before"
    pusher, lines = start_pusher(monkeypatch, run_folder, hub)
    pusher.push(run_folder / "checkpoints/checkpoint-10")
    pusher.close()
    assert lines == []
    for name, content in hub.files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied == ["README.md", "checkpoints", "recipe.yaml"]
    assert [path.name for path in list_checkpoints(tmp_path / "copy/checkpoints")] == ["checkpoint-10"]
    assert newest_checkpoint(tmp_path / "copy/checkpoints", pytest.fail) is not None


def test_a_push_is_tried_again_and_in_the_end_is_one_line(run_folder, monkeypatch):
    hub = FakeHub(failures=3)
    pusher, lines = start_pusher(monkeypatch, run_folder, hub)
    pusher._push(run_folder / "checkpoints/checkpoint-9")
    assert lines == [] and hub.calls == ["create"] * 4 + ["Checkpoint of step 9"]
    hub.failures = 99
    pusher._push(run_folder / "checkpoints/checkpoint-10")
    assert len(hub.calls) == 9 and lines == ["checkpoint-10 could not be pushed to owner/name (no route to the Hub)."]
    pusher.close()


def test_while_one_is_pushed_it_stays_and_only_the_newest_of_the_others_waits(run_folder, monkeypatch):
    hub = FakeHub()
    hub.gate = threading.Event()
    pusher, _ = start_pusher(monkeypatch, run_folder, hub)
    pusher.push(run_folder / "checkpoints/checkpoint-2")
    with pusher._changed:
        assert pusher._changed.wait_for(lambda: pusher.in_use is not None, timeout=60)
    pusher.push(run_folder / "checkpoints/checkpoint-9")
    pusher.push(run_folder / "checkpoints/checkpoint-10")
    remove_old_checkpoints(run_folder / "checkpoints", CheckpointConfig(keep_last=1), 10, pusher.in_use)
    hub.gate.set()
    pusher.close()
    assert [call for call in hub.calls if call != "create"] == ["Checkpoint of step 2", "Checkpoint of step 10"]
    assert pusher.in_use is None and {name.split("/")[1] for name in hub.files if "/" in name} == {"checkpoint-10"}


def test_a_recipe_with_a_credential_is_not_pushed_beside_checkpoints(run_folder, monkeypatch):
    hub = FakeHub()
    (run_folder / "recipe.yaml").write_text("card: {model_name: 'AKIA" + "ABCDEFGH" * 2 + "'}")
    pusher, lines = start_pusher(monkeypatch, run_folder, hub)
    pusher._push(run_folder / "checkpoints/checkpoint-9")
    pusher.close()
    assert hub.calls == [] and len(lines) == 1 and "recipe.yaml holds" in lines[0]
