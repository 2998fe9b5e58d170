"""Packages for a machine without a network: fetched as wheels here, unpacked there, beside that machine's own torch.

    make gpu-wheels          # or: python benchmarks/gpu_wheels.py, on a machine with a network

They lie in benchmarks/wheels, which git ignores, and travel with the tree (26 MB). `gpu.py` puts them before what the
machine has, for itself and for the processes that it starts.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "wheels"
PYTHON = "3.12"
# With --no-deps: numpy, pyarrow, pandas, regex and others are what such a machine has. Pinned ones are the tests'.
PACKAGES = (
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "httpx2",
    "httpcore2",
    "truststore",
    "datasets",
    "dill",
    "multiprocess",
    "ftfy",
    "wcwidth",
    "omegaconf",
    "timm==1.0.31",
    "open_clip_torch==3.3.0",
    "memeff==0.3.1",
)
MOST_BYTES = 40_000_000


def fetch() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "any")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--python-version", PYTHON, "--implementation", "cp"]
    command += [part for name in platforms for part in ("--platform", name)]
    constraints = Path(__file__).parents[1] / "constraints.txt"
    subprocess.run([*command, "-c", str(constraints), "-d", str(FOLDER), *PACKAGES], check=True)
    size = sum(wheel.stat().st_size for wheel in FOLDER.glob("*.whl"))
    print(f"{FOLDER}: {len(PACKAGES)} wheels, {size / 1e6:.0f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"that is more than the {MOST_BYTES / 1e6:.0f} MB that travel: take a package out.")


def unpack() -> tempfile.TemporaryDirectory | None:
    """Unpacks the wheels, where there are any, and has this process and its children import them first.

    Returns:
        The folder, which is removed with the object; None without wheels for this Python.
    """
    wheels = sorted(FOLDER.glob("*.whl"))
    if not wheels or PYTHON != f"{sys.version_info.major}.{sys.version_info.minor}":
        return None
    there = tempfile.TemporaryDirectory(prefix="gpu-wheels-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(there.name)
    sys.path.insert(0, there.name)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (there.name, os.environ.get("PYTHONPATH"))))
    return there


if __name__ == "__main__":
    fetch()
