"""Applying a plan and undoing it: nothing is lost, whatever happens, and nothing moves that the plan does not name."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_clip import DuplicatePlan, SearchError, apply_plan, undo_plan
from hf_clip.search.duplicates import Duplicate, Group, PlannedImage, moving
from hf_clip.search.duplicates.moving import TRASH, file_hash


def planned(root: Path, path: str, kind=PlannedImage, **more):
    file = root / path
    return kind(path=path, size=file.stat().st_size, hash=file_hash(file), **more)


@pytest.fixture
def root(tmp_path):
    """A folder of a best file and copies of it, in folders."""
    root = tmp_path / "photos"
    for number, path in enumerate(["best.png", "a/1.png", "a/b/2.png", "3.png", "c d/ü.png"]):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"content {number}".encode())
        os.utime(file, (1_000_000 + number, 1_000_000 + number))
    return root


@pytest.fixture
def plan(root):
    members = [planned(root, path, Duplicate) for path in ("a/1.png", "a/b/2.png", "3.png", "c d/ü.png")]
    return DuplicatePlan(str(root), groups=[Group(planned(root, "best.png"), "it is", members)])


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of all files, but for what stands in the trash beside them."""
    return {
        str(file.relative_to(root)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in root.rglob("*")
        if file.is_file() and TRASH not in file.relative_to(root).parts
    }


def test_files_move_under_their_relative_paths_and_come_back_as_they_were(root, plan):
    before = files(root)
    moves = apply_plan(plan)
    assert moves.moved == ["a/1.png", "a/b/2.png", "3.png", "c d/ü.png"]
    assert list(files(root)) == ["best.png"]
    assert files(moves.trash / "files") == {path: state for path, state in before.items() if path != "best.png"}
    assert apply_plan(plan).already == 4
    for folder in ("a/b", "a"):
        (root / folder).rmdir()
    assert sorted(undo_plan(plan).moved) == sorted(moves.moved)
    assert files(root) == before
    assert undo_plan(plan).already == 4 and files(root) == before
    # And again.
    assert len(apply_plan(plan).moved) == 4


def test_members_that_are_kept_stay(root, plan):
    plan.groups[0].members[0].action = "keep"
    plan.groups[0].members[2].action = "keep"
    assert apply_plan(plan).moved == ["a/b/2.png", "c d/ü.png"]
    assert set(files(root)) == {"best.png", "a/1.png", "3.png"}


def change_size(root: Path) -> None:
    (root / "a/b/2.png").write_bytes(b"more content")


def change_content(root: Path) -> None:
    (root / "3.png").write_bytes(b"content X")


def change_best(root: Path) -> None:
    (root / "best.png").write_bytes(b"content X")


def remove_best(root: Path) -> None:
    (root / "best.png").unlink()


def replace_by_link(root: Path) -> None:
    (root / "3.png").rename(root / "real.png")
    (root / "3.png").symlink_to("real.png")


def replace_folder_by_link(root: Path) -> None:
    """As one does who removes duplicates by hand: "a/1.png" is what stays now."""
    (root / "a").rename(root / "old")
    (root / "a").symlink_to("old")


CHANGES = [change_size, change_content, change_best, remove_best, replace_by_link, replace_folder_by_link]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_moves_where_a_file_is_not_that_of_the_plan(root, plan, change: Callable[[Path], None]):
    change(root)
    before = files(root)
    with pytest.raises(SearchError, match=r"nothing was moved\. Make the plan again\."):
        apply_plan(plan)
    assert files(root) == before


def test_what_stays_moves_under_no_other_name(root, tmp_path):
    # Two folders that are one, of which a plan of `against` says that they are two.
    (tmp_path / "link").symlink_to(root)
    member = planned(root, "best.png", Duplicate)
    plan = DuplicatePlan(
        str(root), str(tmp_path / "link"), groups=[Group(planned(root, "best.png"), "it is", [member])]
    )
    with pytest.raises(SearchError, match=r"itself, which stays: nothing was moved"):
        apply_plan(plan)
    assert (root / "best.png").is_file()
    # A second name of it may go.
    os.link(root / "best.png", root / "second.png")
    plan.groups[0].members = [planned(root, "second.png", Duplicate)]
    assert apply_plan(plan).moved == ["second.png"]


def test_nothing_moves_while_what_stays_is_not_mounted(root, plan, tmp_path):
    plan.against = str(tmp_path / "unmounted")
    with pytest.raises(SearchError, match="is it mounted"):
        apply_plan(plan)
    assert len(files(root)) == 5
    plan.against = None
    apply_plan(plan, trash=tmp_path / "bin")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(SearchError, match="nothing was moved back"):
        undo_plan(plan, trash=tmp_path / "bin")
    assert not root.exists()


def test_a_trash_among_the_images_and_a_journal_of_somebodys_are_refused(root, plan, tmp_path):
    with pytest.raises(SearchError, match="among the images"):
        apply_plan(plan, trash=root / "a/trash")
    assert not (root / "a/trash").exists()
    apply_plan(plan)
    there = moving.trash_of(plan)
    (there / moving.JOURNAL).write_bytes(b'"../new.png"\n["a"]\n')
    (there / "new.png").write_bytes(b"planted")
    with pytest.raises(SearchError, match="nothing here wrote"):
        undo_plan(plan)
    assert not (tmp_path / "new.png").exists()


def test_a_new_file_in_the_place_of_a_moved_one_is_not_replaced(root, plan):
    apply_plan(plan)
    (root / "3.png").write_bytes(b"a new one")
    moves = undo_plan(plan)
    assert list(moves.refused) == ["3.png"] and "move it away" in moves.refused["3.png"]
    assert (root / "3.png").read_bytes() == b"a new one" and len(moves.moved) == 3
    assert (moves.trash / "files/3.png").read_bytes() == b"content 3"
    with pytest.raises(SearchError, match="undo the plan"):
        apply_plan(plan)


def test_another_trash_and_what_is_no_trash(root, plan, tmp_path):
    with pytest.raises(SearchError, match="was not applied"):
        undo_plan(plan)
    apply_plan(plan, trash=tmp_path / "bin")
    assert (tmp_path / "bin" / plan.id / "files/a/b/2.png").is_file()
    assert len(undo_plan(plan, trash=tmp_path / "bin").moved) == 4
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SearchError, match="cannot be written to"):
        apply_plan(plan, trash=tmp_path / "file")
    if os.stat("/dev/shm").st_dev != root.stat().st_dev:
        folder = Path("/dev/shm") / f"trash-{os.getpid()}"
        with pytest.raises(SearchError, match="another disk"):
            apply_plan(plan, trash=folder)
        (folder / plan.id / "files").rmdir()
        (folder / plan.id).rmdir()
        folder.rmdir()


def test_one_process_at_a_time(root, plan):
    folder = moving.trash_of(plan)
    (folder / "files").mkdir(parents=True)
    # Whatever plan that one applies.
    with moving._locked(folder.parent), pytest.raises(SearchError, match="in use by another process"):
        apply_plan(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "../best.png"}, "is no path within"),
        ({"path": "./best.png"}, "is no path within"),
        ({"path": "a//1.png"}, "is no path within"),
        ({"path": "a/../best.png"}, "is no path within"),
        ({"path": "a\0b"}, "is no path within"),
        ({"path": "/etc/passwd"}, "is no path within"),
        ({"path": "best.png"}, "both kept and moved"),
        ({"path": "3.png"}, "moved twice"),
        ({"action": "delete"}, "neither move nor keep"),
    ],
)
def test_a_plan_changed_by_hand_moves_nothing_else(root, plan, tmp_path, change, message):
    plan.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    content["groups"][0]["members"][0] |= change
    (tmp_path / "plan.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SearchError, match=message):
        DuplicatePlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"hf_clip_duplicates": 1}', '{"hf_clip_duplicates": 1, "groups": 3}']
)
def test_what_is_no_plan_is_said(tmp_path, content):
    (tmp_path / "plan.json").write_text(content, encoding="utf-8")
    with pytest.raises(SearchError, match=r"`plan=.*plan\.json`"):
        DuplicatePlan.load(tmp_path / "plan.json")


def killed(work: Callable[[], object], at: int, is_before: bool) -> None:
    """Runs a function in a fork that is killed at a rename, before or after it."""
    child = os.fork()
    if not child:
        rename, count = os.rename, 0

        def counted(*arguments):
            nonlocal count
            count += 1
            if count == at and is_before:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = counted
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_kill_loses_nothing_and_both_ways_go_on(root, plan, at, is_before):
    before = files(root)
    killed(lambda: apply_plan(plan), at, is_before)
    # A line that was cut off, as a kill within a write leaves it.
    with (moving.trash_of(plan) / moving.JOURNAL).open("ab") as journal:
        journal.write(b'"a/')
    left, gone = files(root), files(moving.trash_of(plan) / moving.FILES)
    assert {**left, **gone} == before and not left.keys() & gone.keys()
    moves = apply_plan(plan)
    assert (len(moves.moved), moves.already) == (5 - at, at - 1) if is_before else (4 - at, at)
    killed(lambda: undo_plan(plan), 2, is_before)
    assert len(files(root)) == (2 if is_before else 3)
    undo_plan(plan)
    assert files(root) == before
