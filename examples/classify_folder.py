"""Zero-shot classification of a folder of images: a CSV of each image's best label.

python examples/classify_folder.py photos/ --labels "a dog" "a cat" --model openai/clip-vit-base-patch32 > labels.csv
"""

import argparse
import csv
import sys
from pathlib import Path

from hf_clip import ImageDecodeError, ZeroShotClassifier


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print a CSV of each image's best label.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--model", default="openai/clip-vit-base-patch32", help="a Hub id, a folder or a file")
    options = parser.parse_args(arguments)

    classifier = ZeroShotClassifier.from_pretrained(options.model, labels=options.labels)
    files = sorted(
        file for file in options.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["image", "label", "score"])
    # Answers come as images are encoded, and an image that cannot be decoded is an answer too.
    for file, answer in zip(files, classifier.stream(files, top_k=1, return_errors=True), strict=True):
        if isinstance(answer, ImageDecodeError):
            print(f"{file}: {answer}", file=sys.stderr)
        else:
            table.writerow([file, answer[0]["label"], f"{answer[0]['score']:.4f}"])


if __name__ == "__main__":
    main()
