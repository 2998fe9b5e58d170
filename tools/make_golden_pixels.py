"""Writes tests/golden/pixels.npz: what the peers' transforms make of small images, by torchvision's own code.

python tools/make_golden_pixels.py SCRATCH_FOLDER

Fetches a wheel of torchvision into the folder and unpacks it there; nothing is installed. Of its compiled operators
only the names are defined, as its transforms of PIL images call none of them. The transforms come from the peers of
requirements-peers.txt: OpenAI's `clip.clip._transform` and OpenCLIP's `open_clip.transform.image_transform`.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

TORCHVISION = "0.28.0"
GOLDEN = Path(__file__).parents[1] / "tests/golden/pixels.npz"
SIZE = 21

# Width, height and mode: the target's own size, odd remainders of the crop, enlarging, one pixel, long and thin.
IMAGES = [
    (21, 21, "RGB"),
    (22, 21, "RGB"),
    (21, 24, "RGB"),
    (40, 31, "RGB"),
    (53, 97, "RGB"),
    (9, 5, "RGB"),
    (1, 4, "RGB"),
    (200, 18, "RGB"),
    (97, 53, "L"),
    (53, 40, "L"),
]

_HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
# Name of the transform, and OpenCLIP's `preprocess_cfg` for it; None is OpenAI's own.
TRANSFORMS = {
    "openai": None,
    "shortest bicubic": {"resize_mode": "shortest", "interpolation": "bicubic"},
    "shortest bilinear": {"resize_mode": "shortest", "interpolation": "bilinear"},
    "squash bicubic": {"resize_mode": "squash", "interpolation": "bicubic", **_HALF},
    "squash bilinear": {"resize_mode": "squash", "interpolation": "bilinear"},
    "longest bicubic": {"resize_mode": "longest", "interpolation": "bicubic"},
    "longest bilinear on gray": {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 114, **_HALF},
}


def image_of(width: int, height: int, mode: str) -> Image.Image:
    """An image with slopes and hard edges in every band, the same everywhere and for ever."""
    rows, columns = np.mgrid[:height, :width]
    bands = [
        (rows * (3 + 2 * band) + columns * (7 - band) + 97 * ((rows // 3 + columns // (2 + band)) % 2)) % 256
        for band in range(len(Image.new(mode, (1, 1)).getbands()))
    ]
    return Image.merge(mode, [Image.fromarray(band.astype(np.uint8)) for band in bands])


def import_torchvision(scratch: Path) -> None:
    """Makes `import torchvision` find the wheel's Python code."""
    import torch

    unpacked = scratch / f"torchvision-{TORCHVISION}"
    if not unpacked.exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
        subprocess.run([*pip, f"torchvision=={TORCHVISION}"], check=True)
        with zipfile.ZipFile(next(scratch.glob(f"torchvision-{TORCHVISION}-*.whl"))) as wheel:
            wheel.extractall(unpacked)
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.insert(0, str(unpacked))
    import torchvision

    assert torchvision.__file__.startswith(str(unpacked)) and not torchvision.extension._has_ops()


def peers_transform(settings: dict | None):
    """The transform of a PIL image to a float32 tensor (3, SIZE, SIZE), as a peer composes it."""
    if settings is None:
        import packaging.version

        # setuptools dropped the module by which `clip.clip` imports packaging.
        sys.modules["pkg_resources"] = SimpleNamespace(packaging=packaging)
        from clip.clip import _transform

        return _transform(SIZE)
    from open_clip.transform import image_transform

    return image_transform(SIZE, is_train=False, **settings)


def main(scratch: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    import_torchvision(scratch.resolve())
    golden = {}
    for name, settings in TRANSFORMS.items():
        transform = peers_transform(settings)
        for image in IMAGES:
            golden[f"{name}/{'x'.join(map(str, image))}"] = transform(image_of(*image)).numpy()
    np.savez_compressed(GOLDEN, **golden)
    print(f"{GOLDEN}: {len(golden)} images, {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
