"""`hf-clip serve`: a model that stays warm, and an index to search in, for programs and in a browser."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import Several, add_load_options, add_verb, check_model, load_options, natural
from .index import add_index
from .server_calls import place_of
from .shown_log import shown_log
from .usage import UsageError, start_library

if TYPE_CHECKING:
    from hf_clip.serving import Service

TOKEN_VARIABLE = "HF_CLIP_TOKEN"


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "serve",
        run,
        "serve a model or an index: a page to search in, and an API in OpenAI's form",
        "hf-clip serve photos/ --port 7860",
        usage="hf-clip serve INDEX_OR_MODEL [options]",
    )
    parser.commands["update"] = "hf-clip index"
    what = "the folder that `hf-clip index` was given, a checkpoint of any format, or a Hub id"
    parser.add_argument("source", metavar="INDEX_OR_MODEL", help=what)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: this machine alone)"
    )
    parser.add_argument("--port", type=natural, default=7860, metavar="N", help="0 takes a free one (default 7860)")
    token = f"what callers must show; {TOKEN_VARIABLE} in the environment is not seen by others"
    parser.add_argument("--token", metavar="TEXT", help=token)
    hosts = "more names by which it is called, such as a proxy's"
    parser.add_argument("--allow-host", action=Several, default=[], dest="allowed_hosts", metavar="NAME", help=hosts)
    parser.add_argument("--model", help="which model of the index (default: the current one)")
    add_index(parser)
    add_load_options(parser)


def run(options: argparse.Namespace) -> int:
    is_index = options.index is not None or _has_index(options.source)
    if is_index and options.model is not None:
        check_model(options.model)
    if not is_index:
        if options.model is not None:
            fix = f"run hf-clip index {options.source} --model {options.model} first."
            raise UsageError(f"{options.source} has no index: {fix}")
        if Path(options.source).is_dir() and not any(Path(options.source).glob("*.json")):
            fix = f"run hf-clip index {options.source} --model MODEL first."
            raise UsageError(f"{options.source} is no model, and has no index: {fix}")
        check_model(options.source, "INDEX_OR_MODEL")
    # Before seconds of imports.
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    if options.port > 65535:
        raise UsageError(f"--port {options.port} is no port: 65535 is the highest.")
    start_library()
    from hf_clip.serving import serve
    from hf_clip.serving.running import ServeError

    def open_service() -> "Service":
        begun = time.monotonic()
        _say(f"opening {options.source} ...")
        service = _open_index(options) if is_index else _open_model(options)
        _say(f"{service.name} is loaded ({time.monotonic() - begun:.1f} s).")
        return service

    try:
        with shown_log("hf_clip.serving", prefix="hf-clip: "):
            serve(open_service, host=options.host, port=options.port, token=token, allowed_hosts=options.allowed_hosts)
    except ServeError as error:
        raise UsageError(str(error)) from error
    return 0


def _has_index(source: str) -> bool:
    return place_of(Path(source)).is_dir()


def _open_index(options: argparse.Namespace) -> "Service":
    from hf_clip.serving import open_index

    from .models import usable_device

    more = load_options(options) if options.model is not None else {}
    device = usable_device(options.device)
    return open_index(options.source, model=options.model, index=options.index, device=device, **more)


def _open_model(options: argparse.Namespace) -> "Service":
    from hf_clip.serving import open_model

    from .models import open_model as load_model
    from .models import usable_device

    try:
        model, processor = load_model(options.source, usable_device(options.device), load_options(options))
    except UsageError as error:
        raise UsageError(str(error).replace("--model", "INDEX_OR_MODEL", 1)) from error
    return open_model(model, processor)


def _say(line: str) -> None:
    print(f"hf-clip: {line}", file=sys.stderr, flush=True)
