"""What the verbs' parsers have in common: flags for models and data, lists of values, checks that need no library."""

import argparse
import glob
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .refusals import REFUSALS
from .usage import UsageError

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "npu", "xla")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
CLEANINGS = ("whitespace", "lower", "canonicalize", "none")
# Of a vision transformer's last layer, where places are looked for.
ATTENTIONS = ("plain", "query-key", "value", "query", "neighbors")
WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
DATA_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".tar")
# Of OpenAI's names those without a slash.
_OPENAI_RESNET = re.compile(r"RN\d+(x\d+)?")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageErrors of one line, and whose flags are written out."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: Sequence[str] = ()
        # What the command calls methods that messages name.
        self.commands: dict[str, str] = {}
        # Flags that stand for an argument beside its own: class names may come from --prompts.
        self.said_as: dict[str, str] = {}

    def parse_known_args(self, args=None, namespace=None):
        """What argparse does; the arguments are kept for `error`."""
        self._given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        flags = [one for one in self._given if one.startswith("--") and len(one) > 2]
        if "required" in message and self._subparsers is None:
            # A misspelt flag is why another is missing.
            self._refuse_misspelt([one for one in flags if one.partition("=")[0] not in self._option_string_actions])
        message = re.sub(r"^argument ([^:]*):", r"\1:", message)
        if asked := re.match(r"(VERB|TASK): invalid choice: '([^']*)' \(choose from (.*)\)$", message):
            self._refuse_choice(asked[1].lower(), asked[2], re.findall(r"[\w-]+", asked[3]))
        if "are required: IMAGE" in message:
            message += " (images come before flags, or after --)"
        raise UsageError(f"{message}: see {self.prog} --help.")

    def flags(self) -> dict[str, str]:
        """The name that each argument has on the command line, and what runs a method."""
        names = dict(self.commands)
        for action in self._actions:
            metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            names[action.dest] = action.option_strings[-1] if action.option_strings else metavar
        return names | self.said_as

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raises UsageError for arguments that no flag takes, with the nearest flag."""
        self._refuse_misspelt([one for one in unknown if one.startswith("-")])
        raise UsageError(f"{unknown[0]!r} is one argument too many: see {self.prog} --help.")

    def _refuse_choice(self, kind: str, given: str, known: Sequence[str]) -> NoReturn:
        """Raises UsageError for a word that is no verb or task, with what does that, or the nearest one."""
        if given in REFUSALS:
            raise UsageError(f"{given!r} is no {kind}: {REFUSALS[given]}")
        near = nearest(given, known)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
        raise UsageError(f"{given!r} is no {kind} of {self.prog}: {hint} See {self.prog} --help.")

    def _refuse_misspelt(self, flags: Sequence[str]) -> None:
        if not flags:
            return
        flag = flags[0]
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        near = nearest(flag.partition("=")[0], known, cutoff=0.5)
        hint = f"did you mean {near[0]}? Or " if near else ""
        raise UsageError(f"{flag} is not a flag of {self.prog}: {hint}see {self.prog} --help.")


def nearest(given: str, known: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The known word that is most like the one that was given, or none."""
    import difflib

    return difflib.get_close_matches(given, known, n=1, cutoff=cutoff)


def add_verb(
    verbs,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    description: str,
    example: str,
    *,
    usage: str | None = None,
    prints_results: bool = False,
) -> Parser:
    """A verb's parser, with `--debug`.

    Args:
        run: does the work and returns the exit code; None for a task of a verb that has one.
        prints_results: the verb is done when nobody reads its lines any more.
    """
    parser = verbs.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example: {example}",
        usage=usage,
        formatter_class=_Help,
    )
    default = {"default": argparse.SUPPRESS} if run is None else {}
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error", **default)
    parser.set_defaults(parser=parser)
    if run is not None:
        parser.set_defaults(run=run, prints_results=prints_results)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help whose example is kept as it is, and that shows several values as `NAME ...`."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def start_section(self, heading: str | None) -> None:
        # That flags are options needs no line of a screen.
        super().start_section(None if heading == "options" else heading)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


class Several(argparse.Action):
    """One or more values after a flag; `@FILE` stands for the lines of a file, without the empty ones.

    `convert` makes each value of its text. The files read are kept in `list_files`.
    """

    def __init__(self, *args, convert: Callable[[str], Any] = str, **options):
        super().__init__(*args, **{"nargs": "+", **options})
        self.convert = convert

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        # A flag that is given again adds to its values: none is lost.
        is_first = getattr(namespace, self.dest, self.default) is self.default
        found = [] if is_first else list(getattr(namespace, self.dest))
        for value in values if isinstance(values, list) else [values]:
            try:
                found += [self.convert(text) for text in self._texts(str(value), namespace)]
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, found)

    def _texts(self, value: str, namespace: argparse.Namespace) -> list[str]:
        if not value.startswith("@"):
            return self.split(value)
        file = Path(value[1:])
        try:
            # With or without the byte order mark that Windows' editors write.
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except FileNotFoundError:
            raise argparse.ArgumentTypeError(f"{value}: there is no file {file}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{value}: {file} is not a text file in UTF-8 ({error})") from None
        if not any(lines):
            raise argparse.ArgumentTypeError(f"{value}: {file} is empty")
        namespace.list_files = [*getattr(namespace, "list_files", []), file]
        return self.kept(lines, value)

    def split(self, value: str) -> list[str]:
        """The values within one argument."""
        return [value]

    def kept(self, lines: list[str], value: str) -> list[str]:
        """The lines of a file that are values."""
        return [line for line in lines if line]


class Labels(Several):
    """Class names: several values, commas between them, or `@FILE` with one a line."""

    def split(self, value: str) -> list[str]:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if not names:
            raise argparse.ArgumentTypeError(f"{value!r} names no label: give some, such as cat dog")
        return names


class OrderedLabels(Labels):
    """Class names whose position is their index, so that a file has no empty line among them."""

    def kept(self, lines: list[str], value: str) -> list[str]:
        while not lines[-1]:
            lines.pop()
        if "" in lines:
            place = lines.index("") + 1
            raise argparse.ArgumentTypeError(f"{value}: line {place} is empty: write one name a line, in their order")
        return lines


def add_model(parser: argparse.ArgumentParser, *, several: bool = False, dtype: str | None = "auto") -> None:
    """`--model` and what `load` takes about it; `dtype` by default."""
    if several:
        parser.add_argument(
            "--model", required=True, action=Several, metavar="MODEL", help="checkpoints of any format, or Hub ids"
        )
    else:
        parser.add_argument("--model", required=True, help="a checkpoint of any format, or a Hub id")
    add_load_options(parser, dtype=dtype)


def add_load_options(
    parser: argparse.ArgumentParser,
    *,
    hub_revision: bool = True,
    default_device: str = "the fastest",
    dtype: str | None = None,
) -> None:
    """What `load` takes about a checkpoint; `hub_revision` where it may be a Hub id, `dtype` by default."""
    architecture = "architecture of bare weights, such as ViT-B-32"
    activation = "activation of bare weights, such as quick_gelu"
    parser.add_argument("--architecture", metavar="NAME", help=architecture)
    parser.add_argument("--hidden-act", choices=ACTIVATIONS, metavar="NAME", help=activation)
    cleaning = "lower, canonicalize, ... (default: the checkpoint's)"
    parser.add_argument("--text-cleaning", choices=CLEANINGS, metavar="NAME", help=cleaning)
    if hub_revision:
        parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub id")
    parser.add_argument("--base", metavar="MODEL", help="model of an adapter (default: the one that it names)")
    parser.add_argument("--device", type=device, help=f"cpu, cuda, cuda:1, ... (default: {default_device})")
    of_file = "the file's"
    of_weights = DTYPES[1:] if default_device == "cpu" else DTYPES
    said = f"{', '.join(of_weights)} (default: {dtype or of_file})"
    parser.add_argument("--dtype", choices=of_weights, default=dtype, metavar="NAME", help=said)


def load_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_load_options` read, but for the device."""
    names = ("architecture", "hidden_act", "text_cleaning", "revision", "base", "dtype")
    return {name: getattr(options, name) for name in names}


def check_model(source: str, flag: str = "--model") -> None:
    """Raises UsageError for a path of which nothing is there, before anything heavy is imported."""
    name = source.removeprefix("local-dir:")
    if not name:
        raise UsageError(f"{flag} is empty: give a checkpoint, or a Hub id (owner/name).")
    if Path(name).expanduser().exists() or source.startswith("hf-hub:"):
        return
    is_path = name.startswith((".", "/", "~")) or Path(name).suffix in WEIGHTS_SUFFIXES
    if is_path or name.count("/") > 1 or ("/" not in name and not _OPENAI_RESNET.fullmatch(name)):
        raise UsageError(f"{flag} {source} does not exist: give a checkpoint, or a Hub id (owner/name).")


def add_data(parser: argparse.ArgumentParser, columns: Sequence[str]) -> None:
    """`--data` and what says which part of it is meant.

    Args:
        columns: those of "label", "caption", "mask" and "concept" that the verb reads beside images.
    """
    parser.add_argument("--data", required=True, action=Several, help="files, a folder, or a Hub id")
    parser.add_argument("--split", metavar="NAME", help="split to use, if the data has several")
    where = "keep the rows that have one of these values"
    parser.add_argument("--where", action=Several, default=[], metavar="COL=VALUE", help=where)
    parser.add_argument("--image-column", metavar="NAME", help="column of images (default: found by name)")
    if "label" in columns:
        parser.add_argument("--label-column", metavar="NAME", help="column of classes (default: found by name)")
    if "caption" in columns:
        captions = "columns of captions (default: found by name)"
        parser.add_argument("--caption-columns", action=Several, metavar="NAME", help=captions)
    if "mask" in columns:
        masks = "images of class indices (default: mask)"
        parser.add_argument("--mask-column", default="mask", metavar="NAME", help=masks)
    if "concept" in columns:
        concepts = "column whose equal values are images of one thing"
        parser.add_argument("--concept-column", metavar="NAME", help=concepts)


def check_data(data: Sequence[str], flag: str = "--data") -> None:
    """Raises UsageError for a path of which nothing is there, before anything heavy is imported."""
    for item in data:
        if not item:
            raise UsageError(
                f"{flag} is empty: give files, a folder or a Hub id; a variable of the shell may be empty."
            )
        if Path(item).exists() or "://" in item:
            continue
        is_path = item.startswith((".", "/", "~")) or Path(item).suffix.lower() in DATA_SUFFIXES
        if is_path and not glob.glob(item, recursive=True):
            raise UsageError(f"{flag} {item} does not exist: give files, a folder or a Hub id (owner/name).")


def values_by_column(conditions: Sequence[str], flag: str = "--where") -> dict[str, list[str]]:
    """The values that rows may have in each column; a column named twice may have either value."""
    values: dict[str, list[str]] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise UsageError(f"{flag} {condition!r} is not COLUMN=VALUE: write it as --where label=cat.")
        values.setdefault(column, []).append(value)
    return values


def add_templates(parser: argparse.ArgumentParser) -> None:
    """`--prompts` and `--templates`: the texts around class names."""
    prompts = "templates and classes of a known data set, or a file"
    parser.add_argument("--prompts", metavar="NAME", help=prompts)
    templates = "texts with {} for a name (default: the model's)"
    parser.add_argument("--templates", action=Several, metavar="TEXT", help=templates)


def add_looks(parser: argparse.ArgumentParser) -> None:
    """How images are looked at to find places in them."""
    attention = f"{', '.join(ATTENTIONS)} (default: query)"
    parser.add_argument("--attention", choices=ATTENTIONS, default="query", metavar="NAME", help=attention)
    scales = "windows' sides, of the shorter edge (default: by tower)"
    parser.add_argument("--scales", action=Several, convert=_scale, metavar="FRACTION", help=scales)
    resolution = "pixels a window's side has for the model"
    parser.add_argument("--resolution", type=positive, metavar="N", help=resolution)


def check_templates(prompts: str | None, templates: Sequence[str] | None) -> None:
    """Raises UsageError for two kinds of templates, and for one without a place for the name."""
    if prompts is not None and templates:
        raise UsageError("--prompts and --templates both give templates: use one of them.")
    for template in templates or []:
        if "{}" not in template:
            raise UsageError(f"--templates {template!r} has no '{{}}': put '{{}}' where the class's name belongs.")
    if prompts is not None and Path(prompts).suffix.lower() in (".yaml", ".yml", ".json"):
        existing_file("--prompts", Path(prompts))


def check_labels(labels: Sequence[str] | None, prompts: str | None) -> None:
    """Raises UsageError for no labels, and for a data set's name as the only one."""
    if labels is None and prompts is None:
        raise UsageError("there are no labels: give some with --labels, or --prompts of a data set with classes.")
    folder = Path(__file__).parents[1] / "hf_clip/assets/prompts"
    named = {file.stem.lower(): file.stem for file in folder.glob("*.json")}
    if labels is not None and len(labels) == 1 and labels[0].lower() in named:
        name = named[labels[0].lower()]
        raise UsageError(f"--labels {labels[0]} is a single label: --prompts {name} gives that data set's classes.")


def existing_file(flag: str, file: Path) -> None:
    if not file.is_file():
        raise UsageError(f"{flag} {file}: there is no file {file}.")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    if int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is more than any count here: give a smaller number")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def amount(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return found


def fraction(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return found


def _scale(text: str) -> float:
    found = fraction(text)
    if not found:
        raise argparse.ArgumentTypeError("0 is no side of a window: give fractions above 0, up to 1")
    return found


def device(text: str) -> str:
    """The name of a device, spelled as torch does; whether there is such a device is seen later."""
    kind, _, index = text.partition(":")
    if kind not in DEVICES or (":" in text and not index.isdecimal()):
        near = nearest(kind, DEVICES)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a device: "
            + (f"did you mean {near[0]}?" if near else f"use one of {', '.join(DEVICES)}")
        )
    return text
