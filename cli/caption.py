"""`hf-clip caption`: images in words that a model writes: a table, JSON lines, or a new column of a data set."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arguments import add_model, add_verb, amount, check_data, check_model, load_options, positive
from .usage import UsageError, printable, start_library

FORMATS = ("table", "jsonl")


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "caption",
        run,
        "describe images in words, by a CoCa",
        "hf-clip caption photos/*.jpg --model laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
        usage="hf-clip caption IMAGE ... --model MODEL [options]",
    )
    images = "files, folders or globs, before any flag; for a new column *.parquet"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=images)
    add_model(parser)
    parser.add_argument("--begins-with", default="", metavar="TEXT", help="how every caption begins")
    parser.add_argument(
        "--beams", type=positive, default=1, metavar="N", help="beams of the search (default 1, greedy)"
    )
    parser.add_argument("--temperature", type=amount, metavar="NUMBER", help="draw the words at this temperature")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default 0)")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="tokens of a caption (default: all it has)")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="images at once (default 16)")
    formats = f"{', '.join(FORMATS)} (default: table)"
    parser.add_argument("--format", choices=FORMATS, default="table", metavar="NAME", help=formats)
    output = "*.jsonl, or *.parquet with the rows of IMAGE and a new column; a run that was stopped goes on"
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    column = "name of the new column (default generated_caption)"
    parser.add_argument("--column", default="generated_caption", metavar="NAME", help=column)
    parser.add_argument("--image-column", metavar="NAME", help="column of images (default: found by name)")


def run(options: argparse.Namespace) -> int:
    check_model(options.model)
    output: Path | None = options.output
    kind = None if output is None else output.suffix
    if kind not in (None, ".jsonl", ".parquet"):
        raise UsageError(f"--output {output} is neither *.jsonl nor *.parquet: name one of these.")
    if kind == ".parquet":
        check_data(options.images, "IMAGE")
        if output is not None and output.exists():
            raise UsageError(f"--output {output} exists: name another file, or remove it.")
    start_library()
    import torch

    from .models import open_model, usable_device

    images = [] if kind == ".parquet" else _find(options.images)
    model, processor = open_model(options.model, usable_device(options.device), load_options(options))
    torch.manual_seed(options.seed)
    generate = _generate(options)
    if kind == ".parquet":
        return _new_column(model, processor, options, generate)
    if output is None:
        # A bar among the rows of a terminal would garble both.
        shows = sys.stderr.isatty() and not sys.stdout.isatty()
        write = _table(images) if options.format == "table" else _json_lines(sys.stdout)
        return _report(_write_all(model, processor, images, write, generate | {"show_progress": shows}), len(images))
    done = _done(output)
    images = [image for image in images if image not in done]
    if done:
        print(f"hf-clip: {output} has {len(done)} already, {len(images)} are left.", file=sys.stderr)
    with output.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        unreadable = _write_all(model, processor, images, _json_lines(stream), generate)
    return _report(unreadable, len(images))


def _find(given: list[str]) -> list[str]:
    from .classify import find_images

    return find_images(given)


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    """What `stream_captions` is told."""
    told = {"batch_size": options.batch_size, "begins_with": options.begins_with, "num_beams": options.beams}
    if options.max_tokens is not None:
        told["max_new_tokens"] = options.max_tokens
    if options.temperature is not None:
        told |= {"do_sample": True, "temperature": options.temperature, "top_k": 0}
    return told


def _new_column(model: Any, processor: Any, options: argparse.Namespace, generate: dict[str, Any]) -> int:
    from hf_clip.captions.column import caption_to_file

    names = {"column": options.column, "image_column": options.image_column}
    output, unreadable = caption_to_file(model, processor, options.images, options.output, **names, **generate)
    print(output)
    if unreadable:
        print(f"hf-clip: {unreadable} images could not be read, and have no caption.", file=sys.stderr)
    return 1 if unreadable else 0


def _write_all(model: Any, processor: Any, images: list[str], write: Any, generate: dict[str, Any]) -> int:
    """Writes a row for each image that can be read; returns how many cannot."""
    from hf_clip.model.captioning_hf_clip import stream_captions
    from hf_clip.model.image_decoding_hf_clip import ImageDecodeError

    unreadable = 0
    captions: Iterator = stream_captions(model, processor, images, return_errors=True, **generate)
    for image, caption in zip(images, captions, strict=True):
        if isinstance(caption, ImageDecodeError):
            unreadable += 1
            print(f"hf-clip: {printable(f'{image}: {caption}')}", file=sys.stderr)
        else:
            write(image, caption)
    return unreadable


def _report(unreadable: int, count: int) -> int:
    if unreadable:
        print(f"hf-clip: {unreadable} of {count} images could not be read.", file=sys.stderr)
    return 1 if unreadable else 0


def _table(images: list[str]):
    width = min(max(len("image"), *(len(printable(image)) for image in images)), 48)
    print(f"{'image':{width}}  caption")

    def write(image: str, caption: str) -> None:
        print(f"{printable(image)[-width:]:{width}}  {printable(caption)}")

    return write


def _json_lines(stream: Any):
    def write(image: str, caption: str) -> None:
        stream.write(json.dumps({"image": image, "caption": caption}, ensure_ascii=False) + "\n")
        stream.flush()

    return write


def _done(output: Path) -> set[str]:
    """The images that a file of captions has already; what a stopped process left of a line is cut off."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        return set()
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        # Not splitlines: names may hold other ends of lines, which JSON leaves as they are.
        rows = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        done = {row["image"] for row in rows if isinstance(row["caption"], str)}
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--output {output} is no file of captions: name another.") from None
    if content and not whole:
        raise UsageError(f"--output {output} is no file of captions: name another.")
    with output.open("r+b") as stream:
        stream.truncate(len(whole))
    return done
