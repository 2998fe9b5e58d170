"""The reference of the command `hf-clip` as Markdown, from its parsers: a page of the documentation site.

python tools/make_cli_reference.py
"""

import argparse

from hf_clip_cli.running import make_parser

HEAD = """# Command reference

Every verb of `hf-clip` with its arguments, from the parsers themselves. `@FILE` in place of several values takes the
lines of a file. `--debug` of every verb shows the traceback of an error. Exit codes: 0 done, 1 failed, 2 wrong usage,
3 stopped by a signal after saving.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for parser in _verbs(make_parser()):
        parts += _section(parser)
    return "\n".join(parts).rstrip() + "\n"


def _verbs(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers below one, those of a verb's tasks behind it."""
    found: list[argparse.ArgumentParser] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in dict.fromkeys(action.choices.values()):
                found += [verb, *_verbs(verb)]
    return found


def _section(parser: argparse.ArgumentParser) -> list[str]:
    description = (parser.description or "").rstrip(".")
    lines = [f"## {parser.prog}", "", f"{description[:1].upper()}{description[1:]}.", ""]
    if parser.epilog:
        lines += ["    " + parser.epilog.removeprefix("example: "), ""]
    formatter = parser._get_formatter()
    rows = [
        f"| {_cell(_spelled(action, formatter))} | {_text(formatter._expand_help(action) if action.help else '')} |"
        for action in parser._actions
        if action.dest != "debug" and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    return [*lines, "| argument | meaning |", "| --- | --- |", *rows, ""] if rows else lines


def _spelled(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    if not action.option_strings:
        return formatter._format_args(action, action.dest)
    values = "" if action.nargs == 0 else " " + formatter._format_args(action, action.dest.upper())
    return ", ".join(action.option_strings) + values


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
