"""`hf-clip push`: a model to the Hub."""

import argparse
from pathlib import Path

from .arguments import add_load_options, add_verb, load_options
from .shown_log import shown_log
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "push",
        run,
        "put a model on the Hub, with its processor, card and code",
        "hf-clip push runs/emoji owner/emoji-clip --private",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a model's folder or weights, of any format")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name; made where there is none")
    parser.add_argument("--private", action="store_true", help="make the repository private; one that exists must be")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made where there is none (default: main)")
    parser.add_argument(
        "--to",
        choices=("hf_clip", "transformers", "peft"),
        default="hf_clip",
        help="format; transformers: its own CLIPModel or SiglipModel loads it; peft: adapters (default: hf_clip)",
    )
    space = "make a Space (Gradio) of the same name, too, in which people try it"
    parser.add_argument("--space", action="store_true", help=space)
    parser.add_argument("--message", help="message of the commit")
    add_load_options(parser, hub_revision=False, default_device="cpu")


def run(options: argparse.Namespace) -> int:
    if not options.source.exists():
        raise UsageError(f"SOURCE {options.source} does not exist: give a model's folder, or a file of weights.")
    if options.space and options.revision is not None:
        raise UsageError("--space shows what is on the main branch: drop --revision, or push the Space later.")
    start_library()
    from hf_clip.hub import PushArgumentError
    from hf_clip.hub.push import push

    from .models import usable_device

    about_weights = {**load_options(options), "revision": None}
    if options.device is not None:
        about_weights["device"] = usable_device(options.device)
    try:
        with shown_log("hf_clip.hub"):
            url = push(
                options.source,
                options.repo_id,
                private=options.private,
                revision=options.revision,
                to=options.to,
                message=options.message,
                load_options=about_weights,
            )
    except PushArgumentError as error:
        raise UsageError(str(error)) from error
    print(url)
    if options.space:
        from hf_clip.hub.space import push_space

        with shown_log("hf_clip.hub"):
            print(push_space(options.repo_id, source=options.source, private=options.private))
    return 0
