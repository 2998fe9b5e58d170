"""The table of named architectures that `hf-clip doctor --architectures` prints."""

import json
import re

from hf_clip import list_architectures
from hf_clip.model.configuration_hf_clip import find_architecture
from hf_clip_cli import main as cli


def test_the_table_has_a_row_for_each_architecture_and_fits_a_terminal(capsys):
    assert cli.main(["doctor", "--architectures"]) == 0
    out = capsys.readouterr().out
    assert out.isascii() and "\x1b" not in out
    header, *rows = out.splitlines()
    assert all(len(line) <= 80 for line in (header, *rows))
    rows = rows[: rows.index("")]
    assert [row.split()[0] for row in rows] == list_architectures()
    # Columns stand apart and under their titles, however large the model.
    ends = [found.end() for found in re.finditer(r"image|text|GFLOPs|pixels|tokens", header)]
    for row in rows:
        assert len(row.split()) == 7 and all(row[end] == " " and row[end - 1] != " " for end in ends), row


def test_the_table_says_what_the_file_says(capsys):
    cli.main(["doctor", "--architectures"])
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert rows["ViT-B/32"] == ["87.8", "63.4", "14.8", "224", "77", "quick_gelu"]
    # A ResNet's own layers have ReLU; its row shows the text tower's activation.
    assert rows["RN50-gelu"][-1] == "gelu" and rows["RN50"][-1] == "quick_gelu"
    assert rows["ViT-B-16-SigLIP2"][-3:] == ["224", "64", "gelu/gelu_tanh"]


def test_json_holds_the_whole_files(capsys):
    assert cli.main(["doctor", "--architectures", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == list_architectures()
    assert found[3] == find_architecture(found[3]["name"])
