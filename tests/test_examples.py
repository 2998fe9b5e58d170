"""The embedded data is what its sources say, may be given away as they say, and can be shown."""

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCES = {
    str(file.parent.relative_to(EXAMPLES) / source["file"]): source
    for file in sorted(EXAMPLES.glob("*/sources.yaml"))
    for source in yaml.safe_load(file.read_text(encoding="utf-8"))
}
PROOF_OF_LICENSE = {
    "Apache-2.0": "LICENSE.apache-2.0.txt",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
    "MIT": "LICENSE.txt",
    "Unicode-3.0": "LICENSE.unicode.txt",
}


@pytest.fixture(scope="module")
def show():
    spec = importlib.util.spec_from_file_location("emoji_show", EXAMPLES / "emoji" / "show.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_embedded_file_has_its_source():
    assert set(SOURCES) == {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.parquet")}


@pytest.mark.parametrize("file", SOURCES)
def test_a_source_says_what_its_file_holds(file):
    source = SOURCES[file]
    table = pq.read_table(EXAMPLES / file, columns=["license", "source"])
    assert table.num_rows == source.get("images", source.get("captions"))
    assert set(table["license"].to_pylist()) == {source["license"]}
    assert all(origin.startswith(source["source"]) for origin in table["source"].to_pylist())


@pytest.mark.parametrize("file", SOURCES)
def test_the_readme_gives_attribution_and_license(file):
    source, folder = SOURCES[file], (EXAMPLES / file).parent
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{source.get('images', source.get('captions')):,}" in readme
    for part in source["attribution"].split(", "):
        assert part in readme
    proof = PROOF_OF_LICENSE[source["license"]]
    assert proof in readme
    assert proof.startswith("https:") or (folder / proof).stat().st_size > 1000


def test_no_concept_of_the_test_split_is_trained_on():
    splits = {}
    for file in EXAMPLES.glob("emoji/*.parquet"):
        table = pq.read_table(file, columns=["concept", "split"])
        for concept, split in zip(*(column.to_pylist() for column in table.columns), strict=True):
            assert splits.setdefault(concept, split) == split, concept


def test_the_images_shown_are_half_of_known_concepts_and_among_the_names(show, tmp_path):
    names, rows = show.choose(name_count=20, image_count=6)
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 3
    assert {row["caption"] for row in rows} <= set(names)
    paths = show.write_images(rows, tmp_path / "images")
    assert len({path.read_bytes() for path in paths}) == 6


def test_the_table_marks_what_is_right_and_cuts_what_is_long(show):
    rows = [{"caption": "cat", "split": "train"}, {"caption": "flag: " + "far away " * 9, "split": "test"}]
    guess = [{"label": label, "score": score} for label, score in (("cat", 0.5), ("dog", 0.3), ("cow", 0.2))]
    head, right, wrong, _ = show.table(rows, [guess, guess]).splitlines()
    assert right.startswith("* cat") and "trained" in right and "0.30 dog" in right
    assert wrong.startswith("  flag: far away") and "…" in wrong and "new" in wrong
    assert right.index("0.50") == wrong.index("0.50") == head.index("1st") - 5


def test_every_measured_result_is_found_and_told(show):
    retrieval = {"recall_at_1": 0.625, "recall_at_5": 0.875, "queries": 1675, "candidates": 1670}
    results = {
        "steps": 3,
        "evaluations": {
            "seen": {"task": "retrieval", "image_to_text": retrieval},
            "clothes": {"task": "zero-shot", "top_1": 0.25, "images": 9, "classes": 4, "chance": 0.1},
        },
    }
    told = [show.summary(name, result) for name, result in show.measured(json.loads(json.dumps(results)))]
    assert told == [
        "seen: image to text R@1 0.625, R@5 0.875 (1,675 images among 1,670 names)",
        "clothes: top-1 0.250 (9 images among 4 classes, chance 0.100)",
    ]


def test_a_folder_without_a_model_is_one_line(show, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["show.py", str(tmp_path)])
    assert show.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
