"""`hf-clip teach`: training data with what other models make of it, for distillation."""

import argparse
from pathlib import Path

from .arguments import Several, add_data, add_verb, check_data, check_model, device, positive, values_by_column
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "teach",
        run,
        "write training data with teachers' embeddings of it, for distillation",
        "hf-clip teach --data pairs.parquet --teacher openai/clip-vit-base-patch32 --output taught.parquet",
    )
    parser.add_argument("--teacher", required=True, action=Several, metavar="MODEL", help="checkpoints or Hub ids")
    names = "their names in data.teachers (default: teacher; of several teacher_1, ...)"
    parser.add_argument("--names", action=Several, metavar="NAME", help=names)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="parquet file to write")
    synthetic = "columns of a model's captions, embedded behind the others (data.synthetic_columns)"
    parser.add_argument("--synthetic-columns", action=Several, default=[], metavar="NAME", help=synthetic)
    kept = "columns that are copied besides images and captions"
    parser.add_argument("--keep", action=Several, default=[], metavar="NAME", help=kept)
    add_data(parser, ("caption", "concept"))
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images at once (default 64)")
    parser.add_argument("--device", type=device, help="cpu, cuda, cuda:1, ... (default: the fastest)")


def run(options: argparse.Namespace) -> int:
    for teacher in options.teacher:
        check_model(teacher, "--teacher")
    check_data(options.data)
    if options.names is not None and len(options.names) != len(options.teacher):
        raise UsageError(f"--names has {len(options.names)} names for {len(options.teacher)} teachers: give one each.")
    if options.output.suffix != ".parquet":
        raise UsageError(f"--output {options.output} is no *.parquet: name one.")
    if options.output.exists():
        raise UsageError(f"--output {options.output} exists: name another file, or remove it.")
    start_library()
    from hf_clip.sources import DataSpec
    from hf_clip.training.teaching import open_teachers, write_teachers

    from .models import usable_device

    spec = DataSpec(
        options.data[0] if len(options.data) == 1 else options.data,
        split=options.split,
        where=values_by_column(options.where),
        image_column=options.image_column,
        caption_columns=options.caption_columns,
        concept_column=options.concept_column,
        extra_columns=options.keep,
    )
    teachers = open_teachers(options.teacher, options.names, usable_device(options.device))
    count = write_teachers(
        spec, teachers, options.output, synthetic_columns=options.synthetic_columns, batch_size=options.batch_size
    )
    print(f"{options.output} has {count:,} rows with {' and '.join(name for name, _, _ in teachers)}.")
    return 0
