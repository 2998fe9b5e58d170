"""`hf-clip serve`: what it refuses, how it ends, and `hf-clip search` through it."""

import json
import os
import shlex
import signal
import stat
import subprocess
from pathlib import Path

import pytest

import hf_clip_cli.search
from hf_clip.search import Index
from hf_clip.serving import open_index
from hf_clip_cli import main as cli
from hf_clip_cli.running import make_parser
from hf_clip_cli.server_calls import running_server
from tests.helpers.served import TOKEN, listen, running
from tests.helpers.squares import NAMES, SIZE, rows
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    model, processor = tiny_clip(NAMES, SIZE)
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    (place / "photos").mkdir()
    for number, row in enumerate(rows(1)):
        (place / f"photos/{number}.png").write_bytes(row["image"]["bytes"])
    Index.open(place / "photos", model=str(place / "model")).update(show_progress=False)
    (place / "empty").mkdir()
    return place


@pytest.fixture(autouse=True)
def stand_there(place, monkeypatch):
    monkeypatch.chdir(place)


def run(capsys, command: str) -> tuple[str, str]:
    capsys.readouterr()
    assert cli.main(shlex.split(command)) == 0
    return capsys.readouterr()


COMMANDS = [
    f"search photos {NAMES[0]!r} --top-k 5 --format jsonl",
    f"search photos {NAMES[0]!r} --image photos/3.png 4.png --minus {NAMES[5]!r} --weights 1 2 1 1 --format paths",
    "search photos --liked 1.png 2.png --disliked 3.png",
    f"""search photos {NAMES[0]!r} --where "path = '4.png'" """,
    "search photos 'no such thing at all' --cutoff 1",
]


def test_a_search_asks_the_running_server_and_prints_the_same(capsys, monkeypatch):
    alone = [run(capsys, command) for command in COMMANDS]
    service = open_index("photos")

    def never(*_, **__):
        raise AssertionError("The server was not asked.")

    with running(service, TOKEN):
        file = Path("photos/.hf-clip.lance/serving.json")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with monkeypatch.context() as patched:
            patched.setattr(hf_clip_cli.search, "open_index", never)
            for command, (out, err) in zip(COMMANDS, alone, strict=True):
                found = run(capsys, command)
                assert found.err == err
                if "jsonl" not in command:
                    assert found.out == out
                    continue
                for line, wanted in zip(found.out.splitlines(), out.splitlines(), strict=True):
                    assert json.loads(line) == pytest.approx(json.loads(wanted), abs=1e-6)
        # What a server refuses the index explains, as without one.
        assert cli.main(["search", "photos", "dog", "--where", "nope = 1"]) == 1
        assert "--where nope = 1 cannot be understood" in capsys.readouterr().err
    assert not file.exists()
    service.close()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": 0}', "DEAD", "ELSEWHERE", "OTHER"])
def test_a_file_that_no_server_stands_behind_is_ignored(capsys, content):
    file = Path("photos/.hf-clip.lance/serving.json")
    here = {"pid": os.getpid(), "host": "127.0.0.1", "port": 9, "token": None, "run": "x"}
    with listen("127.0.0.1", 0) as other:
        special = {"DEAD": {**here, "pid": 2**22 - 1}, "ELSEWHERE": {**here, "host": "192.0.2.1"}}
        special["OTHER"] = {**here, "port": other.getsockname()[1]}
        file.write_text(json.dumps(special[content]) if content in special else content)
        try:
            assert len(run(capsys, f"search photos {NAMES[0]!r} --top-k 3 --format paths").out.splitlines()) == 3
        finally:
            file.unlink()


@pytest.mark.parametrize(
    "change", [{"token": "a\r\nX-Evil: 1"}, {"token": 5}, {"run": "a\n"}, {"host": "localhost\r\n"}]
)
def test_a_file_that_would_write_into_a_request_is_ignored(tmp_path, change):
    (tmp_path / ".hf-clip.lance").mkdir()
    good = {"pid": os.getpid(), "host": "127.0.0.1", "port": 9, "token": "a token", "run": "x"}
    for content, is_taken in ((good, True), ({**good, **change}, False)):
        (tmp_path / ".hf-clip.lance/serving.json").write_text(json.dumps(content))
        assert (running_server(str(tmp_path), None) is not None) == is_taken


@pytest.mark.slow
def test_it_serves_until_a_signal_and_leaves_nothing(place):
    command = [*warm_python(), "-m", "hf_clip", "serve", "photos", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=place)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "http://" in line:
            break
    assert lines[0] == "hf-clip: opening photos ...\n" and "(24 images, model). Ctrl-C stops it." in lines[-1]
    file = place / "photos/.hf-clip.lance/serving.json"
    assert json.loads(file.read_text())["port"] == int(lines[-1].split(":")[3].split("/")[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == "hf-clip: stopped.\n" and not file.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("serve ./gone", "INDEX_OR_MODEL ./gone does not exist"),
        ("serve empty", "empty is no model, and has no index: run hf-clip index empty --model MODEL first."),
        ("serve model --model other", "model has no index: run hf-clip index model --model other first."),
        ("serve photos --host 0.0.0.0", "--host 0.0.0.0 lets others reach the images: give a --token"),
        ("serve photos --token short", "--token has 5 characters: take 16 or more"),
        ("serve photos --port BUSY", "of 127.0.0.1 cannot be taken (Address already in use): name another --port"),
        ("serve photos --port 70000", "--port 70000 is no port: 65535 is the highest."),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, command, message):
    with listen("127.0.0.1", 0) as busy:
        busy.listen()
        assert cli.main(shlex.split(command.replace("BUSY", str(busy.getsockname()[1])))) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("hf-clip: ") and len(err.splitlines()) == 1


def test_the_commands_of_the_page_are_ones():
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True)[1:] for line in page.splitlines() if line.startswith("    hf-clip ")]
    assert len(commands) >= 3
    for command in commands:
        make_parser().parse_args(command)
