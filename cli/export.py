"""`hf-clip export`: a checkpoint of any format for ONNX Runtime or OpenVINO."""

import argparse
from pathlib import Path

from .arguments import Several, add_load_options, add_verb, check_model, load_options
from .outputs import Outputs
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "export",
        run,
        "write a model for ONNX Runtime or OpenVINO",
        "hf-clip export openai/clip-vit-base-patch32 --to onnx --int8 --output-dir vit-b-32-int8",
    )
    parser.add_argument("source", metavar="MODEL", help="a folder, a file of weights or a Hub id, of any format")
    parser.add_argument("--to", required=True, choices=("onnx", "openvino"), help="runtime to write for")
    parser.add_argument("--output-dir", required=True, type=Path, help="folder that is empty or not there yet")
    parser.add_argument("--int8", action="store_true", help="products in int8, all else in --dtype")
    parser.add_argument(
        "--images", action=Several, metavar="IMAGE", help="for the parity report: files, folders (default: drawn)"
    )
    parser.add_argument(
        "--texts", action=Several, metavar="TEXT", help="for the parity report (default: of the drawn)"
    )
    parser.add_argument("--allow-low-parity", action="store_true", help="write what is too far from the model, too")
    add_load_options(parser, default_device="cpu")


def run(options: argparse.Namespace) -> int:
    check_model(options.source, "MODEL")
    outputs = Outputs()
    outputs.reads("MODEL", [options.source])
    outputs.reads("--images", options.images or [])
    outputs.empty_folder("--output-dir", options.output_dir)
    if options.device not in (None, "cpu"):
        raise UsageError(f"--device {options.device}: models are exported on the CPU: drop it.")
    start_library()
    from hf_clip.export import export_model

    from .classify import find_images

    images = None if options.images is None else find_images(options.images)
    about_source = load_options(options)
    report = export_model(
        options.source,
        to=options.to,
        output_dir=options.output_dir,
        int8=options.int8,
        dtype=about_source.pop("dtype"),
        images=images,
        texts=options.texts,
        allow_low_parity=options.allow_low_parity,
        **about_source,
    )
    print(report)
    print(f"{options.output_dir} holds {options.source} for {options.to}.")
    return 0
