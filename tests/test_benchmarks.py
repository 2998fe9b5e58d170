"""Every benchmark runs, at its smallest. What it measures is not looked at here."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.counts import soak_count
from tests.helpers.warm_python import warm_python

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALLEST = {
    "retrieval": ["--images", "20", "--texts", "50", "--width", "8"],
    "decode": ["--images", "1", "--runs", "1", "--size", "32"],
    "step": ["--quick"],
    "loss": ["--quick"],
    "captions": ["--quick"],
    "batch": ["--batches", "16", "--micro", "8"],
    "dedup": ["--quick"],
    "demo": ["--quick"],
    "encode": ["--quick"],
    "export": ["--quick"],
    "embed": ["--quick"],
    "labels": ["--quick"],
    "operating_points": ["--quick"],
    "optimizer": ["--quick"],
    "loader": ["--quick"],
    "locate": ["--quick"],
    "start": ["--runs", "1"],
    "stream": ["--quick"],
    "search": ["--rows", "2000", "--width", "16", "--queries", "4", "--files", "10"],
    "serve": ["--quick"],
    # It measures a trained model, and says so where there is none.
    "search_quality": [],
    "finetune": ["--quick"],
    "plan": ["--pairs", "16", "--micro-batch-size", "8"],
    "pipeline": ["--images", "2", "--labels", "3", "--stock-images", "1", "--batch-size", "2"],
}


def test_all_are_run_here():
    assert {file.stem for file in FOLDER.glob("bench_*.py")} == {f"bench_{name}" for name in SMALLEST}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALLEST)[: soak_count(2, len(SMALLEST))])
def test_a_benchmark_runs(name, tmp_path):
    command = [*warm_python(), str(FOLDER / f"bench_{name}.py"), *SMALLEST[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_what_measures_a_gpu_runs_on_a_cpu(tmp_path):
    parts = soak_count(
        ["losses", "memory", "copies"], ["losses", "attention", "steps", "embed", "inference", "training"]
    )
    command = [*warm_python(), str(FOLDER / "gpu.py"), "--quick", "--only", *parts]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "all parts passed" in done.stdout, done.stdout[-2000:]
