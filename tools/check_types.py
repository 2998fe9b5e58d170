"""Types of the product's code, by basedpyright in its basic mode: `python tools/check_types.py [FOLDER ...]`.

`conversion/`, `training/` and `cli/` install under other names than they have in the tree, which no type checker
resolves. So the check looks at a copy that is laid out as installed, and names the files as in the tree.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = {
    "hf_clip": "hf_clip",
    "conversion": "hf_clip/conversion",
    "training": "hf_clip/training",
    "cli": "hf_clip_cli",
}


def main(folders: list[str]) -> int:
    wanted = [folder.rstrip("/") for folder in folders]
    with tempfile.TemporaryDirectory() as copy:
        for folder, name in INSTALLED.items():
            shutil.copytree(ROOT / folder, Path(copy, name), ignore=shutil.ignore_patterns("__pycache__"))
        settings = {"typeCheckingMode": "basic", "pythonVersion": "3.11", "include": ["hf_clip", "hf_clip_cli"]}
        Path(copy, "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
        checker = Path(sys.executable).with_name("basedpyright")
        command = [str(checker), "--project", copy, "--pythonpath", sys.executable, "--level", "error", "--outputjson"]
        run = subprocess.run(command, capture_output=True, text=True)
        try:
            found = json.loads(run.stdout[run.stdout.index("{") :])["generalDiagnostics"]
        except ValueError:
            print(f"{run.stdout[-2000:]}{run.stderr[-2000:]}", file=sys.stderr)
            return 1
        lines = sorted(_line(one, Path(copy).resolve()) for one in found)
    shown = [line for line in lines if not wanted or line.startswith(tuple(wanted))]
    for line in shown:
        print(line)
    print(f"{len(shown)} type errors" if shown else "types: no errors")
    return 1 if shown else 0


def _line(one: dict, copy: Path) -> str:
    """FILE:LINE: what is wrong, with the file's name in the tree."""
    name = Path(one["file"]).resolve().relative_to(copy).as_posix()
    for folder, installed in sorted(INSTALLED.items(), key=lambda pair: -len(pair[1])):
        if name.startswith(f"{installed}/"):
            name = folder + name.removeprefix(installed)
            break
    message = " ".join(one["message"].split())
    return f"{name}:{one['range']['start']['line'] + 1}: {message} ({one.get('rule', 'error')})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
