"""`hf-clip train`: a recipe and a folder to a run."""

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .arguments import Several, add_verb
from .outputs import Outputs
from .shown_log import shown_log
from .usage import UsageError, start_library

if TYPE_CHECKING:
    from hf_clip.training import TrainConfig

RECIPE_SUFFIXES = (".yaml", ".yml")


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "train",
        run,
        "train a dual encoder from a recipe",
        "hf-clip train --recipe emoji --output-dir runs/emoji --set steps=500",
    )
    add_recipe(parser)
    parser.add_argument("--output-dir", type=Path, help="folder of the model, its card and its logs")
    resume = (
        "go on with the run in --output-dir; --resume auto starts it where there is none, and ends where it is done"
    )
    parser.add_argument(
        "--resume", nargs="?", const=True, default=False, choices=("auto",), metavar="auto", help=resume
    )
    explain = "print what a key of recipes means, or a table of keys"
    parser.add_argument("--explain", metavar="KEY", help=explain)

    dry = "read the data and make a step: what is skipped, token lengths, loss, memory, time; write nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    sheet = "with --dry-run, draw augmented images with their captions to this PNG"
    parser.add_argument("--sheet", type=Path, metavar="FILE", help=sheet)
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --sheet of any kind")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`--recipe` and `--set`."""
    parser.add_argument("--recipe", help="a recipe's name or the path of a YAML file")
    parser.add_argument(
        "--set",
        action=Several,
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="replace values of the recipe, such as optimizer.learning_rate=1e-3 steps=500",
    )


def run(options: argparse.Namespace) -> int:
    if options.explain is not None:
        return _explain(options.explain)
    recipe, output_dir = options.recipe, cast(Path, options.output_dir)
    if options.output_dir is None and not options.dry_run:
        raise UsageError("the following arguments are required: --output-dir: see hf-clip train --help.")
    if options.dry_run and options.resume:
        raise UsageError("--dry-run is for a run that has not begun: drop --resume.")
    if options.sheet is not None and not options.dry_run:
        raise UsageError("--sheet is drawn by a dry run: add --dry-run.")
    if recipe is None and not options.resume:
        raise missing_recipe()
    if recipe is None:
        recipe = output_dir / "recipe.yaml"
        if not recipe.is_file():
            raise UsageError(f"There is no run to resume in {output_dir}: start one with --recipe.")
    check_recipe(str(recipe), options.overrides)
    start_library()
    from hf_clip.training import load_recipe
    from hf_clip.training import train as run_training
    from hf_clip.training.device import fastest_device, keep_freed_memory

    config = load_recipe(recipe, options.overrides)
    outputs = Outputs(options.overwrite)
    outputs.reads("--recipe", [recipe] if options.recipe is not None and not options.resume else [])
    outputs.reads("data.train", config.data.train)
    for name, evaluation in config.evaluations.items():
        outputs.reads(f"evaluations.{name}.data", evaluation.data)
    if options.dry_run:
        return _dry_run(config, outputs, options.sheet)
    outputs.folder("--output-dir", output_dir)
    if fastest_device().type == "cpu":
        # A setting of the whole process, which is the command's own; `train` in a notebook leaves it as it is.
        keep_freed_memory()
    run_training(config, output_dir, resume=options.resume)
    return 0


def _explain(key: str) -> int:
    start_library()
    from hf_clip.training.recipe_reference import explain_key

    print(explain_key(key))
    return 0


def _dry_run(config: "TrainConfig", outputs: Outputs, sheet: Path | None) -> int:
    from hf_clip.training.dry_run import dry_run

    if sheet is not None:
        outputs.file("--sheet", sheet, "a plot in PNG")
    with shown_log("hf_clip.training"):
        found = dry_run(config, sheet)
    print(found.report())
    return 0


def known_recipes() -> list[str]:
    """Names of the recipes that come with the package, found without importing it."""
    root = Path(__file__).parents[1]
    # Installed, and in the tree.
    folders = (root / "hf_clip/training/recipes", root / "training/recipes")
    return sorted(file.stem for folder in folders for file in folder.glob("*.yaml"))


def missing_recipe() -> UsageError:
    return UsageError(f"--recipe is missing: name one of {', '.join(known_recipes())}, or a YAML file.")


def check_recipe(recipe: str, overrides: list[str]) -> None:
    """Raises UsageError for a recipe that is not there and overrides that are none, before anything heavy."""
    known = known_recipes()
    if recipe not in known and not Path(recipe).is_file():
        near = difflib.get_close_matches(recipe, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"name one of {', '.join(known)}, or a YAML file."
        what = "file" if recipe.endswith(RECIPE_SUFFIXES) else "recipe"
        raise UsageError(f"There is no {what} {recipe!r}: {hint}")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {override!r} is not KEY=VALUE: write it as --set steps=500.")
