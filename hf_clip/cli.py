"""The command `hf-clip`. Its verbs read their arguments here and do their work elsewhere.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 stopped by a signal after saving.
"""

import argparse
import errno
import glob
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from . import __version__

DONE, FAILED, WRONG_USAGE = 0, 1, 2

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class UsageError(ValueError):
    """Arguments that cannot go together."""

    exit_code = WRONG_USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Errors are one line, unless `--debug` asks for the traceback."""
    options = make_parser().parse_args(arguments)
    _quieten_libraries()
    try:
        return options.verb(options)
    except KeyboardInterrupt:
        print("hf-clip: interrupted.", file=sys.stderr)
        return FAILED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        print(f"hf-clip: {_message(error)}", file=sys.stderr)
        return getattr(error, "exit_code", FAILED)


def _message(error: Exception) -> str:
    """One line for an error, with the mend of those that libraries raise without one."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        message += ": pip install 'hf_clip[train]' installs what training and evaluation need."
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message += ": free some space; a run that was training goes on with --resume."
    return message


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-clip",
        description="CLIP on the Hugging Face stack: train, judge and use dual encoders of pictures and texts.",
        epilog="hf-clip VERB --help shows a verb's options and an example.",
    )
    parser.add_argument("--version", action="version", version=f"hf-clip {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_train(verbs)
    _add_eval(verbs)
    _add_classify(verbs)
    _add_convert(verbs)
    _add_doctor(verbs)
    return parser


def _add_verb(verbs, name: str, run: Callable[[argparse.Namespace], int], description: str, example: str):
    parser = verbs.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28),
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(verb=run)
    return parser


def _add_train(verbs) -> None:
    parser = _add_verb(
        verbs,
        "train",
        train,
        "train a dual encoder from a recipe",
        "hf-clip train --recipe emoji --output-dir runs/emoji --set steps=500",
    )
    parser.add_argument("--recipe", help="a recipe's name or the path of a YAML file")
    parser.add_argument("--output-dir", required=True, type=Path, help="folder of the model, its card and its logs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="replace a value of the recipe, such as optimizer.learning_rate=1e-3; may be repeated",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output-dir")


def train(options: argparse.Namespace) -> int:
    from hf_clip.training import load_recipe
    from hf_clip.training import train as run_training

    if options.recipe is None and not options.resume:
        from hf_clip.training import list_recipes

        raise UsageError(f"--recipe is missing: name one of {', '.join(list_recipes())}, or a YAML file.")
    recipe = options.recipe
    if recipe is None:
        recipe = options.output_dir / "recipe.yaml"
        if not recipe.is_file():
            raise UsageError(f"There is no run to resume in {options.output_dir}: start one with --recipe.")
    run_training(load_recipe(recipe, options.overrides), options.output_dir, resume=options.resume)
    return DONE


def _add_eval(verbs) -> None:
    parser = _add_verb(
        verbs,
        "eval",
        evaluate,
        "judge a model on a data set",
        "hf-clip eval retrieval --model runs/emoji --data examples/emoji/twemoji.parquet --where split=test",
    )
    parser.add_argument(
        "protocol",
        choices=("retrieval", "zero-shot"),
        help="retrieval: pictures among names; zero-shot: pictures among classes",
    )
    parser.add_argument("--model", required=True, help="a model's folder or Hub id")
    parser.add_argument("--data", required=True, nargs="+", help="files, a folder, or a Hub id")
    parser.add_argument("--split", help="split of the data, where it has several")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep these rows; may be repeated, for further values or columns",
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of pictures, where it is not found by its name")
    parser.add_argument("--caption-column", action="append", metavar="NAME", help="column of captions (retrieval)")
    parser.add_argument("--label-column", metavar="NAME", help="column of classes (zero-shot)")
    parser.add_argument(
        "--concept-column", metavar="NAME", help="column whose equal values are pictures of one thing (retrieval)"
    )
    parser.add_argument(
        "--template", action="append", help="text around a class name, such as 'a photo of a {}' (zero-shot)"
    )
    parser.add_argument("--batch-size", type=_positive, default=64, help="pictures at once (default 64)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--output", type=Path, help="write the result to this JSON file too")


def evaluate(options: argparse.Namespace) -> int:
    from hf_clip.evaluation import evaluate_retrieval, evaluate_zero_shot
    from hf_clip.sources import open_source

    is_retrieval = options.protocol == "retrieval"
    if is_retrieval and options.template:
        raise UsageError("--template belongs to zero-shot: retrieval takes the captions as they are.")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise UsageError(f"--output {options.output}: there is no folder {options.output.parent}.")
    source = open_source(
        options.data,
        split=options.split,
        image_column=options.image_column,
        caption_columns=options.caption_column,
        label_column=options.label_column,
        concept_column=options.concept_column,
        where=_values_by_column(options.where),
    )
    source = source.require_captions() if is_retrieval else source.require_label()
    model, processor = _load(options.model, options.device)
    if is_retrieval:
        result = evaluate_retrieval(model, processor, source, batch_size=options.batch_size)
    else:
        templates = options.template or ["a photo of a {}."]
        result = evaluate_zero_shot(model, processor, source, templates=templates, batch_size=options.batch_size)
    print(result.table())
    if options.output is not None:
        options.output.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return DONE


def _add_classify(verbs) -> None:
    parser = _add_verb(
        verbs,
        "classify",
        classify,
        "name what pictures show, among labels of yours",
        'hf-clip classify photos/*.jpg --labels "a cat,a dog" --model runs/emoji',
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, folders or globs")
    parser.add_argument("--labels", required=True, help="labels with commas between, or @FILE with one a line")
    parser.add_argument("--model", required=True, help="a model's folder or Hub id")
    parser.add_argument("--template", action="append", help="text around a label (default '{}'); may be repeated")
    parser.add_argument("--top-k", type=_positive, default=3, help="labels shown for each picture (default 3)")
    parser.add_argument("--batch-size", type=_positive, default=32, help="pictures at once (default 32)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--format", choices=("table", "jsonl"), default="table", help="default: table")


def classify(options: argparse.Namespace) -> int:
    from hf_clip.zero_shot_hf_clip import ZeroShotClassifier, batched

    labels = _read_labels(options.labels)
    pictures = _find_pictures(options.pictures)
    model, processor = _load(options.model, options.device)
    classifier = ZeroShotClassifier(model, processor, labels, options.template or ["{}"])
    if options.format == "table":
        width = min(max(len("picture"), *(len(picture) for picture in pictures)), 48)
        label_width = max(2, min(max(map(len, labels)), 40))
        places = range(1, min(options.top_k, len(labels)) + 1)
        print(f"{'picture':{width}}  " + "  ".join(f"label {place:<{label_width}}" for place in places).rstrip())
    unreadable = 0
    for batch in batched(pictures, options.batch_size):
        readable = []
        for picture in batch:
            if problem := _decoding_problem(picture):
                unreadable += 1
                print(f"hf-clip: {picture}: {problem}", file=sys.stderr)
            else:
                readable.append(picture)
        if not readable:
            continue
        guesses = classifier.predict(readable, batch_size=options.batch_size, top_k=options.top_k)
        for picture, guess in zip(readable, guesses, strict=True):
            if options.format == "jsonl":
                print(json.dumps({"picture": picture, "labels": guess}, ensure_ascii=False))
            else:
                shown = "  ".join(f"{one['score']:.3f} {one['label'][:label_width]:{label_width}}" for one in guess)
                print(f"{picture[-width:]:{width}}  {shown}".rstrip())
    if unreadable:
        print(f"hf-clip: {unreadable} of {len(pictures)} pictures could not be read.", file=sys.stderr)
    return FAILED if unreadable else DONE


def _add_convert(verbs) -> None:
    parser = _add_verb(
        verbs,
        "convert",
        convert,
        "write a checkpoint of any format in another",
        "hf-clip convert ViT-B-32.pt --to transformers --output clip-vit-b-32 --verify",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file of weights or a Hub id, of any format")
    parser.add_argument(
        "--to", required=True, choices=("hf_clip", "transformers", "open_clip", "openai"), help="the format to write"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder that is empty or not there yet")
    parser.add_argument("--verify", action="store_true", help="run both on the same inputs; 1e-4 apart is an error")
    parser.add_argument("--architecture", metavar="NAME", help="where the source does not say it, such as ViT-B/32")
    parser.add_argument(
        "--hidden-act", choices=("quick_gelu", "gelu", "gelu_pytorch_tanh"), help="likewise: the activation"
    )


def convert(options: argparse.Namespace) -> int:
    from hf_clip.conversion import convert as run_conversion

    verification = run_conversion(
        options.source,
        to=options.to,
        output_dir=options.output,
        verify=options.verify,
        architecture=options.architecture,
        hidden_act=options.hidden_act,
    )
    if verification is not None:
        print(verification)
    print(f"{options.output} holds {options.source} in the format {options.to}.")
    return DONE


def _add_doctor(verbs) -> None:
    parser = _add_verb(verbs, "doctor", doctor, "what is installed, what works, what would be fast", "hf-clip doctor")
    parser.add_argument("--json", action="store_true", help="as JSON, for bug reports")
    parser.add_argument(
        "--architectures", action="store_true", help="the architectures that can be named, with their sizes"
    )


def doctor(options: argparse.Namespace) -> int:
    from hf_clip.configuration_hf_clip import read_architectures
    from hf_clip.training.doctor import examine, table, table_of_architectures

    if options.architectures:
        findings, show = list(read_architectures().values()), table_of_architectures
    else:
        findings, show = examine(), table
    print(json.dumps(findings, indent=2) if options.json else show(findings))
    return DONE


def _load(source: str, device: str | None):
    from hf_clip.modeling_hf_clip import HFCLIPModel
    from hf_clip.processing_hf_clip import HFCLIPProcessor
    from hf_clip.training.device import fastest_device

    path = Path(source)
    if path.exists() and not (path / "config.json").is_file():
        raise UsageError(f"--model {source} holds no model (it has no config.json).")
    if not path.exists() and (source.count("/") != 1 or source.startswith((".", "/"))):
        raise UsageError(f"--model {source} does not exist: give a model's folder, or a Hub id (owner/name).")
    processor = HFCLIPProcessor.from_pretrained(source)
    model, loading = HFCLIPModel.from_pretrained(source, output_loading_info=True)
    if problems := {name: sorted(keys) for name, keys in loading.items() if keys}:
        raise ValueError(f"{source} does not fit its config.json: {problems}.")
    return model.to(device or fastest_device()).eval(), processor


def _decoding_problem(picture: str) -> str | None:
    from hf_clip.images_hf_clip import ImageDecodeError, decode_image

    try:
        decode_image(picture)
    except ImageDecodeError as error:
        return str(error)
    return None


def _read_labels(labels: str) -> list[str]:
    if labels.startswith("@"):
        file = Path(labels[1:])
        if not file.is_file():
            raise UsageError(f"--labels {labels}: there is no file {file}.")
        names = file.read_text(encoding="utf-8").splitlines()
    else:
        names = labels.split(",")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise UsageError(f"--labels {labels!r} names no label: give some with commas between.")
    return names


def _find_pictures(given: Sequence[str]) -> list[str]:
    """Files as they are; pictures of folders and globs in sorted order."""
    found: list[str] = []
    for item in given:
        path = Path(item)
        if path.is_dir():
            inside = [str(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in PICTURE_SUFFIXES]
        elif path.is_file():
            inside = [item]
        else:
            inside = sorted(glob.glob(item, recursive=True))
        if not inside:
            raise UsageError(f"{item}: there is no such picture, and none in such a folder.")
        found += inside
    return found


def _values_by_column(conditions: Sequence[str]) -> dict[str, list[str]]:
    """The values that rows may have in each column; a column named twice may have either value."""
    values: dict[str, list[str]] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise UsageError(f"--where {condition!r} is not COLUMN=VALUE.")
        values.setdefault(column, []).append(value)
    return values


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _quieten_libraries() -> None:
    """Libraries' bars and notes would bury the command's own lines; their warnings stay."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("datasets").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
