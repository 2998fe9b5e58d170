"""The start of the command: help and wrong usage without heavy imports, soon, and Ctrl-C in one line."""

import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIGHT = [
    "--help", "--version", "", "draw", "train --help", "plan --help", "eval --help", "eval zero-shot --help",
    "eval retrieval --help", "eval linear-probe --help", "eval few-shot --help", "eval robustness --help",
    "eval segmentation --help", "eval groups --help", "eval clip-score --help", "eval languages --help",
    "locate --help", "locate . --model gone", "ask a.png",
    "classify --help", "prompts --help", "convert --help", "push --help", "doctor --help", "doctor --architectures",
    "train --output-dir out", "train --output-dir out --recipe gone.yaml", "train --output-dir out --recipe emojis",
    "train --output-dir out --recipe emoji --set steps", "plan", "classify gone.png --labels a --model m/n",
    "classify . --labels a --model gone", "classify . --labels a --model gone.pt", "classify . --model m/n",
    "classify . --labels @gone.txt --model m/n", "classify . --labels a --model m/n --device cud",
    "classify . --labels a --model m/n --templates nothing", "classify . --prompts gone.yaml --model m/n",
    "eval zero-shot --model m/n --data gone.parquet", "eval zero-shot --model m/n --data . --output gone/x.json",
    "eval retrieval --model m/n --data . --output data.csv", "eval few-shot --model m/n --data .",
    "eval retrieval --model m/n --data . --where a", "convert gone --to openai --output-dir out",
    "index --help", "search --help", "embed --help", "index gone/ --model m/n", "index . --model gone.pt", "search .",
    "search . dog --liked a.png", "search . dog --sheet gone/found.png", "embed . --model m/n --output out.csv",
    "embed gone.csv --model m/n --output out.parquet", "convert . --to openai --output-dir .", "push gone owner/name",
    "prompts gone.yaml", "export --help", "export gone --to onnx --output-dir out",
    "export . --to onnx --output-dir .", "serve --help", "serve .", "serve gone.pt", "serve m/n --port 70000",
    "dedup --help", "dedup", "dedup gone/", "dedup . --apply plan.json",
    "dedup --undo gone.json", "dedup . --only-new --against .",
]  # fmt: skip
SCRIPT = """
import sys
from hf_clip_cli.main import main
for line in sys.stdin.read().splitlines():
    try:
        code = main(line.split())
    except SystemExit as ended:
        code = ended.code
    heavy = {"hf_clip", "torch", "transformers", "numpy", "PIL", "datasets", "yaml"} & set(sys.modules)
    print("RESULT", code, *sorted(heavy))
"""


def test_help_and_wrong_usage_import_nothing_heavy(tmp_path):
    (tmp_path / "data.csv").write_text("file_name,text\n")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(LIGHT), cwd=tmp_path, capture_output=True, text=True
    )
    results = [line.split() for line in run.stdout.splitlines() if line.startswith("RESULT")]
    assert len(results) == len(LIGHT), run.stderr
    for command, (_, code, *heavy) in zip(LIGHT, results, strict=True):
        is_fine = "--help" in command or command in ("--version", "doctor --architectures")
        assert (code, heavy) == ("0" if is_fine else "2", []), command
    assert run.stderr.count("\n") == sum(result[1] == "2" for result in results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv"]


def test_the_version_is_the_packages(capfd):
    subprocess.run([sys.executable, "-m", "hf_clip_cli.main", "--version"], check=True, cwd=ROOT)
    import hf_clip

    assert capfd.readouterr().out == f"hf-clip {hf_clip.__version__}\n"


def test_help_takes_half_a_second_more_than_the_interpreter(tmp_path):
    def seconds(*command: str) -> float:
        # Of the processor: the clock's depend on what else runs here.
        before = os.times()
        subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    command = ("-c", "import sys; from hf_clip_cli.main import main; sys.exit(main(['eval', 'zero-shot', '--help']))")
    times = [(seconds("-c", "pass"), seconds(*command)) for _ in range(3)]
    bare, help_ = (statistics.median(column) for column in zip(*times, strict=True))
    assert help_ - bare < 0.5


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path):
    # What a shell starts in the background ignores the signal.
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.raise_signal(signal.SIGINT)\n"
    (tmp_path / "torch.py").write_text(f"import signal\n{interrupt}")
    (tmp_path / "one.png").write_bytes(b"")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from hf_clip_cli.main import main; sys.exit(main())"
    command = shlex.split("classify one.png --labels a --model owner/name")
    run = subprocess.run([sys.executable, "-c", script, *command], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", "hf-clip: interrupted.\n")
