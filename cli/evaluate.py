"""`hf-clip eval`: a task's arguments, and all that can be wrong with them before anything heavy is imported."""

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from .arguments import (
    OrderedLabels,
    Parser,
    Several,
    add_data,
    add_looks,
    add_model,
    add_templates,
    add_verb,
    amount,
    check_data,
    check_model,
    check_templates,
    fraction,
    natural,
    positive,
    values_by_column,
)
from .outputs import Outputs
from .usage import UsageError, start_library

# File names of each task's plots; of several models one is drawn, comparison.png.
PLOTS = {
    "zero-shot": ("confusion.png", "calibration.png", "per_template.png"),
    "retrieval": ("recall.png",),
    "linear-probe": ("sweep.png",),
    "few-shot": ("few_shot.png",),
    "robustness": ("robustness.png",),
    "languages": ("languages.png",),
}
# Tasks whose classes no data names, and those that draw nothing.
NEED_LABELS = ("segmentation", "groups")
WITHOUT_PLOTS = (*NEED_LABELS, "clip-score", "captions")
# What `robustness` does to images.
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "gaussian_blur",
    "brightness",
    "contrast",
    "saturate",
    "pixelate",
    "jpeg",
)


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "eval",
        run,
        "evaluate models on a data set",
        "hf-clip eval retrieval --model runs/emoji --data examples/emoji/twemoji.parquet --where split=test",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=Parser)
    for name, add_task, columns, description, example in _tasks():
        usage = f"hf-clip eval {name} --model MODEL --data DATA [options]"
        one = add_verb(
            tasks, name, None, description, f"hf-clip eval {name} --model runs/emoji {example}", usage=usage
        )
        add_model(one, several=True, dtype="float32")
        add_data(one, columns)
        add_task(one)
        _add_outcome(one, name)


def _tasks() -> list[tuple[str, Callable, list[str], str, str]]:
    """Name, arguments, columns that are read, description and example of each task."""
    fashion, noto, twemoji = "fashion/test_small.parquet", "emoji/noto.parquet", "emoji/twemoji.parquet"
    train_and_test = f"--train-data examples/{noto} --data examples/{twemoji} --label-column group"
    return [
        ("zero-shot", _add_zero_shot, ["label"], "images among classes, by their names", f"--data examples/{fashion}"),
        (
            "retrieval",
            _add_retrieval,
            ["caption", "concept"],
            "images among captions, captions among images",
            f"--data examples/{twemoji} --by group",
        ),
        (
            "languages",
            _add_languages,
            [],
            "retrieval in each language of a table of captions",
            f"--data examples/{twemoji} --captions-data examples/emoji/captions.parquet --key-column concept",
        ),
        (
            "linear-probe",
            _add_linear_probe,
            ["label"],
            "logistic regression on the image tower's features",
            train_and_test,
        ),
        (
            "few-shot",
            _add_few_shot,
            ["label"],
            "linear probes on 1 to 16 images a class",
            f"{train_and_test} --shots 1 2 4",
        ),
        (
            "robustness",
            _add_robustness,
            ["label"],
            "zero-shot on damaged images, or on other data",
            f"--data examples/{fashion} --corruptions jpeg",
        ),
        *_further_tasks(twemoji),
    ]


def _further_tasks(twemoji: str) -> list[tuple[str, Callable, list[str], str, str]]:
    return [
        (
            "segmentation",
            _add_segmentation,
            ["mask"],
            "pixels among classes, by masks: mean IoU",
            "--data test.parquet --labels sky road car",
        ),
        (
            "groups",
            _add_groups,
            [],
            "how often each group's images are given each label",
            f"--data examples/{twemoji} --labels animal person --by group",
        ),
        (
            "clip-score",
            lambda parser: None,
            ["caption"],
            "how well images fit their texts, such as those of a generator",
            f"--data examples/{twemoji} --where split=test",
        ),
        ("captions", _add_captions, ["caption"], "a CoCa's captions beside the data's", f"--data examples/{twemoji}"),
    ]


def _add_outcome(parser: argparse.ArgumentParser, task: str) -> None:
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images at once (default 64)")
    if task in ("segmentation", "captions"):
        parser.set_defaults(cache_dir=None, no_cache=True)
    else:
        parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="folder of features (default: in HF_HOME)")
        parser.add_argument("--no-cache", action="store_true", help="keep no features")
    parser.add_argument("--title", help="name of the result")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON too")
    if task in WITHOUT_PLOTS:
        parser.set_defaults(plots=None)
    else:
        parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file of another kind")
    if task == "clip-score":
        # A score of images says nothing of the model.
        parser.set_defaults(push_to_card=False)
        return
    parser.add_argument("--push-to-card", action="store_true", help="write the numbers into the model's card")


def _add_words(parser: argparse.ArgumentParser) -> None:
    labels = "class names, matched by words, or @FILE"
    parser.add_argument("--labels", action=OrderedLabels, metavar="NAME", help=labels)
    add_templates(parser)


def _add_by(parser: argparse.ArgumentParser) -> None:
    help_of_by = "measure each value of these columns too, as of lang"
    parser.add_argument("--by", action=Several, default=[], metavar="COLUMN", help=help_of_by)


def _add_zero_shot(parser: argparse.ArgumentParser) -> None:
    _add_words(parser)
    _add_by(parser)
    parser.add_argument("--multi-label", action="store_true", help="labels are lists: mean average precision")
    parser.add_argument("--per-template", action="store_true", help="measure each template alone too")
    selection = "write templates that help, for --prompts to read"
    parser.add_argument("--select-templates", type=Path, metavar="F", help=selection)
    temperature = "divides logits, before calibration is measured"
    parser.add_argument("--temperature", type=amount, default=1.0, metavar="NUMBER", help=temperature)
    parser.add_argument("--fit-temperature", action="store_true", help="find the temperature that fits scores best")
    point = "thresholds of known error, such as fpr=0.01"
    parser.add_argument("--operating-point", type=_rates, metavar="RATE", help=point)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write them for classify --decisions to read")


def _add_retrieval(parser: argparse.ArgumentParser) -> None:
    captions = "captions of an image that are candidates (default: all)"
    parser.add_argument("--captions", choices=("first", "all"), default="all", help=captions)
    _add_by(parser)


def _add_languages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions-data", action=Several, required=True, metavar="DATA", help="table of captions")
    key = "column by which the table's rows belong to images"
    parser.add_argument("--key-column", required=True, metavar="NAME", help=key)
    column = "the table's column of languages (default lang)"
    parser.add_argument("--language-column", default="lang", metavar="NAME", help=column)
    captions = "the table's column of captions (default: by its name)"
    parser.add_argument("--caption-column", metavar="NAME", help=captions)
    parser.add_argument("--languages", action=Several, metavar="LANG", help="measure these alone")
    reference = "language that the others are compared with (default en)"
    parser.add_argument("--reference", default="en", metavar="LANG", help=reference)


def _add_captions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=positive, default=1, metavar="N", help="beams of the search (default 1)")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="tokens of a caption (default: all it has)")


def _add_training_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-data", action=Several, metavar="DATA", help="data to train on (default: as --data)")
    parser.add_argument("--train-split", metavar="NAME", help="split to train on")
    where = "keep these rows to train on"
    parser.add_argument("--train-where", action=Several, default=[], metavar="COL=VALUE", help=where)
    validation = "split of the training data (default: a fifth of it)"
    parser.add_argument("--validation-split", metavar="NAME", help=validation)


def _add_linear_probe(parser: argparse.ArgumentParser) -> None:
    _add_training_data(parser)
    _add_by(parser)
    parser.add_argument(
        "--seed", type=natural, metavar="N", default=0, help="seed of the validation split (default 0)"
    )


def _add_few_shot(parser: argparse.ArgumentParser) -> None:
    _add_training_data(parser)
    _add_words(parser)
    shots = "images of each class (default 1 2 4 8 16)"
    parser.add_argument("--shots", action=Several, convert=positive, default=[1, 2, 4, 8, 16], metavar="N", help=shots)
    parser.add_argument("--num-seeds", type=positive, default=5, metavar="N", help="number of trials (default 5)")


def _add_robustness(parser: argparse.ArgumentParser) -> None:
    _add_words(parser)
    kinds = "kinds of damage, such as jpeg (default: all)"
    parser.add_argument("--corruptions", action=Several, convert=_corruption, metavar="NAME", help=kinds)
    severities = "degrees of damage, 1 to 5 (default: all)"
    parser.add_argument("--severities", action=Several, convert=_severity, metavar="N", help=severities)
    parser.add_argument(
        "--shifted-data", action=Several, metavar="DATA", help="other data of the same classes instead"
    )
    parser.add_argument("--shifted-split", metavar="NAME", help="split of the other data, if it has several")
    where = "keep these rows of the other data"
    parser.add_argument("--shifted-where", action=Several, default=[], metavar="COL=VALUE", help=where)
    baselines = "JSON: [{top_1, shifted_top_1}, ...] of others"
    parser.add_argument("--baselines", type=Path, metavar="FILE", help=baselines)


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    labels = "classes in the order of their indices, or @FILE"
    parser.add_argument("--labels", action=OrderedLabels, metavar="NAME", help=labels)
    add_templates(parser)
    background = "index 0 is what no class scores so high at"
    parser.add_argument("--background", type=fraction, metavar="SCORE", help=background)
    add_looks(parser)


def _add_groups(parser: argparse.ArgumentParser) -> None:
    _add_words(parser)
    groups = "columns whose values are the groups"
    parser.add_argument("--by", action=Several, required=True, metavar="COLUMN", help=groups)


def _rates(text: str) -> dict[str, float]:
    """`fpr=0.01` or `fpr=0.01,fnr=0.1` by the names of `OperatingPoint`."""
    names = {"fpr": "false_positive_rate", "fnr": "false_negative_rate"}
    found = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            rate = float(value)
        except ValueError:
            rate = 0.0
        if name not in names or names[name] in found or not 0 < rate < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no operating point: write fpr=0.01, or fpr=0.01,fnr=0.1")
        found[names[name]] = rate
    if "false_positive_rate" not in found:
        raise argparse.ArgumentTypeError(f"{text!r} has no fpr: write fpr=0.01, or fpr=0.01,fnr=0.1")
    return found


def _corruption(text: str) -> str:
    if text not in CORRUPTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is no corruption: use {', '.join(CORRUPTIONS)}")
    return text


def _severity(text: str) -> int:
    if text not in ("1", "2", "3", "4", "5"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 5")
    return int(text)


def run(options: argparse.Namespace) -> int:
    for model in options.model:
        check_model(model)
        if options.model.count(model) > 1:
            raise UsageError(f"--model {model} is given twice: name each model once.")
    check_words(options)
    _check_task(options)
    for flag in ("--data", "--train-data", "--shifted-data", "--captions-data"):
        check_data(getattr(options, flag[2:].replace("-", "_"), None) or [], flag)
    _check_outputs(options)
    start_library()
    from .tasks import run_evaluation

    return 0 if run_evaluation(options) else 1


def check_words(options: argparse.Namespace) -> None:
    """Templates and conditions that cannot be meant."""
    if hasattr(options, "templates"):
        check_templates(options.prompts, options.templates)
    values_by_column(options.where)
    if options.task == "zero-shot":
        studies = options.per_template or options.select_templates
        if options.multi_label and (studies or options.fit_temperature):
            raise UsageError(
                "--per-template, --select-templates and --fit-temperature need one label an image: give them without "
                "--multi-label."
            )
        if studies and options.templates is not None:
            check_comparison(options.templates)
        if options.save is not None and options.operating_point is None:
            raise UsageError("--save writes thresholds: say how wrong they may be, with --operating-point fpr=0.01.")


def check_comparison(templates: Sequence[str]) -> None:
    """Raises UsageError for too few templates to compare."""
    if len(templates) < 2:
        raise UsageError(
            "--per-template and --select-templates compare templates: give two or more with --templates, or --prompts."
        )


def _check_task(options: argparse.Namespace) -> None:
    """Arguments of a task that need each other, or exclude each other."""
    if hasattr(options, "train_data"):
        if not (options.train_data or options.train_split or options.train_where):
            raise UsageError(f"{options.task} trains: say on what, with --train-data, --train-split or --train-where.")
        values_by_column(options.train_where, "--train-where")
        _refuse_training_rows(options)
    if options.task in NEED_LABELS and options.labels is None and options.prompts is None:
        raise need_labels(options.task)
    if options.task != "robustness":
        return
    if options.shifted_data and (options.corruptions or options.severities):
        raise UsageError("--shifted-data and --corruptions are two measurements: ask for one at a time.")
    if options.baselines is not None:
        if not options.shifted_data:
            raise UsageError("--baselines are of two data sets: name the second with --shifted-data.")
        read_baselines(options.baselines)


def need_labels(task: str) -> UsageError:
    """The error of a task whose classes nobody named."""
    return UsageError(f"{task} needs class names: give --labels, or --prompts of a data set with classes.")


def _refuse_training_rows(options: argparse.Namespace) -> None:
    """Raises UsageError where the model would be tested on what the probe is fitted on."""
    if options.train_data not in (None, options.data):
        return
    differ = [
        one and other and one != other
        for one, other in ((options.split, options.train_split), (options.where, options.train_where))
    ]
    if not any(differ):
        raise UsageError(
            f"{options.task} would be tested on rows that it trains on: say which rows to test on, with --split or "
            "--where, and which to train on, with --train-split or --train-where."
        )


def read_baselines(file: Path) -> list[tuple[float, float]]:
    """Pairs (top-1, top-1 on shifted data) of other models from a JSON file."""
    try:
        return [(float(row["top_1"]), float(row["shifted_top_1"])) for row in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--baselines {file} is no JSON list of objects with top_1 and shifted_top_1 ({error})."
        ) from None


def _check_outputs(options: argparse.Namespace) -> None:
    """What would fail after hours of work fails now."""
    outputs = Outputs(options.overwrite)
    outputs.reads("--model", options.model, is_data=False)
    outputs.reads("@FILE", getattr(options, "list_files", []))
    for name in ("data", "train_data", "shifted_data", "captions_data"):
        outputs.reads(f"--{name.replace('_', '-')}", getattr(options, name, None) or [])
    for name in ("prompts", "baselines"):
        outputs.reads(f"--{name}", [getattr(options, name, None)])
    chosen = getattr(options, "select_templates", None)
    if chosen is not None and len(options.model) > 1:
        raise UsageError("--select-templates chooses for one model: give --model one.")
    saved = getattr(options, "save", None)
    if saved is not None:
        if len(options.model) > 1:
            raise UsageError("--save writes the thresholds of one model: give --model one.")
        if saved.suffix != ".safetensors":
            raise UsageError(f"--save {saved}: name a file that ends in .safetensors.")
        outputs.file("--save", saved, "decisions in safetensors")
    if options.output is not None:
        outputs.file("--output", options.output, "a result in JSON")
        if chosen is not None and options.output.absolute() == chosen.absolute():
            raise UsageError("--output and --select-templates name one file: name two.")
    if chosen is not None:
        if chosen.suffix.lower() not in (".yaml", ".yml"):
            raise UsageError(f"--select-templates {chosen}: name a file that ends in .yaml, as --prompts reads it.")
        outputs.file("--select-templates", chosen, "templates in YAML")
    if options.cache_dir is not None and not options.no_cache:
        outputs.folder("--cache-dir", options.cache_dir)
    if options.plots is not None:
        outputs.folder("--plots", options.plots)
        if find_spec("matplotlib") is None:
            raise UsageError("--plots needs matplotlib: pip install 'hf_clip[demo]'.")
        for name in ("comparison.png",) if len(options.model) > 1 else PLOTS[options.task]:
            if (file := options.plots / name).exists():
                outputs.file("--plots", file, "a plot in PNG")
    if options.push_to_card and options.revision is not None:
        raise UsageError("--push-to-card writes into the card of main: give it without --revision.")
    for model in options.model if options.push_to_card else []:
        if Path(model).is_file():
            raise UsageError(f"--push-to-card: {model} is a file, which has no card: convert it to a folder first.")
