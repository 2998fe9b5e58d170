"""`hf-clip dedup`: images that are there more than once, as a plan that can be applied and undone."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_load_options, add_verb, check_model, existing_file, positive
from .index import add_index, check_root, open_index
from .outputs import Outputs
from .usage import UsageError, printable, start_library

if TYPE_CHECKING:
    from hf_clip.search.duplicates import DuplicatePlan, Moves

FORMATS = ("table", "jsonl")
KIND_WORDS = {"same_bytes": "same bytes", "same_pixels": "same pixels", "edited": "edited"}
SHOWN_ERRORS = 10
# Of a sheet.
GROUPS_AT_MOST, MEMBERS_AT_MOST = 40, 6


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "dedup",
        run,
        "find images that are there more than once: the same bytes, pixels, or edited",
        "hf-clip dedup photos/ --plan plan.json --sheet found.png",
        usage="hf-clip dedup IMAGES [options], or --apply PLAN, or --undo PLAN",
        prints_results=True,
    )
    parser.commands |= {"update": "hf-clip index", "undo": "--undo"}
    parser.add_argument("root", nargs="?", metavar="IMAGES", help="a folder of images, or a table of them")
    against = "folder or table whose images stay: which of IMAGES are in it?"
    parser.add_argument("--against", metavar="OTHER", help=against)
    new = "compare only what came since the last time, with all"
    parser.add_argument("--only-new", action="store_true", help=new)
    parser.add_argument("--plan", type=Path, metavar="FILE", help="write what was found to this JSON file")
    parser.add_argument("--apply", type=Path, metavar="PLAN", help="move what a plan names into a trash folder")
    parser.add_argument("--undo", type=Path, metavar="PLAN", help="move it back")
    trash = "the trash folder (default: .hf-clip-trash in IMAGES)"
    parser.add_argument("--trash", type=Path, metavar="DIR", help=trash)
    least = "compare pairs of at least this cosine (default 0.7)"
    parser.add_argument("--least-similarity", type=float, default=0.7, metavar="NUMBER", help=least)
    near = "the nearest images to compare each with (default 32)"
    parser.add_argument("--top-k", type=positive, default=32, metavar="N", help=near)
    formats = f"{', '.join(FORMATS)} (default: table)"
    parser.add_argument("--format", choices=FORMATS, default="table", metavar="NAME", help=formats)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the groups to this PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace files of any kind")
    parser.add_argument("--model", help="of a new index, or another than its own")
    add_index(parser)
    add_load_options(parser)


def run(options: argparse.Namespace) -> int:
    named = [flag for flag in ("root", "apply", "undo") if getattr(options, flag) is not None]
    if len(named) != 1:
        raise UsageError("give one of IMAGES, --apply PLAN and --undo PLAN.")
    if options.root is None:
        return _move(options, named[0])
    if options.trash is not None:
        raise UsageError("--trash goes with --apply and --undo: nothing is moved before.")
    return _find(options)


def _find(options: argparse.Namespace) -> int:
    check_root(options.root)
    if options.against is not None:
        check_root(options.against)
        if options.only_new:
            raise UsageError("--only-new and --against do not go together: drop one of them.")
    if options.model is not None:
        check_model(options.model)
    _check_outputs(options)
    start_library()
    from hf_clip.search.duplicates import find_duplicates

    asked: dict[str, Any] = {name: getattr(options, name) for name in ("only_new", "least_similarity", "top_k")}
    plan = find_duplicates(open_index(options, with_model=True), options.against, **asked)
    # Before anything is printed: a reader may leave.
    if options.plan is not None:
        plan.save(options.plan)
    if options.sheet is not None:
        _draw(plan, options.sheet)
    _tell_unreadable(plan)
    if options.format == "jsonl":
        for line in _lines(plan):
            print(json.dumps(line, ensure_ascii=False))
    else:
        _print_groups(plan)
    _tell(plan, options)
    return 0


def _check_outputs(options: argparse.Namespace) -> None:
    outputs = Outputs(options.overwrite)
    outputs.reads("IMAGES", [options.root])
    outputs.reads("--against", [options.against])
    if options.plan is not None:
        outputs.file("--plan", options.plan, "a plan in JSON")
    if options.sheet is not None:
        outputs.file("--sheet", options.sheet, "a sheet in PNG")


def _lines(plan: "DuplicatePlan") -> Iterator[dict[str, Any]]:
    for group, member in plan.members():
        yield {"best": group.best.path, **vars(member)}
    for pair in plan.similar:
        named = {"best": pair["first"], "path": pair["second"], "kind": "similar", "action": "keep"}
        yield {**named, "how": pair["why"], "similarity": pair["similarity"]}


def _print_groups(plan: "DuplicatePlan") -> None:
    for group in plan.groups:
        print(printable(f"{group.best.path}: {group.why}"))
        for member in group.members:
            words = "; ".join(word for word in (member.how, member.why) if word)
            print(printable(f"  {member.action}  {KIND_WORDS[member.kind]:<11}  {member.path}: {words}"))


def _tell(plan: "DuplicatePlan", options: argparse.Namespace) -> None:
    """A summary, on standard error where standard output is for programs."""
    counts = plan.counts()
    kinds = ", ".join(f"{counts[kind]} of {words}" for kind, words in KIND_WORDS.items() if kind != "edited")
    found = f"{counts['groups']} groups: {kinds}, {counts['edited']} edited; {counts['similar']} similar pairs"
    line = f"{printable(options.root)}: {plan.images} images, {found}."
    if counts["to_move"]:
        moved = f"{counts['to_move']} files ({_bytes(counts['bytes_to_move'])})"
        name = options.plan or "plan.json"
        apply = f"hf-clip dedup --apply {printable(str(name))}"
        line += f" {moved} would be moved: {'' if options.plan else '--plan plan.json, then '}{apply}."
    print(line, file=sys.stderr if options.format == "jsonl" else sys.stdout)


def _tell_unreadable(plan: "DuplicatePlan") -> None:
    for path, error in list(plan.unreadable.items())[:SHOWN_ERRORS]:
        print(f"hf-clip: {printable(f'{path}: {error}')}", file=sys.stderr)
    if len(plan.unreadable) > SHOWN_ERRORS:
        print(f"hf-clip: and {len(plan.unreadable) - SHOWN_ERRORS} more could not be read.", file=sys.stderr)


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _draw(plan: "DuplicatePlan", file: Path) -> None:
    from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
    from hf_clip.search import Index

    from .sheet import write_groups

    best, members = Index.open(plan.best_root), Index.open(plan.root)
    rows = []
    for group in plan.groups[:GROUPS_AT_MOST]:
        try:
            row = [(best.image(group.best.path), "stays", group.best.path)]
            for member in group.members[:MEMBERS_AT_MOST]:
                row.append((members.image(member.path), f"{KIND_WORDS[member.kind]}: {member.how}", member.path))
            rows.append(row)
        except ImageDecodeError as error:
            line = f"{group.best.path} is not on the sheet: {error}"
            print(f"hf-clip: {printable(line)}", file=sys.stderr)
    if not rows:
        print("hf-clip: no group to draw.", file=sys.stderr)
        return
    write_groups(rows, file)
    if len(plan.groups) > len(rows):
        print(f"hf-clip: {file} shows {len(rows)} of {len(plan.groups)} groups.", file=sys.stderr)


# Applying and undoing.


def _move(options: argparse.Namespace, way: str) -> int:
    file = getattr(options, way)
    existing_file(f"--{way}", file)
    options.parser.said_as["plan"] = f"--{way}"
    from hf_clip.search.duplicates import DuplicatePlan, apply_plan, undo_plan

    plan = DuplicatePlan.load(file)
    moves = (apply_plan if way == "apply" else undo_plan)(plan, trash=options.trash)
    _tell_moves(moves, plan, file, way)
    return 1 if moves.refused else 0


def _tell_moves(moves: "Moves", plan: "DuplicatePlan", file: Path, way: str) -> None:
    for path, reason in moves.refused.items():
        print(f"hf-clip: {printable(f'{path}: {reason}')}", file=sys.stderr)
    already = f" ({moves.already} were there already)" if moves.already else ""
    if way == "apply":
        back = (
            f" hf-clip dedup --undo {printable(str(file))} brings them back." if moves.moved or moves.already else ""
        )
        print(printable(f"{len(moves.moved)} files moved to {moves.trash}{already}.") + back)
    else:
        print(printable(f"{len(moves.moved)} files moved back to {plan.root}{already}."))
