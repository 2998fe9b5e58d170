"""Rows of what images show, for a terminal or for programs: a table, JSON lines, CSV."""

import csv
import json
import sys
from collections.abc import Callable, Sequence

from .usage import printable

Guess = list[dict]
Write = Callable[[str, Guess], None]


def _write_table(labels: Sequence[str], images: Sequence[str], top_k: int) -> Write:
    width = min(max(len("image"), *(len(printable(image)) for image in images)), 48)
    label_width = max(2, min(max(len(printable(label)) for label in labels), 40))
    header = "  ".join(f"label {rank:<{label_width}}" for rank in range(1, top_k + 1))
    print(f"{'image':{width}}  {header}".rstrip())

    def write(image: str, guess: Guess) -> None:
        cells = [f"{one['score']:.3f} {printable(one['label'])[:label_width]:{label_width}}" for one in guess]
        print(f"{printable(image)[-width:]:{width}}  {'  '.join(cells) or '-'}".rstrip())

    return write


def _write_jsonl(labels: Sequence[str], images: Sequence[str], top_k: int) -> Write:
    def write(image: str, guess: Guess) -> None:
        print(json.dumps({"image": image, "labels": guess}, ensure_ascii=False, allow_nan=False))

    return write


def _write_csv(labels: Sequence[str], images: Sequence[str], top_k: int) -> Write:
    table, ranks = csv.writer(sys.stdout, lineterminator="\n"), range(1, top_k + 1)
    table.writerow(["image", *(f"{what}_{rank}" for rank in ranks for what in ("label", "score"))])

    def write(image: str, guess: Guess) -> None:
        cells = [cell for one in guess for cell in (one["label"], f"{one['score']:.6f}")]
        table.writerow([image, *cells, *[""] * (2 * top_k - len(cells))])

    return write


# Each prints its header, if it has one, for the labels and images given, and returns what prints a row.
WRITERS: dict[str, Callable[[Sequence[str], Sequence[str], int], Write]] = {
    "table": _write_table,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}


def _decision_table(labels: Sequence[str], images: Sequence[str]) -> Write:
    width = min(max(len("image"), *(len(printable(image)) for image in images)), 48)
    print(f"{'image':{width}}  answers")

    def write(image: str, answers: Guess) -> None:
        # A "no" is what is not said.
        said = [f"{one['answer']}: {printable(one['label'])}" for one in answers if one["answer"] != "no"]
        print(f"{printable(image)[-width:]:{width}}  {'; '.join(said) or 'no: all'}")

    return write


def _decision_jsonl(labels: Sequence[str], images: Sequence[str]) -> Write:
    def write(image: str, answers: Guess) -> None:
        print(json.dumps({"image": image, "decisions": answers}, ensure_ascii=False, allow_nan=False))

    return write


def _decision_csv(labels: Sequence[str], images: Sequence[str]) -> Write:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["image", "label", "answer", "score"])

    def write(image: str, answers: Guess) -> None:
        table.writerows([image, one["label"], one["answer"], f"{one['score']:.6f}"] for one in answers)

    return write


# As WRITERS, of answers by thresholds.
DECISION_WRITERS: dict[str, Callable[[Sequence[str], Sequence[str]], Write]] = {
    "table": _decision_table,
    "jsonl": _decision_jsonl,
    "csv": _decision_csv,
}
