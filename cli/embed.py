"""`hf-clip embed`: embeddings of a data set's images in a file for other systems."""

import argparse
import os
from pathlib import Path

from .arguments import (
    Several,
    add_model,
    add_verb,
    check_data,
    check_model,
    load_options,
    positive,
    values_by_column,
)
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "embed",
        run,
        "embed the images of a data set into parquet or Lance",
        "hf-clip embed pairs.parquet --model openai/clip-vit-base-patch32 --output embeddings.parquet",
        usage="hf-clip embed DATA ... --model MODEL --output FILE [options]",
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="files, a folder, or a Hub id, before any flag")
    output = "*.parquet, *.lance, or hf://datasets/OWNER/NAME; a run that was stopped goes on"
    parser.add_argument("--output", required=True, metavar="FILE", help=output)
    add_model(parser)
    parser.add_argument("--split", metavar="NAME", help="split to use, if the data has several")
    where = "keep the rows that have one of these values"
    parser.add_argument("--where", action=Several, default=[], metavar="COL=VALUE", help=where)
    parser.add_argument("--image-column", metavar="NAME", help="column of images (default: found by name)")
    ray = "let the nodes of Ray encode (auto, HOST:PORT, or local)"
    parser.add_argument("--ray", metavar="ADDRESS", help=ray)
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (default 32)")


def run(options: argparse.Namespace) -> int:
    check_model(options.model)
    check_data(options.data, "DATA")
    is_file = not options.output.startswith("hf://")
    if is_file and Path(options.output).suffix not in (".parquet", ".lance"):
        raise UsageError(f"--output {options.output} is neither *.parquet nor *.lance: name one of these.")
    if is_file and Path(options.output).exists() and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise UsageError(f"--output {options.output} exists: name another file, or remove it.")
    start_library()
    from hf_clip.search.embedding_files import embed_to_file

    from .models import open_model, usable_device

    # As a launcher numbers the processes of a machine.
    rank = os.environ.get("LOCAL_RANK")
    device = usable_device(options.device)
    if rank is not None and options.device is None and device.type == "cuda":
        device = usable_device(f"cuda:{rank}")
    model, processor = open_model(options.model, device, load_options(options))
    output = embed_to_file(
        model,
        processor,
        options.data[0] if len(options.data) == 1 else options.data,
        options.output,
        batch_size=options.batch_size,
        ray=options.ray,
        split=options.split,
        image_column=options.image_column,
        where=values_by_column(options.where) or None,
    )
    if isinstance(output, str) or output.exists():
        print(output)
    return 0
