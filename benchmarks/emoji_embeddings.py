"""Embeddings of augmented emoji by the demo's model, kept in files for benchmarks of search.

    python benchmarks/emoji_embeddings.py --model runs/emoji --kept runs/emoji-embeddings --rows 1000000

Row r is image r % 6,616 of the bundled styles, augmented as the recipe does by the numbers of (epoch, image). A run
that was stopped goes on; `--seconds` ends one at the next part. The model may be an exported one, which is twice as
fast: `hf-clip export runs/emoji --to openvino --output-dir runs/emoji-openvino`.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

STYLES = ("noto", "noto_v1", "emojitwo", "fxemoji", "twemoji")
EMOJI = Path(__file__).parent.parent / "examples/emoji"
PART = 8192
BATCH = 256


def read_style(style: str) -> list[dict]:
    import pyarrow.parquet as pq

    columns = ["image", "caption", "concept", "split"]
    return pq.read_table(EMOJI / f"{style}.parquet", columns=columns).to_pylist()


def decoded(row: dict) -> np.ndarray:
    from hf_clip.model.image_decoding_hf_clip import decode_image

    return np.asarray(decode_image(row["image"]["bytes"]).convert("RGB"))


def encode(model_path: Path, kept: Path, rows: int, seconds: float) -> None:
    """Writes part-*.npy, (PART, D) float16, until there are `rows` rows or the time is over."""
    import torch

    from hf_clip import load
    from hf_clip.export import load_exported
    from hf_clip.export.runtime import is_exported
    from hf_clip.training.augmentation import DRAWS_PER_IMAGE, augment, uniforms
    from hf_clip.training.recipe import load_recipe

    config = replace(load_recipe("emoji").augmentation, mixup=0.0)
    model, processor = (load_exported if is_exported(model_path) else load)(str(model_path))
    model.eval()
    images = torch.from_numpy(np.stack([decoded(row) for style in STYLES for row in read_style(style)]))
    mean, deviation = (torch.tensor(processor.image_processor.to_dict()[name]) for name in ("image_mean", "image_std"))
    kept.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for part in range(-(-rows // PART)):
        file = kept / f"part-{part:05d}.npy"
        if file.exists():
            continue
        if time.monotonic() - begun > seconds:
            break
        found = []
        for first in range(part * PART, (part + 1) * PART, BATCH):
            row = np.arange(first, first + BATCH)
            chosen = row % len(images)
            draws = torch.from_numpy(uniforms(0, row // len(images), chosen, DRAWS_PER_IMAGE))
            nothing = torch.zeros(BATCH, dtype=torch.bool)
            with torch.inference_mode():
                pixels = augment(images[chosen], draws, nothing, nothing, config)
                embeds = model.encode_image((pixels - mean[:, None, None]) / deviation[:, None, None])
                found.append(torch.nn.functional.normalize(embeds.float(), dim=-1).half().numpy())
        aside = file.with_suffix(".tmp.npy")
        np.save(aside, np.concatenate(found))
        aside.rename(file)
        print(f"{(part + 1) * PART:>9,} rows, {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--kept", type=Path, default=Path("runs/emoji-embeddings"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    encode(options.model, options.kept, options.rows, options.seconds)


if __name__ == "__main__":
    main()
