"""`hf-clip prompts`: the paper's class names and templates."""

import argparse

from .arguments import add_verb, check_templates
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "prompts",
        run,
        "the paper's class names and templates, one data set a line, or one of them",
        "hf-clip prompts EuroSAT",
        prints_results=True,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set, or a YAML or JSON file of your own")


def run(options: argparse.Namespace) -> int:
    check_templates(options.name, None)
    start_library()
    from hf_clip.prompts import describe_prompts, list_prompts, load_prompts

    if options.name is None:
        print(f"{'data set':32}{'classes':>8}{'templates':>11}{'best':>6}")
        for one in map(load_prompts, list_prompts()):
            counts = len(one.classes), len(one.templates), len(one.best_templates) or "-"
            print(f"{one.name:32}{counts[0]:8}{counts[1]:11}{counts[2]:>6}")
        return 0
    try:
        print(describe_prompts(load_prompts(options.name)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0
