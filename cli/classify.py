"""The work of `hf-clip classify`: what images show as a table, JSON lines or CSV, and as a contact sheet."""

import csv
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hf_clip import sources
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.prompts import load_prompts

from .usage import UsageError, printable

# Of a contact sheet, in pixels; more images would make one that few programs open.
THUMBNAIL, MARGIN, LINE, LINES = 160, 8, 14, 2
MAX_ON_SHEET = 400

Guess = list[dict]
Write = Callable[[str, Guess], None]


def choose_words(
    labels: str | None, prompts: str | None, templates: Sequence[str] | None
) -> tuple[list[str | Sequence[str]], Sequence[str]]:
    """Classes and templates from what the command was given.

    Args:
        labels: with commas between, or @FILE with one a line.
        prompts: a data set of `list_prompts` or a file of prompts: its templates, and its classes without `labels`.
        templates: instead of those of `prompts`.

    Raises:
        UsageError: if there are no labels, two kinds of templates, or a file that cannot be read.
    """
    if prompts is not None and templates:
        raise UsageError("--prompts and --template both give templates: leave one out.")
    try:
        found = None if prompts is None else load_prompts(prompts)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {prompts}: {error}") from error
    if labels is not None:
        classes = _read_labels(labels)
    elif found is not None and found.classes:
        classes = list(found.classes)
    else:
        raise UsageError("there are no labels: give some with --labels, or --prompts of a data set with classes.")
    return classes, found.templates if found else templates or ["{}"]


def _read_labels(labels: str) -> list[str]:
    if labels.startswith("@"):
        file = Path(labels[1:])
        try:
            # With or without the byte order mark that Windows' editors write.
            names = file.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise UsageError(f"--labels {labels}: there is no file {file}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--labels {labels}: {file} is no text in UTF-8 that can be read ({error}).") from None
    else:
        names = labels.split(",")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise UsageError(f"--labels {labels!r} names no label: give some with commas between.")
    return names


def find_images(given: Sequence[str]) -> list[str]:
    """The images that files, folders and patterns name. Raises UsageError for one without any."""
    try:
        return sources.find_images(given)
    except sources.SourceError as error:
        raise UsageError(str(error)) from None


def make_classifier(
    model,
    processor,
    classes: Sequence,
    templates: Sequence[str],
    *,
    rejection: str | None,
    multi_label: bool,
    temperature: float = 1.0,
) -> ZeroShotClassifier:
    """The classifier; its warnings are lines on standard error. Unfit templates and rejections are wrong usage."""
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"--template {template!r} has no '{{}}': put '{{}}' where the label belongs.")
    if multi_label and rejection is None:
        rejection = "something else"
    if any(rejection in ([names] if isinstance(names, str) else names) for names in classes):
        raise UsageError(f"--reject {rejection!r} is one of the labels: name it otherwise.")
    with _warnings_as_lines():
        return ZeroShotClassifier(model, processor, classes, templates, rejection=rejection, temperature=temperature)


@contextmanager
def _warnings_as_lines():
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"hf-clip: {message}", file=sys.stderr)
        yield


def classify_images(
    classifier: ZeroShotClassifier,
    images: Sequence[str],
    *,
    top_k: int,
    style: str = "table",
    threshold: float = 0.0,
    multi_label: bool = False,
    batch_size: int = 32,
    sheet: Path | None = None,
) -> int:
    """Prints a row for each image that can be read, and a line on standard error for each that cannot.

    Args:
        style: one of WRITERS. CSV has columns image, label_1, score_1, ...; empty ones where `threshold` left out
            labels.
        sheet: PNG of the first MAX_ON_SHEET images with their best labels.

    Returns:
        The number of images that could not be read.
    """
    top_k = min(top_k, len(classifier.labels) + (classifier.rejection is not None and not multi_label))
    write = WRITERS[style](classifier, images, top_k)
    # A bar among the rows of a terminal would garble both.
    show_progress = sys.stderr.isatty() and not sys.stdout.isatty()
    guesses = classifier.stream(
        images,
        batch_size,
        top_k,
        multi_label=multi_label,
        threshold=threshold,
        return_errors=True,
        show_progress=show_progress,
    )
    unreadable, shown = 0, []
    for image, guess in zip(images, guesses, strict=True):
        if isinstance(guess, ImageDecodeError):
            unreadable += 1
            print(f"hf-clip: {printable(f'{image}: {guess}')}", file=sys.stderr)
            continue
        write(image, guess)
        if sheet is not None and len(shown) < MAX_ON_SHEET:
            shown.append((image, guess))
    if shown:
        draw_sheet(shown).save(sheet, "PNG")
        left_out = len(images) - unreadable - len(shown)
        if left_out:
            print(f"hf-clip: {sheet} shows the first {len(shown)}, without {left_out} more.", file=sys.stderr)
    return unreadable


def _write_table(classifier: ZeroShotClassifier, images: Sequence[str], top_k: int) -> Write:
    width = min(max(len("image"), *(len(printable(image)) for image in images)), 48)
    label_width = max(2, min(max(len(printable(label)) for label in classifier.labels), 40))
    header = "  ".join(f"label {place:<{label_width}}" for place in range(1, top_k + 1))
    print(f"{'image':{width}}  {header}".rstrip())

    def write(image: str, guess: Guess) -> None:
        cells = [f"{one['score']:.3f} {printable(one['label'])[:label_width]:{label_width}}" for one in guess]
        print(f"{printable(image)[-width:]:{width}}  {'  '.join(cells) or '-'}".rstrip())

    return write


def _write_jsonl(classifier: ZeroShotClassifier, images: Sequence[str], top_k: int) -> Write:
    def write(image: str, guess: Guess) -> None:
        print(json.dumps({"image": image, "labels": guess}, ensure_ascii=False, allow_nan=False))

    return write


def _write_csv(classifier: ZeroShotClassifier, images: Sequence[str], top_k: int) -> Write:
    table, places = csv.writer(sys.stdout, lineterminator="\n"), range(1, top_k + 1)
    table.writerow(["image", *(f"{what}_{place}" for place in places for what in ("label", "score"))])

    def write(image: str, guess: Guess) -> None:
        cells = [cell for one in guess for cell in (one["label"], f"{one['score']:.6f}")]
        table.writerow([image, *cells, *[""] * (2 * top_k - len(cells))])

    return write


WRITERS = {"table": _write_table, "jsonl": _write_jsonl, "csv": _write_csv}


def draw_sheet(shown: Iterable[tuple[str, Guess]]) -> Image.Image:
    """A contact sheet: thumbnails in rows, with the best labels and their scores below each."""
    shown = list(shown)
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown)))))
    width, height = THUMBNAIL + MARGIN, THUMBNAIL + MARGIN + LINE * LINES
    sheet = Image.new("RGB", (columns * width + MARGIN, math.ceil(len(shown) / columns) * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, guess) in enumerate(shown):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        small = decode_image(image).copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        sheet.paste(small, (left + (THUMBNAIL - small.width) // 2, top + (THUMBNAIL - small.height) // 2))
        texts = [f"{one['score']:.2f} {one['label']}" for one in guess[:LINES]] or ["-"]
        for line, text in enumerate(texts):
            at = (left, top + THUMBNAIL + line * LINE)
            draw.text(at, _shortened(text, font), "black" if line == 0 else "gray", font)
    return sheet


def _shortened(text: str, font) -> str:
    # What has no place on one line of a sheet, such as a line break, is a space.
    text = " ".join(text.split())
    while font.getlength(text) > THUMBNAIL:
        text = text.removesuffix("...")[:-1] + "..."
    return text
