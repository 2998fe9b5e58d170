"""Shows what a model trained on the emoji can do with a drawing style that it never saw.

    python examples/emoji/show.py runs/emoji

A few of Twemoji's images go through transformers' stock zero-shot pipeline. Nothing is picked by hand:
names and images are spaced evenly over the file, half of them of concepts known from other drawings.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import transformers
from PIL import Image

import hf_clip  # noqa: F401  (registers the models with transformers)

TWEMOJI = Path(__file__).with_name("twemoji.parquet")


def evenly_spaced(rows: list[dict], count: int) -> list[dict]:
    return [rows[index * len(rows) // count] for index in range(count)]


def choose(name_count: int, image_count: int) -> tuple[list[str], list[dict]]:
    """Names to choose among and rows to classify; half of each from training's concepts, half new."""
    rows = pq.read_table(TWEMOJI, columns=["image", "caption", "concept", "split"]).to_pylist()
    names, shown = [], []
    for split in ("train", "test"):
        chosen = evenly_spaced([row for row in rows if row["split"] == split], name_count // 2)
        names += [row["caption"] for row in chosen]
        shown += evenly_spaced(chosen, image_count // 2)
    return list(dict.fromkeys(names)), shown


def write_images(rows: list[dict], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{row['concept']}.png" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(path)
    return paths


def cell(text: str, width: int) -> str:
    return (text if len(text) <= width else text[: width - 1] + "…").ljust(width)


def table(rows: list[dict], guesses: list[list[dict]]) -> str:
    """One line an image: its name, whether training had its concept, the best three names and scores."""
    head = [cell("image", 24), "concept ", *(cell(f"     {place}", 24) for place in ("1st", "2nd", "3rd"))]
    lines = ["  " + " ".join(head).rstrip()]
    for row, guess in zip(rows, guesses, strict=True):
        mark = "*" if guess[0]["label"] == row["caption"] else " "
        concept = {"train": "trained ", "test": "new     "}[row["split"]]
        best = [cell(f"{one['score']:.2f} {one['label']}", 24) for one in guess[:3]]
        lines.append(" ".join([mark, cell(row["caption"], 24), concept, *best]).rstrip())
    return "\n".join([*lines, "* the first name is right"])


def measured(node: object, name: str = "") -> Iterator[tuple[str, dict]]:
    """Every evaluation of a results file with its name, however deep it stands."""
    if isinstance(node, dict) and "task" in node:
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from measured(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from measured(value, name)


def summary(name: str, result: dict) -> str:
    if result["task"] == "retrieval":
        found = result["image_to_text"]
        return (
            f"{name}: image to text R@1 {found['recall_at_1']:.3f}, R@5 {found['recall_at_5']:.3f} "
            f"({found['queries']:,} images among {found['candidates']:,} names)"
        )
    return (
        f"{name}: top-1 {result['top_1']:.3f} ({result['images']:,} images among {result['classes']} "
        f"classes, chance {result['chance']:.3f})"
    )


def next_commands(folder: Path, image: Path, name: str) -> list[str]:
    command = ".venv/bin/hf-clip"
    return [
        f'{command} classify {image} --labels "{name},a cat,a flag" --model {folder}',
        f"{command} eval zero-shot --model {folder} --data examples/fashion/test_small.parquet --templates '{{}}'",
        f"{command} train --recipe emoji --output-dir {folder}-other --set seed=1",
    ]


def model_folder(description: str) -> Path | None:
    """The folder that the command line names; None, which is said, where it holds no model."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a trained model, such as runs/emoji")
    folder = parser.parse_args().folder
    if (folder / "config.json").is_file():
        return folder
    print(f"{folder} holds no model (it has no config.json): `make demo` trains one.", file=sys.stderr)
    return None


def main() -> int:
    folder = model_folder(__doc__)
    if folder is None:
        return 1

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names, rows = choose(name_count=100, image_count=8)
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    paths = write_images(rows, folder.parent / "images")
    guesses = classify([str(path) for path in paths], candidate_labels=names, hypothesis_template="{}")

    print(f"\n{len(rows)} images in a style that the model never saw, each among {len(names)} names:\n")
    print(table(rows, guesses))
    results = folder / "results.json"
    if results.is_file():
        print("\nMeasured over the whole style, and on other data:")
        for name, result in measured(json.loads(results.read_text(encoding="utf-8"))):
            print(f"  {summary(name, result)}")
    print(f"\nThe model and its card are in {folder}, the images above in {paths[0].parent}. Try next:")
    for command in next_commands(folder, paths[0], rows[0]["caption"]):
        print(f"  {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
