"""Parsing, running a verb, and telling how it ended: exit codes, one line for an error, streams that nobody reads."""

import argparse
import errno
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .arguments import Parser
from .main import DONE, FAILED
from .streams import GuardedStream, guarded_streams
from .usage import one_line, printable

# What brings a package that is missing.
_EXTRAS = {
    **dict.fromkeys(("lancedb", "filelock"), "search"),
    **dict.fromkeys(("scipy", "sklearn"), "eval"),
    "ray": "ray",
    **dict.fromkeys(("fastapi", "uvicorn"), "app"),
    **dict.fromkeys(("sacrebleu", "rouge_score"), "captions"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "openvino"), "export"),
}
# Verbs, in the order of the help, and the module of each.
VERBS = {
    "train": "train",
    "plan": "plan",
    "teach": "teach",
    "compare": "compare",
    "average": "average",
    "eval": "evaluate",
    "classify": "classify",
    "caption": "caption",
    "locate": "locate",
    "index": "index",
    "search": "search",
    "serve": "serve",
    "dedup": "dedup",
    "embed": "embed",
    "prompts": "prompts",
    "convert": "convert",
    "export": "export",
    "push": "push",
    "doctor": "doctor",
}


def run(arguments: Sequence[str] | None) -> int:
    """Runs one verb and returns the exit code."""
    with guarded_streams() as (stdout, was_closed):
        code = _run(arguments, stdout)
        if stdout.error is not None and not stdout.has_no_reader and code == DONE:
            print(f"hf-clip: standard output cannot be written: {one_line(stdout.error)}", file=sys.stderr)
            code = FAILED
        if was_closed:
            print("hf-clip: standard output is closed: what would stand there is lost.", file=sys.stderr)
    return code


def _run(arguments: Sequence[str] | None, stdout: GuardedStream) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = argparse.Namespace(parser=make_parser(given[0] if given else None), debug=False)
    try:
        options, unknown = options.parser.parse_known_args(arguments)
        if unknown:
            options.parser.refuse(unknown)
        stdout.stops = options.prints_results
        code = options.run(options)
        stdout.flush()
        return code
    except KeyboardInterrupt:
        print("hf-clip: interrupted.", file=sys.stderr)
        return FAILED
    except Exception as error:
        if error is stdout.error:
            # Said by the caller, unless a reader left: then all is done that anyone wants.
            return DONE
        if options.debug:
            import traceback

            traceback.print_exc()
        print(f"hf-clip: {_message(error, options.parser)}", file=sys.stderr)
        return getattr(error, "exit_code", FAILED)


def make_parser(verb: str | None = None) -> Parser:
    """The command's parser, with that of a verb, or of every one for anything else.

    A search that a server answers takes less time than the parsers of all verbs.
    """
    parser = Parser(
        prog="hf-clip",
        description="CLIP on the Hugging Face stack: train, evaluate and use dual encoders of images and texts.",
        epilog="hf-clip VERB --help shows a verb's options and an example.",
    )
    parser.add_argument("--version", action="version", version=f"hf-clip {_version()}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for module in [VERBS[verb]] if verb in VERBS else VERBS.values():
        import_module(f".{module}", __package__).add(verbs)
    return parser


def _version() -> str:
    """The package's version, read from its text: importing the package takes seconds."""
    text = (Path(__file__).parents[1] / "hf_clip/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    return found[1] if found else "of unknown version"


def _message(error: Exception, parser: Parser) -> str:
    """One line for an error in the command's words, with the fix of those that libraries raise without one."""
    message = one_line(error)
    if "`" in message and "hf_clip" in sys.modules:
        from hf_clip.messages import in_callers_words

        message = in_callers_words(message, parser.flags(), between=" ")
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "train")
        message += f": pip install 'hf_clip[{extra}]' installs what it needs."
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message += ": free some space; a run that was training goes on with --resume."
    return printable(message)
