"""Files that other programs read, of which nothing here runs: workflow, hooks before a commit, citation."""

import re
from pathlib import Path

import yaml

import hf_clip

ROOT = Path(__file__).parents[1]


def read(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_the_workflow_calls_targets_that_are_there_on_the_versions_that_are_promised():
    jobs = read(".github/workflows/test.yml")["jobs"]
    commands, pythons = [], set()
    for job in jobs.values():
        matrix = job["strategy"]["matrix"]
        for step in job["steps"]:
            assert len(step.keys() & {"run", "uses"}) == 1 and re.fullmatch(
                r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")
            )
            texts = [step.get("run", ""), str(step.get("with", {}).get("python-version", ""))]
            for name in re.findall(r"\$\{\{ *matrix\.(\w+) *\}\}", " ".join(texts)):
                assert name in matrix
            commands += [
                re.sub(r"\$\{\{.*?\}\}", str(one), texts[0]) for one in matrix.get("target", [""]) if texts[0]
            ]
        pythons |= set(matrix.get("python", []))
    called = {command.split()[1] for command in commands}
    assert called == {"test", "test-oldest", "test-newest"} <= make_targets()
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert pythons == set(re.findall(r"Python :: (3\.\d+)", setup))
    assert f">={min(pythons, key=lambda one: int(one[2:]))}" in setup


def test_targets_are_phony_and_listed_by_make_help():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    assert set(phony.split()) == make_targets()


def test_the_hooks_before_a_commit_are_programs_of_the_tools():
    [dev] = re.findall(r'^ *"dev": \[(.*)\],$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M)
    tools = re.findall(r'"([^"]+)"', dev)
    [local] = read(".pre-commit-config.yaml")["repos"]
    # Of another repository a hook would be fetched, in a version of its own.
    assert local["repo"] == "local" and len({hook["id"] for hook in local["hooks"]}) == len(local["hooks"])
    for hook in local["hooks"]:
        assert hook["language"] == "system" and hook["name"]
        python, *arguments = hook["entry"].split()
        assert python == ".venv/bin/python"
        assert arguments[1] in tools if arguments[0] == "-m" else (ROOT / arguments[0]).is_file()


def test_issue_templates_ask_what_can_be_answered():
    templates = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert templates
    for path in templates:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        assert all(field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in form["body"])


def test_the_citation_and_the_changelog_are_of_this_version():
    assert read("CITATION.cff")["version"] == hf_clip.__version__
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert [heading.split()[0].strip("[]") for heading in headings if "nreleased" not in heading][
        0
    ] == hf_clip.__version__


def test_the_address_of_the_repository_is_one_and_its_place_is_named_where_it_is_released():
    """Nobody knows it before it is published: the first step of a release sets it."""
    [address] = re.findall(r'^REPOSITORY = "(.*)"$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M)
    assert read("CITATION.cff")["repository-code"] == address
    first = (ROOT / "RELEASING.md").read_text(encoding="utf-8").split("\n2. ")[0]
    assert address in first and "setup.py" in first and "CITATION.cff" in first
