"""The command `hf-clip`. Its verbs read their arguments here and do their work elsewhere.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 stopped by a signal after saving.
"""

import argparse
import errno
import json
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hf_clip import __version__

from .usage import UsageError, check_file, printable

DONE, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Errors are one line, unless `--debug` asks for the traceback."""
    options = make_parser().parse_args(arguments)
    _quieten_libraries()
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files may be no text, and terminals may lack letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = options.verb(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("hf-clip: interrupted.", file=sys.stderr)
        return FAILED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return DONE
        if options.debug:
            traceback.print_exc()
        print(f"hf-clip: {_message(error)}", file=sys.stderr)
        return getattr(error, "exit_code", FAILED)


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as `head` leaves it when it has enough."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    has_left = any(event & select.POLLERR for _, event in poll.poll(0))
    if has_left:
        # Or Python, at its end, would try to write what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return has_left


def _message(error: Exception) -> str:
    """One line for an error, with the mend of those that libraries raise without one."""
    message = printable(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        message += ": pip install 'hf_clip[train]' installs what training and evaluation need."
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message += ": free some space; a run that was training goes on with --resume."
    return message


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-clip",
        description="CLIP on the Hugging Face stack: train, judge and use dual encoders of images and texts.",
        epilog="hf-clip VERB --help shows a verb's options and an example.",
    )
    parser.add_argument("--version", action="version", version=f"hf-clip {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_train(verbs)
    _add_plan(verbs)
    _add_eval(verbs)
    _add_classify(verbs)
    _add_prompts(verbs)
    _add_convert(verbs)
    _add_push(verbs)
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
    _add_recipe(parser)
    parser.add_argument("--output-dir", required=True, type=Path, help="folder of the model, its card and its logs")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output-dir")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", help="a recipe's name or the path of a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="replace a value of the recipe, such as optimizer.learning_rate=1e-3; may be repeated",
    )


def train(options: argparse.Namespace) -> int:
    from hf_clip.training import load_recipe
    from hf_clip.training import train as run_training

    if options.recipe is None and not options.resume:
        raise _missing_recipe()
    recipe = options.recipe
    if recipe is None:
        recipe = options.output_dir / "recipe.yaml"
        if not recipe.is_file():
            raise UsageError(f"There is no run to resume in {options.output_dir}: start one with --recipe.")
    run_training(load_recipe(recipe, options.overrides), options.output_dir, resume=options.resume)
    return DONE


def _missing_recipe() -> UsageError:
    from hf_clip.training import list_recipes

    return UsageError(f"--recipe is missing: name one of {', '.join(list_recipes())}, or a YAML file.")


def _add_plan(verbs) -> None:
    parser = _add_verb(
        verbs,
        "plan",
        plan,
        "what a run will take: parameters, memory of a process, arithmetic of a step",
        "hf-clip plan --recipe emoji --processes 8 --device-memory 80 --set micro_batch_size=8",
    )
    _add_recipe(parser)
    parser.add_argument("--processes", type=_positive, default=1, metavar="N", help="one a device (default 1)")
    devices = "cuda: a GPU that is fast at bf16 (default); cpu: this one"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=devices)
    memory = "say which micro_batch_size fits into it"
    parser.add_argument("--device-memory", type=_amount, metavar="GB", help=memory)
    speed = "of a device, as it is reached in training: say how long a step takes"
    parser.add_argument("--tflops", type=_amount, metavar="NUMBER", help=speed)
    parser.add_argument("--explain", action="store_true", help="print the formula of each line")


def plan(options: argparse.Namespace) -> int:
    if options.recipe is None and not options.explain:
        raise _missing_recipe()
    from hf_clip.training import load_recipe
    from hf_clip.training.plan import EXPLANATION, report

    if options.explain:
        print(EXPLANATION)
    if options.recipe is not None:
        config = load_recipe(options.recipe, options.overrides)
        print(report(config, options.processes, options.device, options.device_memory, options.tflops))
    return DONE


def _add_eval(verbs) -> None:
    parser = _add_verb(
        verbs,
        "eval",
        evaluate,
        "judge a model on a data set",
        "hf-clip eval retrieval --model runs/emoji --data examples/emoji/twemoji.parquet --where split=test",
    )
    protocols = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    fashion, noto, twemoji = "fashion/test_small.parquet", "emoji/noto.parquet", "emoji/twemoji.parquet"
    train_and_test = f"--train-data examples/{noto} --data examples/{twemoji} --label-column group"
    for name, add, description, example in (
        ("zero-shot", _add_zero_shot, "images among classes, by their names", f"--data examples/{fashion}"),
        (
            "retrieval",
            _add_retrieval,
            "images among captions, captions among images",
            f"--data examples/{twemoji} --by group",
        ),
        ("linear-probe", _add_linear_probe, "logistic regression on the image tower's features", train_and_test),
        ("few-shot", _add_few_shot, "linear probes on 1 to 16 images a class", f"{train_and_test} --shots 1 2 4"),
        (
            "robustness",
            _add_robustness,
            "zero-shot on damaged images, or on other data",
            f"--data examples/{fashion} --corruption jpeg",
        ),
    ):
        one = protocols.add_parser(
            name,
            help=description,
            description=description,
            usage=f"hf-clip eval {name} --model MODEL --data DATA [options]",
            epilog=f"example:\n  hf-clip eval {name} --model runs/emoji {example}",
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=26),
        )
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")
        _add_data(one)
        add(one)
        _add_outcome(one)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a checkpoint of any format: folder, file or Hub id")
    parser.add_argument("--data", required=True, nargs="+", help="files, a folder, or a Hub id")
    parser.add_argument("--split", metavar="NAME", help="of data with several")
    where = "keep these rows; may be repeated"
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help=where)
    parser.add_argument("--image-column", metavar="NAME", help="of images, if not found by its name")


def _add_outcome(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images at once (default 64)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="of features (default: in HF_HOME)")
    parser.add_argument("--no-cache", action="store_true", help="keep no features")
    parser.add_argument("--title", help="what the result is called")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into this folder")
    parser.add_argument("--push-to-card", action="store_true", help="write the numbers into the model's card")


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label-column", metavar="NAME", help="of classes")
    _add_words(parser)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label-names", type=Path, metavar="FILE", help="a class a line, in their numbers' order")
    parser.add_argument("--prompts", metavar="NAME", help="templates and classes of a known data set or file")
    parser.add_argument("--template", action="append", help="text around a name (default 'a photo of a {}.')")


def _add_by(parser: argparse.ArgumentParser) -> None:
    help_of_by = "measure each value of a column too (default: lang)"
    parser.add_argument("--by", action="append", default=[], metavar="COLUMN", help=help_of_by)


def _add_zero_shot(parser: argparse.ArgumentParser) -> None:
    _add_classes(parser)
    _add_by(parser)
    parser.add_argument("--multi-label", action="store_true", help="labels are lists: mean average precision")
    parser.add_argument("--per-template", action="store_true", help="measure each template alone too")
    selection = "choose those that help, for --prompts on other data"
    parser.add_argument("--select-templates", type=Path, metavar="YAML", help=selection)
    temperature = "divides logits, before calibration is measured"
    parser.add_argument("--temperature", type=_amount, default=1.0, metavar="NUMBER", help=temperature)
    parser.add_argument("--fit-temperature", action="store_true", help="find the one at which scores are likeliest")


def _add_retrieval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--caption-column", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--concept-column", metavar="NAME", help="equal values are images of one thing")
    captions = "which of an image's are candidates (default all)"
    parser.add_argument("--captions", choices=("first", "all"), default="all", help=captions)
    _add_by(parser)


def _add_training_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label-column", metavar="NAME", help="of classes")
    parser.add_argument("--train-data", nargs="+", metavar="DATA", help="to train on (default: as --data)")
    parser.add_argument("--train-split", metavar="NAME", help="likewise")
    parser.add_argument("--train-where", action="append", default=[], metavar="COLUMN=VALUE", help="likewise")
    validation = "of the training data (default: a fifth of it)"
    parser.add_argument("--validation-split", metavar="NAME", help=validation)


def _add_linear_probe(parser: argparse.ArgumentParser) -> None:
    _add_training_data(parser)
    _add_by(parser)
    parser.add_argument("--seed", type=_natural, metavar="N", default=0, help="of the validation split (default 0)")


def _add_few_shot(parser: argparse.ArgumentParser) -> None:
    _add_training_data(parser)
    _add_words(parser)
    parser.add_argument("--shots", type=_positive, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="1 2 4 8 16")
    parser.add_argument("--seeds", type=_positive, default=5, metavar="N", help="draws (default 5)")


def _add_robustness(parser: argparse.ArgumentParser) -> None:
    _add_classes(parser)
    parser.add_argument("--corruption", action="append", metavar="NAME", help="may be repeated (default: all)")
    parser.add_argument("--severity", action="append", type=_positive, metavar="1-5", help="likewise")
    parser.add_argument("--shifted-data", nargs="+", metavar="DATA", help="other data of the same classes instead")
    baselines = "JSON: [{top_1, shifted_top_1}, ...] of others"
    parser.add_argument("--baselines", type=Path, metavar="FILE", help=baselines)


def evaluate(options: argparse.Namespace) -> int:
    from hf_clip_cli.evaluate import run_evaluation

    run_evaluation(options, _load)
    return DONE


def _add_classify(verbs) -> None:
    parser = _add_verb(
        verbs,
        "classify",
        classify,
        "name what images show, among labels of yours",
        'hf-clip classify photos/*.jpg --labels "a cat,a dog" --model runs/emoji',
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument("--model", required=True, help="a checkpoint of any format, or a Hub id")
    parser.add_argument("--labels", help="labels with commas between, or @FILE with one a line")
    parser.add_argument(
        "--prompts", metavar="NAME", help="templates, and classes without --labels, of a data set or YAML file"
    )
    parser.add_argument("--template", action="append", help="text around a label (default '{}'); may be repeated")
    parser.add_argument("--reject", metavar="LABEL", help="a label for what is none of the others")
    parser.add_argument("--multi-label", action="store_true", help="judge each label by itself")
    parser.add_argument("--top-k", type=_positive, default=3, help="labels shown for each image (default 3)")
    parser.add_argument("--threshold", type=_share, default=0.0, help="show labels of this score or more")
    temperature = "above 1 makes scores less sure (eval finds one)"
    parser.add_argument("--temperature", type=_amount, default=1.0, metavar="NUMBER", help=temperature)
    parser.add_argument("--batch-size", type=_positive, default=32, help="images at once (default 32)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--format", choices=("table", "jsonl", "csv"), default="table", help="default: table")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the images with their labels to this PNG")


def classify(options: argparse.Namespace) -> int:
    from .classify import choose_words, classify_images, find_images, make_classifier

    classes, templates = choose_words(options.labels, options.prompts, options.template)
    images = find_images(options.images)
    if options.sheet is not None:
        check_file("--sheet", options.sheet, "sheet.png")
    model, processor = _load(options.model, options.device)
    classifier = make_classifier(
        model,
        processor,
        classes,
        templates,
        rejection=options.reject,
        multi_label=options.multi_label,
        temperature=options.temperature,
    )
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
    if unreadable:
        print(f"hf-clip: {unreadable} of {len(images)} images could not be read.", file=sys.stderr)
    return FAILED if unreadable else DONE


def _add_prompts(verbs) -> None:
    parser = _add_verb(
        verbs,
        "prompts",
        prompts,
        "the paper's class names and templates, one data set a line, or one of them",
        "hf-clip prompts EuroSAT",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set, or a YAML or JSON file of your own")


def prompts(options: argparse.Namespace) -> int:
    from hf_clip.prompts import describe_prompts, list_prompts, load_prompts

    if options.name is None:
        print(f"{'data set':32}{'classes':>8}{'templates':>11}{'best':>6}")
        for prompts in map(load_prompts, list_prompts()):
            counts = len(prompts.classes), len(prompts.templates), len(prompts.best_templates) or "-"
            print(f"{prompts.name:32}{counts[0]:8}{counts[1]:11}{counts[2]:>6}")
        return DONE
    try:
        print(describe_prompts(load_prompts(options.name)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return DONE


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


def _add_push(verbs) -> None:
    parser = _add_verb(
        verbs,
        "push",
        push,
        "put a model on the Hub, with its processor, card and code",
        "hf-clip push runs/emoji owner/emoji-clip --private",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a model's folder, of any format")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name; made where there is none")
    parser.add_argument("--private", action="store_true", help="the repository is private; one that is there must be")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made where there is none (default: main)")
    parser.add_argument(
        "--as",
        dest="to",
        choices=("hf_clip", "transformers"),
        default="hf_clip",
        help="transformers: its own CLIPModel or SiglipModel loads it, without other code (default: hf_clip)",
    )
    parser.add_argument("--message", help="of the commit")


def push(options: argparse.Namespace) -> int:
    from hf_clip.hub import PushArgumentError
    from hf_clip.hub.push import push as run_push
    from hf_clip.messages import in_callers_words

    try:
        url = run_push(
            options.folder,
            options.repo_id,
            private=options.private,
            revision=options.revision,
            to=options.to,
            message=options.message,
            say=partial(print, file=sys.stderr),
        )
    except PushArgumentError as error:
        names = {"folder": "FOLDER", "repo_id": "REPO_ID", "to": "--as", "revision": "--revision"}
        raise UsageError(in_callers_words(str(error), names, between=" ")) from error
    print(url)
    return DONE


def _add_doctor(verbs) -> None:
    parser = _add_verb(verbs, "doctor", doctor, "what is installed, what works, what would be fast", "hf-clip doctor")
    parser.add_argument("--json", action="store_true", help="as JSON, for bug reports")
    parser.add_argument(
        "--architectures", action="store_true", help="the architectures that can be named, with their sizes"
    )


def doctor(options: argparse.Namespace) -> int:
    from hf_clip.model.configuration_hf_clip import read_architectures
    from hf_clip_cli.doctor import examine, table, table_of_architectures

    if options.architectures:
        findings, show = list(read_architectures().values()), table_of_architectures
    else:
        findings, show = examine(), table
    print(json.dumps(findings, indent=2) if options.json else show(findings))
    return DONE


def _load(source: str, device: str | None):
    """Model and processor of a checkpoint of any format, on the device."""
    from .models import open_model, usable_device

    return open_model(source, usable_device(device))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return amount


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _quieten_libraries() -> None:
    """Libraries' bars and notes would bury the command's own lines; their warnings stay."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("datasets").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
