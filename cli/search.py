"""`hf-clip search`: the indexed images that are most like a text, an image, or a mixture of several."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import (
    Several,
    add_load_options,
    add_verb,
    check_model,
    existing_file,
    fraction,
    load_options,
    positive,
)
from .index import add_index, check_index, check_root, open_index
from .server_calls import ServersHits, ask, data_url, running_server
from .usage import UsageError, printable, start_library

if TYPE_CHECKING:
    from hf_clip.search import Hits, Index

FORMATS = ("table", "paths", "jsonl")


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "search",
        run,
        "find images in an index, by texts and by images",
        'hf-clip search photos/ "two dogs on a beach" --top-k 20 --sheet found.png',
        usage="hf-clip search IMAGES [TEXT ...] [options]",
        prints_results=True,
    )
    parser.commands["update"] = "hf-clip index"
    parser.add_argument("root", metavar="IMAGES", help="the folder that `hf-clip index` was given")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what the images show, before any flag")
    image = "images like these files, or like indexed images"
    parser.add_argument("--image", action=Several, default=[], metavar="FILE", help=image)
    parser.add_argument("--minus", action=Several, default=[], metavar="TEXT", help="what they do not show")
    weights = "weights of texts, images and --minus, in this order (default: 1 each)"
    parser.add_argument("--weights", nargs="+", type=float, metavar="NUMBER", help=weights)
    where = "condition in SQL on path, size, width, height, taken"
    parser.add_argument("--where", metavar="SQL", help=where)
    liked = "images like these indexed ones, and unlike one another"
    parser.add_argument("--liked", action=Several, default=[], metavar="PATH", help=liked)
    parser.add_argument("--disliked", action=Several, default=[], metavar="PATH", help="and unlike these")
    parser.add_argument("--top-k", type=positive, default=20, metavar="N", help="how many images (default 20)")
    cutoff = "show nothing where the match probability is below it"
    parser.add_argument("--cutoff", type=fraction, metavar="NUMBER", help=cutoff)
    formats = f"{', '.join(FORMATS)} (default: table)"
    parser.add_argument("--format", choices=FORMATS, default="table", metavar="NAME", help=formats)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the images to this PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --sheet of any kind")
    parser.add_argument("--model", help="which model of the index (default: the current one)")
    add_index(parser)
    add_load_options(parser)


def run(options: argparse.Namespace) -> int:
    check_root(options.root)
    _check(options)
    options.liked, options.disliked = (_as_indexed(options.root, paths) for paths in (options.liked, options.disliked))
    if options.sheet is not None:
        from .outputs import Outputs

        outputs = Outputs(options.overwrite)
        outputs.reads("IMAGES", [options.root])
        outputs.file("--sheet", options.sheet, "a sheet in PNG")
    check_index(options.root, options.index)
    hits: Hits | ServersHits | None = _ask_server(options)
    if hits is None:
        start_library()
        hits = _ask(open_index(options, with_model=True), options)
    if hits.match_probability is not None and hits.match_probability < (options.cutoff or 0):
        print(
            f"hf-clip: nothing above --cutoff {options.cutoff:g} (match probability {hits.match_probability:.2f}).",
            file=sys.stderr,
        )
        return 0
    _write(hits, options.format)
    if not hits.has_match:
        _tell_low(hits)
    if options.sheet is not None and len(hits):
        start_library()
        _draw(open_index(options, with_model=False), hits, options.sheet)
    return 0


def _tell_low(hits: "Hits | ServersHits") -> None:
    if not len(hits) or hits.match_probability is None:
        print("hf-clip: no image.", file=sys.stderr)
        return
    said = f"low match probability {hits.match_probability:.2f}: half of unrelated texts reach as much."
    print(f"hf-clip: {said}", file=sys.stderr)


def _draw(index: "Index", hits: "Hits | ServersHits", file: Path) -> None:
    """Draws what was found; an image that went since the index was updated is a line."""
    from hf_clip.model.image_decoding_hf_clip import ImageDecodeError

    from .sheet import write_sheet

    shown = []
    for hit in hits:
        try:
            shown.append((index.image(hit.path), [{"score": hit.score, "label": hit.path}]))
        except ImageDecodeError as error:
            print(f"hf-clip: {printable(f'{hit.path} is not on the sheet: {error}')}", file=sys.stderr)
    if shown:
        write_sheet(shown, file)


def _check(options: argparse.Namespace) -> None:
    recommends = bool(options.liked or options.disliked)
    asked = bool(options.texts or options.image)
    if recommends and (asked or options.minus or not options.liked):
        raise UsageError("--liked and --disliked go with each other alone: drop TEXT, --image and --minus.")
    if not asked and not recommends:
        raise UsageError("nothing is asked for: give a TEXT, --image FILE or --liked PATH.")
    if options.model is not None:
        check_model(options.model)


def _ask_server(options: argparse.Namespace) -> "ServersHits | None":
    """The answer of a server of this index, which has its model at hand; None without one, or an answer of its."""
    own = any((options.model, options.device, *load_options(options).values()))
    server = None if own else running_server(options.root, options.index)
    if server is None:
        return None
    files, near = _files_and_paths(options.image)
    question = {
        "query": options.texts,
        "images": [data_url(Path(file)) for file in files],
        "near": near,
        "minus": options.minus,
        "liked": options.liked,
        "disliked": options.disliked,
        "weights": options.weights,
        "where": options.where,
        "top_k": options.top_k,
    }
    return ask(server, question)


def _ask(index: "Index", options: argparse.Namespace) -> "Hits":
    chosen: dict[str, Any] = {"where": options.where, "top_k": options.top_k}
    if options.liked:
        return index.recommend(options.liked, options.disliked, **chosen)
    files, near = _files_and_paths(options.image)
    return index.search(options.texts, images=files, near=near, minus=options.minus, weights=options.weights, **chosen)


def _files_and_paths(images: list[str]) -> tuple[list[str], list[str]]:
    """Images that are files, and those that are named as the index has them, which need no encoding."""
    files = [image for image in images if Path(image).exists()]
    for file in files:
        existing_file("--image", Path(file))
    return files, [image for image in images if image not in files]


def _as_indexed(root: str, paths: list[str]) -> list[str]:
    """Paths as the index has them, relative to its folder, also of those that a shell completed."""
    folder, named = Path(root).resolve(), []
    for path in paths:
        file = Path(path).resolve()
        is_file_of_it = not (folder / path).exists() and file.exists() and file.is_relative_to(folder)
        named.append(file.relative_to(folder).as_posix() if is_file_of_it else path)
    return named


def _write(hits: "Hits | ServersHits", style: str) -> None:
    if style == "table" and len(hits):
        print("score   size         taken                image")
    for hit in hits:
        if style == "paths":
            print(hit.path)
        elif style == "jsonl":
            row = {**vars(hit), "match_probability": hits.match_probability}
            print(json.dumps(row, ensure_ascii=False))
        else:
            size = f"{hit.width} x {hit.height}"
            print(f"{hit.score:.4f}  {size:<11}  {hit.taken or '-':<19}  {printable(hit.path)}")
