"""`hf-clip index` and `hf-clip search`: what they print, in which formats, and what they refuse."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from hf_clip_cli import main as cli
from hf_clip_cli.running import make_parser
from tests.helpers.squares import NAMES, SIZE, rows
from tests.helpers.toys import tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    model, processor = tiny_clip(NAMES, SIZE)
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    (place / "photos").mkdir()
    (place / "nothing").mkdir()
    for number, row in enumerate(rows(1)):
        (place / f"photos/{number}.png").write_bytes(row["image"]["bytes"])
    (place / "photos/film.mp4").write_bytes(b"")
    (place / "photos/broken.jpg").write_bytes(b"broken")
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def indexed(place):
    assert cli.main(["index", str(place / "photos"), "--model", str(place / "model")]) == 0


def run(capsys, command: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert cli.main(shlex.split(command)) == code
    return capsys.readouterr()


def test_index_tells_what_it_did_and_what_it_did_not_read(capsys, place):
    out, err = run(capsys, "index photos --model model --index apart")
    assert "photos: 24 images (24 added, 24 encoded, 1 unreadable)" in out
    assert "hf-clip: broken.jpg: " in err and "1 files are no images that are read: 1 .mp4" in err
    out, _ = run(capsys, "index photos --index apart")
    assert "photos: 24 images (1 unreadable)" in out
    out, _ = run(capsys, "index photos --index apart --errors")
    assert out.startswith("broken.jpg: ") and len(out.splitlines()) == 1
    [model] = json.loads(run(capsys, "index photos --index apart --status")[0])["models"]
    assert (model["rows"], model["unreadable"], model["search"]) == (24, 1, {"kind": "exact"})
    assert not (place / "photos/.hf-clip.lance").exists()


def test_commands_and_python_of_the_page(place):
    page = (Path(__file__).parents[2] / "docs/search.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True)[1:] for line in page.splitlines() if line.startswith("    hf-clip ")]
    assert len(commands) >= 5
    for command in commands:
        make_parser().parse_args(command)
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names: dict = {}
    exec(compile(code.replace("openai/clip-vit-base-patch32", "model"), "search.md", "exec"), names)  # noqa: S102
    assert len(names["index"]) == 24 and names["hit"].path.endswith(".png")


@pytest.mark.usefixtures("indexed")
def test_formats_say_the_same(capsys):
    question = f"search photos {NAMES[0]!r} --top-k 3"
    lines = [json.loads(line) for line in run(capsys, f"{question} --format jsonl")[0].splitlines()]
    paths = run(capsys, f"{question} --format paths")[0].splitlines()
    head, *table = run(capsys, question)[0].splitlines()
    assert [line["path"] for line in lines] == paths == [line.split()[-1] for line in table]
    assert head.split() == ["score", "size", "taken", "image"] and f"{lines[0]['score']:.4f}" in table[0]
    assert 0 <= lines[0]["match_probability"] <= 1 and (lines[0]["width"], lines[0]["taken"]) == (SIZE, None)


@pytest.mark.usefixtures("indexed")
def test_images_mixtures_conditions_and_recommendations(capsys):
    assert run(capsys, "search photos --image photos/3.png --top-k 1 --format paths")[0] == "3.png\n"
    assert run(capsys, "search photos --image 3.png --top-k 1 --format paths")[0] == "3.png\n"
    mixed = f"search photos {NAMES[0]!r} --image 3.png --minus {NAMES[5]!r} --weights 1 2 1 --format paths"
    assert len(run(capsys, mixed)[0].splitlines()) == 20
    liked = run(capsys, "search photos --liked 1.png photos/2.png --disliked 3.png --format paths")[0].splitlines()
    assert len(liked) == 20 and not {"1.png", "2.png", "3.png"} & set(liked)
    where = f"""search photos {NAMES[0]!r} --where "path = '4.png'" --format paths"""
    assert run(capsys, where)[0] == "4.png\n"


@pytest.mark.usefixtures("indexed")
def test_a_cutoff_makes_nothing_an_answer(capsys):
    out, err = run(capsys, "search photos 'no such thing at all' --cutoff 1 --format paths")
    assert out == "" and "nothing above --cutoff" in err and "(match probability" in err


@pytest.mark.usefixtures("indexed")
def test_a_sheet_shows_what_was_found(capsys, place):
    run(capsys, f"search photos {NAMES[0]!r} --top-k 5 --sheet found.png")
    with Image.open(place / "found.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 160
    (place / "photos/0.png").rename(place / "away.png")
    _, err = run(capsys, f"search photos {NAMES[0]!r} --top-k 24 --sheet found.png")
    (place / "away.png").rename(place / "photos/0.png")
    assert "0.png is not on the sheet: " in err and len([line for line in err.splitlines() if "sheet" in line]) == 1


@pytest.mark.usefixtures("indexed")
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("index gone/ --model model", 2, "gone/ does not exist"),
        ("index photos --index elsewhere", 1, "name a --model to make one with"),
        ("index photos --model gone.pt", 2, "--model gone.pt does not exist"),
        ("search photos", 2, "nothing is asked for: give a TEXT"),
        ("search photos dog --liked 1.png", 2, "--liked and --disliked go with each other alone"),
        ("search nowhere dog", 1, "nowhere is no folder or file here, and holds no index: run hf-clip index first."),
        ("search photos dog --index elsewhere", 1, "elsewhere holds no index: run hf-clip index first."),
        ("search photos dog --where 'taken > 2024'", 1, "texts stand in quotes, taken > '2024-01-01'"),
        ("index nothing --model model", 1, "nothing holds no image that can be read."),
        ("search photos dog --where 'nope = 1'", 1, "--where nope = 1 cannot be understood"),
        ("search photos dog --weights 1 2", 1, "--weights has 2 numbers for 1 parts of a question"),
        ("search photos --image gone.png", 1, "'gone.png' is no image of the index"),
        ("search photos dog --sheet photos/1.png", 2, "is what IMAGES photos reads"),
        ("index photos --drop nothing", 1, "holds no model 'nothing'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, command, code, message):
    _, err = run(capsys, command, code)
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1
