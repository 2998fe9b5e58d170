"""The table of named architectures that `hf-clip doctor --architectures` prints."""

import json
import os
import re
import subprocess
import sys

import pytest

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


def test_it_answers_where_packages_are_broken_or_missing(capsys, monkeypatch):
    def fail(name):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr("hf_clip_cli.doctor.import_module", fail)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch cannot be imported: No module named 'torch'" in lines
    assert "torchvision cannot be imported: operator torchvision::nms does not exist" in lines
    assert any(line.startswith("  fix: it is optional: pip uninstall torchvision") for line in lines)
    assert not any(line.startswith("cpu:") for line in lines)
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["broken"]["torch"] and findings["torchvision_works"] is False and findings["devices"] == []


@pytest.mark.slow
def test_a_torchvision_for_another_torch_is_named_and_the_devices_are_shown(tmp_path):
    """As pip leaves it when torch alone is upgraded: transformers finds it installed, and fails with it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
    )
    # transformers imports it where something asks for its image processors; here everything does.
    (tmp_path / "transformers.py").write_text("import torchvision")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import sys; from hf_clip_cli.main import main; sys.exit(main())"]
    done = subprocess.run([*command, "doctor"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "torchvision       0.1" in done.stdout
    assert "torchvision cannot be imported: operator torchvision::nms does not exist" in done.stdout
    assert "hf_clip cannot be imported: operator torchvision::nms" in done.stdout
    assert "cpu: " in done.stdout and "  not tried: hf_clip cannot be imported" in done.stdout
    # Verbs that need the library say in one line where to look.
    verb = [*command, "prompts"]
    done = subprocess.run(verb, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "operator torchvision::nms does not exist" in done.stderr and "`hf-clip doctor` shows" in done.stderr
