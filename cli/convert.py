"""`hf-clip convert`: a checkpoint of any format in another."""

import argparse
from pathlib import Path

from .arguments import add_load_options, add_verb, check_model, load_options
from .outputs import Outputs
from .usage import start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "convert",
        run,
        "write a checkpoint of any format in another",
        "hf-clip convert ViT-B-32.pt --to transformers --output-dir clip-vit-b-32 --verify",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file of weights or a Hub id, of any format")
    formats = ("hf_clip", "transformers", "open_clip", "openai", "diffusers")
    parser.add_argument("--to", required=True, choices=formats, help="format to write")
    parser.add_argument("--output-dir", required=True, type=Path, help="folder that is empty or not there yet")
    parser.add_argument("--verify", action="store_true", help="run both on the same inputs; 1e-4 apart is an error")
    add_load_options(parser, default_device="cpu")


def run(options: argparse.Namespace) -> int:
    check_model(options.source, "SOURCE")
    outputs = Outputs()
    outputs.reads("SOURCE", [options.source])
    outputs.empty_folder("--output-dir", options.output_dir)
    start_library()
    from hf_clip.conversion import convert

    from .models import usable_device

    more = {} if options.device is None else {"device": usable_device(options.device)}
    verification = convert(
        options.source,
        to=options.to,
        output_dir=options.output_dir,
        verify=options.verify,
        **load_options(options),
        **more,
    )
    if verification is not None:
        print(verification)
    written = options.output_dir / "model.pt" if options.to == "openai" else options.output_dir
    print(f"{written} holds {options.source} in the format {options.to}.")
    return 0
