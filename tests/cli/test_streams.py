"""Standard streams that are closed, full, or read by nobody: the work is done, and the exit code says how it ended."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from hf_clip_cli import running
from hf_clip_cli.arguments import add_verb


class Verb:
    @staticmethod
    def add(verbs):
        for name in ("print", "work"):
            add_verb(verbs, name, Verb.run, "for a test", "none", prints_results=name == "print")

    @staticmethod
    def run(options):
        for line in range(3000):
            print("a line that nobody may read")
            print("a note that nobody may read", file=sys.stderr)
        with open("file", "w") as file:
            file.write("the work")
        return 0


sys.modules["hf_clip_cli.of_a_test"] = Verb
running.VERBS = {"print and work": "of_a_test"}
sys.exit(running.run(sys.argv[1:]))
"""


def run(tmp_path: Path, verb: str, redirection: str) -> tuple[int, str, str, str]:
    """Exit code, standard output, last line of standard error, and what the verb wrote to its file."""
    command = f'set -o pipefail; "{sys.executable}" "$0" {verb} {redirection}'
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(["bash", "-c", command, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    file = tmp_path / "file"
    return done.returncode, done.stdout, done.stderr, file.read_text() if file.exists() else ""


@pytest.mark.parametrize("verb", ["print", "work"])
def test_closed_streams_lose_lines_and_no_work(verb, tmp_path):
    for redirection in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        code, out, err, file = run(tmp_path, verb, redirection)
        assert (code, file) == (0, "the work"), redirection
        assert out.count("\n") == (3000 if redirection == "2>&-" else 0)
        assert not err or err.splitlines()[-1] == "hf-clip: standard output is closed: what would stand there is lost."
        assert err.count("\n") == (3001 if redirection == ">&-" else 0)
        (tmp_path / "file").unlink()


def test_a_reader_that_leaves_is_enough_for_a_verb_that_prints_and_nothing_to_one_that_works(tmp_path):
    for redirection in ("2>/dev/null | head -1", "2>&1 | head -1", "2> >(head -1 >&2)"):
        assert run(tmp_path, "work", redirection)[::3] == (0, "the work"), redirection
        (tmp_path / "file").unlink()
    code, out, err, file = run(tmp_path, "print", "2>/dev/null | head -1")
    assert (code, out, err, file) == (0, "a line that nobody may read\n", "", "")
    # Notes are no results.
    assert run(tmp_path, "print", "2> >(head -1 >&2)")[::3] == (0, "the work")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full here")
def test_a_full_disk_under_the_results_is_a_failure(tmp_path):
    assert shutil.which("bash")
    code, _, err, file = run(tmp_path, "work", ">/dev/full")
    assert (code, file) == (1, "the work")
    assert "standard output cannot be written: [Errno 28] No space left" in err.splitlines()[-1]
    (tmp_path / "file").unlink()
    code, _, err, _ = run(tmp_path, "print", ">/dev/full")
    assert code == 1 and "No space left" in err.splitlines()[-1]
    # A log that is full ends nothing.
    (tmp_path / "file").unlink(missing_ok=True)
    assert run(tmp_path, "work", "2>/dev/full")[::3] == (0, "the work")
