"""Make examples/fashion: 200 images of each class of Fashion-MNIST's test split, for a zero-shot check.

    pip install pillow pyarrow pyyaml        # and apt-get (`apt-get update` once), dpkg-deb
    python examples/make_data/make_fashion.py

The images come from Debian's dataset-fashion-mnist (31 MB to download).
"""

import argparse
import gzip
import struct
import subprocess
from collections import Counter
from pathlib import Path

from common import encode_png, write_parquet, write_sources
from PIL import Image

PACKAGE = "dataset-fashion-mnist"
LICENSE = "MIT"
PER_CLASS = 200
CLASSES = [
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
COLUMNS = {
    "image": "image",
    "caption": "string",
    "label": CLASSES,
    "lang": "string",
    "license": "string",
    "source": "string",
}


def unpack_debian_package(package: str, cache: Path) -> tuple[Path, str]:
    """The folder that a Debian package was unpacked into (not installed, no root needed), and its version."""
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", "-q", package], cwd=cache, check=True)
    deb = max(cache.glob(f"{package}_*.deb"))
    asked = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], check=True, capture_output=True, text=True)
    root = cache / "unpacked" / package
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    return root, asked.stdout.strip()


def read_idx(path: Path) -> tuple[tuple[int, ...], bytes]:
    """The shape and the bytes of an IDX file (MNIST's format) of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    _, kind, dimensions = struct.unpack(">HBB", data[:4])
    if kind != 0x08:
        raise ValueError(f"{path.name} holds type 0x{kind:02x}, not unsigned bytes (0x08).")
    return struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions]), data[4 + 4 * dimensions :]


def first_of_each_class(folder: Path, version: str) -> list[dict]:
    (count, height, width), pixels = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    _, labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    rows, taken = [], Counter()
    for index in range(count):
        name = CLASSES[labels[index]]
        if taken[name] == PER_CLASS:
            continue
        taken[name] += 1
        part = pixels[index * height * width : (index + 1) * height * width]
        image = Image.frombytes("L", (width, height), part)
        rows.append(
            {
                "image": {"bytes": encode_png(image), "path": f"t10k-{index:05}.png"},
                "caption": name,
                "label": name,
                "lang": "en",
                "license": LICENSE,
                "source": f"debian:{PACKAGE}={version}:t10k#{index}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "fashion")
    parser.add_argument("--cache", type=Path, default=Path(".package-cache"), help="where the package is kept")
    args = parser.parse_args()

    root, version = unpack_debian_package(PACKAGE, args.cache)
    rows = first_of_each_class(root / "usr/share/datasets/fashion-mnist", version)
    write_parquet(args.out / "test_small.parquet", rows, COLUMNS, row_group=1000)
    print(f"test_small.parquet: {len(rows)} images")
    source = {
        "name": "fashion",
        "file": "test_small.parquet",
        "images": len(rows),
        "license": LICENSE,
        "attribution": "Fashion-MNIST, Copyright (c) 2017 Zalando SE",
        "source": f"debian:{PACKAGE}={version}",
        "changes": "encoded as PNG, two classes renamed in plain words",
    }
    write_sources(args.out, [source])
    copyright_text = (root / "usr/share/doc" / PACKAGE / "copyright").read_text(encoding="utf-8")
    kept = [line for line in copyright_text.splitlines(keepends=True) if not line.startswith("Format:")]
    (args.out / "LICENSE.txt").write_text("".join(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
