"""`hf-clip index`: makes an index of one's images, or brings it up to date, and tells what it holds."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Several, add_load_options, add_verb, check_model, load_options
from .server_calls import place_of
from .usage import UsageError, printable, start_library

if TYPE_CHECKING:
    from hf_clip.search import Index, Update

SHOWN_ERRORS = 10


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "index",
        run,
        "embed the images of a folder for search, and keep them up to date",
        "hf-clip index photos/ --model openai/clip-vit-base-patch32",
        usage="hf-clip index IMAGES [--model MODEL] [options]",
    )
    parser.commands |= {"update": "hf-clip index", "output": "--export"}
    parser.add_argument("root", metavar="IMAGES", help="a folder of images, or a table of images (parquet, CSV, tar)")
    parser.add_argument("--model", help="a checkpoint of any format, or a Hub id (default: the index's)")
    add_index(parser)
    names = "what such images show, by name (@FILE: one a line): a surer match probability"
    parser.add_argument("--names", action=Several, metavar="TEXT", help=names)
    parser.add_argument("--prune", action="store_true", help="forget the images whose file is gone")
    parser.add_argument("--status", action="store_true", help="print what the index holds, as JSON, and do no more")
    parser.add_argument("--errors", action="store_true", help="list the files that give no image, and do no more")
    export = "write the embeddings (*.parquet, *.faiss, hf://datasets/OWNER/NAME), and do no more"
    parser.add_argument("--export", metavar="OUTPUT", help=export)
    parser.add_argument("--drop", metavar="MODEL", help="forget a model of the index, and do no more")
    add_load_options(parser)


def add_index(parser: argparse.ArgumentParser) -> None:
    where = "folder or s3:// address of the index (default: .hf-clip.lance in IMAGES)"
    parser.add_argument("--index", metavar="DIR", help=where)


def check_root(root: str) -> None:
    """Raises UsageError for a path of which nothing is there, before anything heavy is imported."""
    if not root:
        raise UsageError("'' names no folder of images: the current one is '.'.")
    if not Path(root).exists() and (root.startswith((".", "/", "~")) or root.endswith("/")):
        raise UsageError(f"{root} does not exist: give a folder of images. Is it mounted?")


def check_index(root: str, index: str | None) -> None:
    """Raises FileNotFoundError where a folder holds no index, before anything heavy is imported."""
    place = Path(index) if index else place_of(Path(root))
    # Another address is LanceDB's to open, and a data set of the Hub has its index elsewhere.
    if (index is None or "://" not in index) and Path(root).exists() and not place.is_dir():
        raise FileNotFoundError(f"{place} holds no index: run hf-clip index first.")


def open_index(options: argparse.Namespace, *, with_model: bool) -> "Index":
    """The index that the arguments name, on the device that they name."""
    from hf_clip.search import Index

    device = None
    if with_model:
        from .models import usable_device

        device = usable_device(options.device)
    more = load_options(options) if options.model is not None else {}
    more["names"] = getattr(options, "names", None)
    return Index.open(options.root, model=options.model, index=options.index, device=device, **more)


def run(options: argparse.Namespace) -> int:
    check_root(options.root)
    if options.model is not None:
        check_model(options.model)
    start_library()
    index = open_index(options, with_model=not (options.status or options.errors or options.drop or options.export))
    if options.drop is not None:
        index.drop(options.drop)
    if options.export is not None:
        print(f"{options.export}: {index.export(options.export)} images")
    elif options.errors:
        for path, error in sorted(index.errors().items()):
            print(printable(f"{path}: {error}"))
    elif options.status or options.drop is not None:
        print(json.dumps(index.status(), indent=2, ensure_ascii=False))
    else:
        report = index.update(prune=options.prune)
        _tell(report, options.root)
        return 1 if report.is_root_empty or not report.total else 0
    return 0


def _tell(report: "Update", root: str) -> None:
    """What an update did, on standard output; what could not be read, on standard error."""
    if report.is_root_empty:
        print(
            f"hf-clip: {root} holds no image, and its index {report.total}: is it mounted? Nothing was forgotten.",
            file=sys.stderr,
        )
        return
    for path, error in list(report.errors.items())[:SHOWN_ERRORS]:
        print(f"hf-clip: {printable(f'{path}: {error}')}", file=sys.stderr)
    if len(report.errors) > SHOWN_ERRORS:
        print(f"hf-clip: and {len(report.errors) - SHOWN_ERRORS} more: --errors lists them.", file=sys.stderr)
    for folder, error in report.folders.items():
        line = f"{folder} cannot be read ({error}): what the index holds of it stays."
        print(f"hf-clip: {printable(line)}", file=sys.stderr)
    if report.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.others.most_common())
        print(f"hf-clip: {sum(report.others.values())} files are no images that are read: {kinds}.", file=sys.stderr)
    if not report.total:
        print(f"hf-clip: {printable(root)} holds no image that can be read.", file=sys.stderr)
        return
    names = (
        "added",
        "changed",
        "touched",
        "moved",
        "copied",
        "returned",
        "pruned",
        "encoded",
        "unreadable",
        "missing",
    )
    done = [f"{getattr(report, name)} {name}" for name in names if getattr(report, name)]
    print(f"{printable(root)}: {report.total} images ({', '.join(done) or 'no change'}), {report.seconds:.1f} s")
