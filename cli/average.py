"""`hf-clip average`: the mean of models' weights, and the mixture that an evaluation picks."""

import argparse
import json
import sys
from pathlib import Path

from .arguments import add_verb, check_model, fraction
from .outputs import Outputs
from .shown_log import shown_log
from .train import check_recipe
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "average",
        run,
        "average models' weights: with their start's (WiSE-FT), or several (soups)",
        "hf-clip average openai/clip-vit-base-patch32 runs/mine --wise-ft --output-dir runs/mixed",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folders, files of weights or Hub ids; the start first"
    )
    parser.add_argument("--output-dir", required=True, type=Path, help="folder that is empty or not there yet")
    weights = "weight of each model (default: all alike)"
    parser.add_argument("--weights", nargs="+", type=float, metavar="NUMBER", help=weights)
    parser.add_argument("--wise-ft", action="store_true", help="try fractions of the second model, and write the best")
    parser.add_argument("--greedy", action="store_true", help="keep the models that help the mean, best first")
    tried = "with --wise-ft, fractions to try (default: 0 to 1 in tenths)"
    parser.add_argument("--fractions", nargs="+", type=fraction, metavar="NUMBER", help=tried)
    recipe = "recipe whose evaluations are made of each mixture (default: that of the last MODEL's run)"
    parser.add_argument("--recipe", help=recipe)
    by = "number that picks the best, such as validation.image_to_text.recall_at_1 (default: checkpoints.best)"
    parser.add_argument("--by", metavar="NUMBER", help=by)


def run(options: argparse.Namespace) -> int:
    _check(options)
    outputs = Outputs()
    outputs.reads("MODEL", options.models)
    outputs.empty_folder("--output-dir", options.output_dir)
    start_library()
    if not (options.wise_ft or options.greedy):
        from hf_clip.conversion import average_models

        model, processor = average_models(options.models, options.weights)
        _write(options.output_dir, model, processor)
        return 0
    from hf_clip.training.config import LESS_IS_BETTER
    from hf_clip.training.mixing import FRACTIONS, evaluation_by_recipe, greedy_soup, wise_ft

    evaluate, by = evaluation_by_recipe(options.recipe or Path(options.models[-1]) / "recipe.yaml", options.by)
    less = by.endswith(LESS_IS_BETTER)
    with shown_log("hf_clip.training"):
        if options.wise_ft:
            start, end = options.models
            fractions = options.fractions or FRACTIONS
            found = wise_ft(start, end, evaluate, by, fractions=fractions, less_is_better=less)
        else:
            found = greedy_soup(options.models, evaluate, by, less_is_better=less)
    _write(options.output_dir, found.model, found.processor)
    written = {"models": options.models, "by": by, **found.to_dict()}
    (options.output_dir / "mixture.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    shown = " + ".join(f"{weight:.3g}" for weight in found.best["weights"])
    print(f"{shown}: {by} {found.best['numbers'][by]:.4f}, in {options.output_dir}.")
    if options.wise_ft:
        from hf_clip.evaluation.plots.run_charts import plot_mixture

        try:
            plot_mixture(found.curve, found.best, options.output_dir / "mixture.png")
        except ImportError as error:
            print(f"hf-clip: no plot: {error}", file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> None:
    for model in options.models:
        check_model(model, "MODEL")
    if len(options.models) < 2:
        raise UsageError("One MODEL is no average: give two or more.")
    picks = [flag for flag, value in (("--wise-ft", options.wise_ft), ("--greedy", options.greedy)) if value]
    if len(picks) + (options.weights is not None) > 1:
        raise UsageError("--weights, --wise-ft and --greedy are three ways to find weights: give one.")
    if options.wise_ft and len(options.models) != 2:
        raise UsageError(
            f"--wise-ft mixes two models, a start and what was fine-tuned from it: {len(options.models)} given."
        )
    if options.weights is not None and len(options.weights) != len(options.models):
        raise UsageError(f"--weights has {len(options.weights)} numbers for {len(options.models)} models.")
    if options.fractions and not options.wise_ft:
        raise UsageError("--fractions are those of --wise-ft: add it.")
    for flag, value in (("--recipe", options.recipe), ("--by", options.by)):
        if value is not None and not picks:
            raise UsageError(f"{flag} says what --wise-ft or --greedy picks by: add one of them.")
    if not picks:
        return
    if options.recipe is not None:
        check_recipe(options.recipe, [])
    elif not (Path(options.models[-1]) / "recipe.yaml").is_file():
        raise UsageError(f"{options.models[-1]} is no run with a recipe.yaml: name the evaluations by --recipe.")


def _write(folder: Path, model, processor) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
