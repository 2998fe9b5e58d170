"""`hf-clip locate`: where in images labels are, as boxes, and as a sheet of heat maps."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .arguments import (
    Labels,
    add_looks,
    add_model,
    add_templates,
    add_verb,
    check_labels,
    check_model,
    check_templates,
    fraction,
    load_options,
    positive,
)
from .classify import check_image, check_rejection, choose_words, find_images, make_classifier, told
from .outputs import Outputs
from .usage import printable, start_library

FORMATS = ("table", "jsonl")
# More images would make a sheet that few programs open.
MAX_ON_SHEET = 100


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "locate",
        run,
        "find where in images labels are: boxes and heat maps",
        "hf-clip locate photos/*.jpg --labels dog ball --model openai/clip-vit-base-patch32 --sheet found.png",
        usage="hf-clip locate IMAGE ... --labels NAME ... --model MODEL [options]",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs, before any flag")
    add_model(parser)
    parser.add_argument("--labels", action=Labels, metavar="NAME", help="class names, or @FILE with one a line")
    add_templates(parser)
    parser.add_argument("--reject", metavar="LABEL", help="a label for what is none of the others")
    threshold = "least score of a box's places (default 0.5)"
    parser.add_argument("--threshold", type=fraction, default=0.5, metavar="SCORE", help=threshold)
    add_looks(parser)
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="windows at once (default 32)")
    formats = f"{', '.join(FORMATS)} (default: table)"
    parser.add_argument("--format", choices=FORMATS, default="table", metavar="NAME", help=formats)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw heat maps and boxes to this PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --sheet of any kind")


def run(options: argparse.Namespace) -> int:
    check_model(options.model)
    check_templates(options.prompts, options.templates)
    check_labels(options.labels, options.prompts)
    for item in options.images:
        check_image(item)
    start_library()
    from hf_clip.prompts import describe_templates

    from .models import open_model, usable_device

    labels, templates = choose_words(options.labels, options.prompts, options.templates)
    images = find_images(options.images)
    if options.sheet is not None:
        outputs = Outputs(options.overwrite)
        outputs.reads("IMAGE", images)
        outputs.reads("--model", [options.model], is_data=False)
        outputs.reads("--labels", getattr(options, "list_files", []))
        outputs.reads("--prompts", [options.prompts])
        outputs.file("--sheet", options.sheet, "a sheet in PNG")
    check_rejection(labels, options.reject)
    model, processor = open_model(options.model, usable_device(options.device), load_options(options))
    classifier = make_classifier(model, processor, labels, templates, rejection=options.reject)
    # Scores depend on them.
    print(f"hf-clip: {printable(describe_templates(classifier.templates))}", file=sys.stderr)
    return told(_locate(classifier, images, options), len(images))


def _locate(classifier: Any, images: list[str], options: argparse.Namespace) -> int:
    """Prints the boxes of each image that can be read, and draws the sheet; gives the number of the others."""
    from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
    from hf_clip.model.localization_hf_clip import Looks, boxes_of, score_maps

    from .overlay import draw_located, write_located

    # A sheet is drawn for those who read no rows as well.
    sys.stdout.stops = options.sheet is None  # pyright: ignore[reportAttributeAccessIssue]
    looks = Looks(options.attention, options.scales, options.resolution, options.batch_size)
    width = max(len("image"), *(len(printable(image)) for image in images))
    if options.format == "table":
        print(f"{'image':<{width}}   xmin  ymin  xmax  ymax  score  label")
    write = partial(_write_table, width) if options.format == "table" else _write_jsonl
    unreadable, drawn, shown = 0, [], set()
    found = score_maps(classifier, images, looks, return_errors=True, show_progress=False)
    for image, answer in zip(images, found, strict=True):
        if isinstance(answer, ImageDecodeError):
            unreadable += 1
            print(f"hf-clip: {printable(f'{image}: {answer}')}", file=sys.stderr)
            continue
        boxes = boxes_of(*answer, classifier.labels, options.threshold)
        write(image, boxes)
        if options.sheet is not None and len(drawn) < MAX_ON_SHEET:
            # Drawn at once: heat maps of many labels are large.
            drawn.append(draw_located(*answer, boxes, classifier.labels, options.threshold))
            shown |= {one["label"] for one in boxes}
    if drawn and options.sheet is not None:
        write_located(
            drawn, [label for label in classifier.labels if label in shown], classifier.labels, options.sheet
        )
        skipped = len(images) - unreadable - len(drawn)
        if skipped:
            print(f"hf-clip: {options.sheet} shows the first {len(drawn)}, without {skipped} more.", file=sys.stderr)
    return unreadable


def _write_table(width: int, image: str, boxes: list[dict]) -> None:
    if not boxes:
        print(f"{printable(image):<{width}}  -")
    for one in boxes:
        corners = " ".join(f"{one['box'][name]:>5}" for name in ("xmin", "ymin", "xmax", "ymax"))
        print(f"{printable(image):<{width}}  {corners}  {one['score']:.3f}  {printable(one['label'])}")


def _write_jsonl(image: str, boxes: list[dict]) -> None:
    print(json.dumps({"image": image, "boxes": boxes}, ensure_ascii=False, allow_nan=False))
