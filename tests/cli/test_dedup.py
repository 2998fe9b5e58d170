"""`hf-clip dedup`: what it prints, writes, moves and refuses."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from hf_clip_cli import main as cli
from tests.helpers.search_toys import scene
from tests.helpers.squares import NAMES
from tests.helpers.toys import tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    model, processor = tiny_clip(NAMES)
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    for folder in ("photos", "other", "bare"):
        (place / folder).mkdir()
    for seed in range(3):
        scene(seed).save(place / f"photos/{seed}.png")
    (place / "photos/deep").mkdir()
    (place / "photos/deep/again.png").write_bytes((place / "photos/0.png").read_bytes())
    scene(1).save(place / "photos/one.jpg", quality=80)
    (place / "photos/broken.jpg").write_bytes(b"broken")
    scene(2).save(place / "other/two.bmp")
    scene(9).save(place / "photos/mine.png")
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)


def run(capsys, command: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert cli.main(shlex.split(command)) == code
    return capsys.readouterr()


def images(place: Path) -> list[str]:
    return sorted(str(file.relative_to(place)) for file in place.glob("photos/**/*.*") if "/." not in str(file))


def test_duplicates_are_found_planned_moved_and_moved_back(capsys, place):
    before = images(place)
    out, err = run(capsys, "dedup photos --model model --plan plan.json --sheet groups.png")
    groups = out.splitlines()
    assert groups[0].startswith("0.png: of equal bytes, the oldest file")
    assert groups[1].split() == ["move", "same", "bytes", "deep/again.png:", "the", "same", "bytes"]
    assert groups[2].startswith("1.png: it has the most detail") and groups[3].startswith(
        "  move  edited       one.jpg: encoded"
    )
    assert groups[4].startswith("photos: 6 images, 2 groups: 1 of same bytes, 0 of same pixels, 1 edited; ")
    assert groups[4].endswith("would be moved: hf-clip dedup --apply plan.json.") and len(groups) == 5
    assert "hf-clip: broken.jpg: " in err
    with Image.open("groups.png") as sheet:
        assert sheet.width > 2 * 160 and sheet.height > 2 * 160
    out, _ = run(capsys, "dedup photos --plan plan.json --sheet groups.png --format jsonl")
    lines = {line["path"]: line for line in map(json.loads, out.splitlines()) if line["kind"] != "similar"}
    assert {path: (line["best"], line["kind"], line["action"]) for path, line in lines.items()} == {
        "deep/again.png": ("0.png", "same_bytes", "move"),
        "one.jpg": ("1.png", "edited", "move"),
    }
    out, _ = run(capsys, "dedup --apply plan.json")
    assert out.startswith("2 files moved to ") and "hf-clip dedup --undo plan.json" in out
    assert set(before) - set(images(place)) == {"photos/deep/again.png", "photos/one.jpg"}
    assert "0 groups" in run(capsys, "dedup photos")[0]
    assert run(capsys, "dedup --undo plan.json")[0].startswith("2 files moved back to ")
    assert images(place) == before


def test_images_of_another_folder_are_found(capsys):
    out, err = run(capsys, "dedup photos --model model --against other --format jsonl")
    [line] = [line for line in map(json.loads, out.splitlines()) if line["kind"] != "similar"]
    assert (line["best"], line["path"], line["kind"]) == ("two.bmp", "2.png", "same_pixels")
    assert "7 images, 1 groups" in err


def test_a_changed_file_is_named_and_nothing_moves(capsys, place):
    run(capsys, "dedup photos --model model --plan changed.json")
    content = (place / "photos/one.jpg").read_bytes()
    (place / "photos/one.jpg").write_bytes(content + b"x")
    before = images(place)
    _, err = run(capsys, "dedup --apply changed.json", 1)
    (place / "photos/one.jpg").write_bytes(content)
    assert "one.jpg has changed since the plan was made" in err and err.endswith("Make the plan again.\n")
    assert len(err.splitlines()) == 1 and images(place) == before


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("dedup", 2, "give one of IMAGES, --apply PLAN and --undo PLAN."),
        ("dedup photos --apply plan.json", 2, "give one of IMAGES"),
        ("dedup gone/", 2, "gone/ does not exist"),
        ("dedup photos --against gone/", 2, "gone/ does not exist"),
        ("dedup photos --against other --only-new", 2, "--only-new and --against do not go together"),
        ("dedup photos --trash bin", 2, "--trash goes with --apply and --undo"),
        ("dedup photos --plan photos/1.png", 2, "is what IMAGES photos reads"),
        ("dedup photos --sheet model/config.json", 2, "exists and is not a sheet in PNG"),
        ("dedup bare", 1, "holds no index yet: name a --model to make one with"),
        ("dedup photos --model model --least-similarity 3", 1, "--least-similarity 3.0 is no cosine"),
        ("dedup photos --model model --against photos/deep", 1, "--against photos/deep share files"),
        ("dedup --apply gone.json", 2, "there is no file gone.json"),
        ("dedup --apply model/config.json", 1, "--apply model/config.json is no plan of duplicates"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, command, code, message):
    _, err = run(capsys, command, code)
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1
