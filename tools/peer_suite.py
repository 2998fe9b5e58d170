"""Runs transformers' own common model tests on this package's classes, and says where CLIP's own pass and ours do not.

    .venv/bin/python tools/peer_suite.py            # `make peer-suite`
    .venv/bin/python tools/peer_suite.py -k "sdpa"

The tests are those of the source distribution of the installed transformers on PyPI, which is fetched once to
.peer-suite/ (tests/test_modeling_common.py). What they import and it lacks gets empty stand-ins.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tools" / "peer_suite_cases.py"
COMMON = "tests/test_modeling_common.py"
STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "pytest.ini": "[pytest]\nfilterwarnings = ignore\n",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-k", metavar="EXPRESSION", help="of pytest: which tests to run")
    options = parser.parse_args()
    release = version("transformers")
    folder = ROOT / ".peer-suite" / release
    if not (folder / COMMON).is_file():
        fetch(release, folder)
    for name, text in {**STAND_INS, "tests/test_cases.py": CASES.read_text("utf-8")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    command += [
        "-c",
        "pytest.ini",
        f"--junit-xml={report}",
        "tests/test_cases.py",
        *(["-k", options.k] * bool(options.k)),
    ]
    with open(folder / "output.txt", "w") as output:
        subprocess.run(
            command, cwd=folder, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
        )
    return compare(report, folder / "output.txt")


def fetch(release: str, folder: Path) -> None:
    """The common tests of a release of transformers, from its source distribution."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--no-build-isolation", "--no-binary=:all:", f"--dest={folder}", f"transformers=={release}"]
    subprocess.run(pip, check=True)
    archive = folder / f"transformers-{release}.tar.gz"
    with tarfile.open(archive) as tar:
        content = tar.extractfile(f"transformers-{release}/{COMMON}")
        assert content is not None
        (folder / COMMON).parent.mkdir(exist_ok=True)
        (folder / COMMON).write_bytes(content.read())
    archive.unlink()


def compare(report: Path, output: Path) -> int:
    """Prints counts and the tests that CLIP's own classes pass and ours do not; 1 where there is one, or none ran."""
    if not report.is_file():
        print(f"No test ran: {output}")
        return 1
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        tests = found.setdefault(case.get("classname", "").rpartition(".")[2], {})
        # A test with several parts stands there once for each that failed.
        name = case.get("name", "")
        tests[name] = outcome if tests.get(name) in (None, "passed") else tests[name]
    worse = []
    for name, theirs in found.items():
        if not name.startswith("Theirs"):
            continue
        ours = found.get(name.replace("Theirs", "Ours"), {})
        for kind, tests in (("ours", ours), ("CLIP's", theirs)):
            counts = {outcome: list(tests.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
            print(
                f"{name.removeprefix('Theirs'):<12}{kind:<8}{', '.join(f'{n} {what}' for what, n in counts.items())}"
            )
        worse += [
            f"{name.removeprefix('Theirs')}.{test}: {ours.get(test, 'missing')}"
            for test, outcome in theirs.items()
            if outcome == "passed"
            # What is skipped asks for a mapping of weights' names, or for an annotation, that ours do without.
            and ours.get(test, "missing") not in ("passed", "skipped")
        ]
    print("\n".join(["CLIP's own pass these, ours do not:", *worse]) if worse else "Ours pass wherever CLIP's own do.")
    print(f"Output: {output}")
    return int(bool(worse) or not found)


if __name__ == "__main__":
    sys.exit(main())
