"""`hf-clip classify`: what images show among labels, as a table, JSON lines or CSV, and as a contact sheet."""

import argparse
import glob
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import (
    Labels,
    add_model,
    add_templates,
    add_verb,
    amount,
    check_labels,
    check_model,
    check_templates,
    existing_file,
    fraction,
    load_options,
    positive,
)
from .outputs import Outputs
from .rows import WRITERS
from .usage import UsageError, one_line, printable, start_library

if TYPE_CHECKING:
    from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier

# More images would make a sheet that few programs open.
MAX_ON_SHEET = 400


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "classify",
        run,
        "name what images show, among labels of yours",
        "hf-clip classify photos/*.jpg --labels cat dog --model openai/clip-vit-base-patch32",
        usage="hf-clip classify IMAGE ... --labels NAME ... --model MODEL [options]",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs, before any flag")
    add_model(parser)
    parser.add_argument("--labels", action=Labels, metavar="NAME", help="class names, or @FILE with one a line")
    add_templates(parser)
    decisions = "labels and thresholds of eval zero-shot --save"
    parser.add_argument("--decisions", type=Path, metavar="FILE", help=decisions)
    parser.add_argument("--reject", metavar="LABEL", help="a label for what is none of the others")
    parser.add_argument("--multi-label", action="store_true", help="score each label by itself")
    parser.add_argument("--top-k", type=positive, default=3, metavar="N", help="labels for each image (default 3)")
    parser.add_argument(
        "--threshold", type=fraction, default=0.0, metavar="SCORE", help="least score of a label shown"
    )
    temperature = "above 1 makes scores less sure (eval finds one)"
    parser.add_argument("--temperature", type=amount, default=1.0, metavar="NUMBER", help=temperature)
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default 32)")
    formats = f"{', '.join(WRITERS)} (default: table)"
    parser.add_argument("--format", choices=tuple(WRITERS), default="table", metavar="NAME", help=formats)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the images with their labels to this PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --sheet of any kind")


def run(options: argparse.Namespace) -> int:
    check_model(options.model)
    check_templates(options.prompts, options.templates)
    if options.decisions is not None:
        _check_decisions(options)
    else:
        check_labels(options.labels, options.prompts)
    for item in options.images:
        check_image(item)
    start_library()
    from hf_clip.prompts import describe_templates

    from .models import open_model, usable_device

    if options.decisions is not None:
        return _decide(options)
    labels, templates = choose_words(options.labels, options.prompts, options.templates)
    images = find_images(options.images)
    if options.sheet is not None:
        _outputs(options, images).file("--sheet", options.sheet, "a sheet in PNG")
    rejection = _rejection(labels, options.reject, options.multi_label)
    model, processor = open_model(options.model, usable_device(options.device), load_options(options))
    classifier = make_classifier(
        model, processor, labels, templates, rejection=rejection, temperature=options.temperature
    )
    # Scores depend on them.
    print(f"hf-clip: {printable(describe_templates(classifier.templates))}", file=sys.stderr)
    # A sheet is drawn for those who read no rows as well.
    sys.stdout.stops = options.sheet is None  # pyright: ignore[reportAttributeAccessIssue]
    unreadable = classify_images(
        classifier,
        images,
        top_k=options.top_k,
        style=options.format,
        threshold=options.threshold,
        multi_label=options.multi_label,
        batch_size=options.batch_size,
        sheet=options.sheet,
    )
    return told(unreadable, len(images))


def told(unreadable: int, images: int) -> int:
    """The exit code, behind a line that counts the images which could not be read."""
    if unreadable:
        print(f"hf-clip: {unreadable} of {images} images could not be read.", file=sys.stderr)
    return 1 if unreadable else 0


def _check_decisions(options: argparse.Namespace) -> None:
    existing_file("--decisions", options.decisions)
    parser = options.parser
    for name in ("labels", "prompts", "templates", "reject", "multi_label", "top_k", "threshold", "temperature"):
        if getattr(options, name) != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"--decisions has labels, templates and thresholds of its own: drop {flag}.")
    if options.sheet is not None:
        raise UsageError("--decisions draws no sheet: drop --sheet.")


def _decide(options: argparse.Namespace) -> int:
    """Prints what the decisions of a file say of each image that can be read."""
    from hf_clip.model.decisions_hf_clip import Decisions
    from hf_clip.model.image_decoding_hf_clip import ImageDecodeError

    from .models import open_model, usable_device
    from .rows import DECISION_WRITERS

    images = find_images(options.images)
    model, processor = open_model(options.model, usable_device(options.device), load_options(options))
    decisions = Decisions.load(options.decisions, model, processor)
    write = DECISION_WRITERS[options.format](decisions.classifier.labels, images)
    sys.stdout.stops = True  # pyright: ignore[reportAttributeAccessIssue]
    unreadable = 0
    found: Any = decisions.stream(images, options.batch_size, return_errors=True, show_progress=False)
    for image, answers in zip(images, found, strict=True):
        if isinstance(answers, ImageDecodeError):
            unreadable += 1
            print(f"hf-clip: {printable(f'{image}: {answers}')}", file=sys.stderr)
        else:
            write(image, answers)
    return told(unreadable, len(images))


def check_image(item: str) -> None:
    """Raises UsageError for an image that is not there, before anything heavy is imported."""
    if not item:
        raise UsageError("'' names no image: a folder is '.', and a variable of the shell may be empty.")
    if not Path(item).exists() and not glob.glob(item, recursive=True):
        raise UsageError(f"{item}: there is no such image.")


def _outputs(options: argparse.Namespace, images: Sequence[str]) -> Outputs:
    outputs = Outputs(options.overwrite)
    outputs.reads("IMAGE", images)
    outputs.reads("--model", [options.model], is_data=False)
    outputs.reads("--labels", getattr(options, "list_files", []))
    outputs.reads("--prompts", [options.prompts])
    return outputs


def choose_words(
    labels: list[str] | None, prompts: str | None, templates: Sequence[str] | None
) -> tuple[list[str | Sequence[str]], Sequence[str] | None]:
    """Classes and templates; None for the templates of the model.

    Args:
        labels: class names, of which each counts once.
        prompts: a data set of `list_prompts` or a file of prompts: its templates, and its classes without `labels`.
        templates: instead of those of `prompts`.

    Raises:
        UsageError: if there are no labels, or the prompts cannot be read.
    """
    from hf_clip.prompts import load_prompts

    try:
        found = None if prompts is None else load_prompts(prompts)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {prompts}: {one_line(error)}") from error
    if labels is None and (found is None or not found.classes):
        raise UsageError("there are no labels: give some with --labels, or --prompts of a data set with classes.")
    classes: list[str | Sequence[str]] = list(dict.fromkeys(labels or ())) or list(found.classes if found else ())
    return classes, found.templates if found else templates


def find_images(given: Sequence[str]) -> list[str]:
    """The images that files, folders and patterns name. Raises UsageError for one without any."""
    from hf_clip import sources

    try:
        return sources.find_images(given)
    except sources.SourceError as error:
        raise UsageError(str(error)) from None


def _rejection(labels: Sequence, given: str | None, multi_label: bool) -> str | None:
    rejection = "something else" if multi_label and given is None else given
    check_rejection(labels, rejection)
    return rejection


def check_rejection(labels: Sequence, rejection: str | None) -> None:
    """Raises UsageError for a rejection class that is one of the labels."""
    if any(rejection in ([names] if isinstance(names, str) else names) for names in labels):
        raise UsageError(f"--reject {rejection!r} is one of the labels: name it otherwise.")


def make_classifier(
    model,
    processor,
    classes: Sequence,
    templates: Sequence[str] | None,
    *,
    rejection: str | None,
    temperature: float = 1.0,
) -> "ZeroShotClassifier":
    """The classifier; its warnings are lines on standard error."""
    from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier

    with _warnings_as_lines():
        return ZeroShotClassifier(
            model, processor, classes, templates, rejection=rejection, temperature=temperature, dtype=None
        )


@contextmanager
def _warnings_as_lines():
    from hf_clip.messages import in_callers_words

    flags = {"labels": "--labels", "templates": "--templates", "rejection": "--reject"}

    def show(message, *_, **__) -> None:
        print(f"hf-clip: {in_callers_words(str(message), flags)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def classify_images(
    classifier: "ZeroShotClassifier",
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
        style: one of WRITERS. CSV has columns image, label_1, score_1, ...; empty ones where `threshold` skipped
            labels.
        sheet: PNG of the first MAX_ON_SHEET images with their best labels.

    Returns:
        The number of images that could not be read.
    """
    from hf_clip.model.image_decoding_hf_clip import ImageDecodeError

    top_k = min(top_k, len(classifier.labels) + (classifier.rejection is not None and not multi_label))
    write = WRITERS[style](classifier.labels, images, top_k)
    # A bar among the rows of a terminal would garble both.
    show_progress = sys.stderr.isatty() and not sys.stdout.isatty()
    guesses: Any = classifier.stream(
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
    if shown and sheet is not None:
        from .sheet import write_sheet

        write_sheet(shown, sheet)
        skipped = len(images) - unreadable - len(shown)
        if skipped:
            print(f"hf-clip: {sheet} shows the first {len(shown)}, without {skipped} more.", file=sys.stderr)
    return unreadable
