"""`hf-clip compare`: finished runs side by side."""

import argparse
import json
from pathlib import Path

from .arguments import add_verb
from .outputs import Outputs
from .usage import UsageError, start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "compare",
        run,
        "the evaluations of finished runs in one table, before training and after",
        "hf-clip compare runs/plain runs/lora --plot compared.png",
        prints_results=True,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders that `hf-clip train` left")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the numbers to this PNG")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --plot of any kind")


def run(options: argparse.Namespace) -> int:
    for each in options.runs:
        if not each.is_dir():
            raise UsageError(f"RUN {each} is no folder: give what `hf-clip train --output-dir` was given.")
    if options.plot is not None:
        outputs = Outputs(options.overwrite)
        outputs.file("--plot", options.plot, "a plot in PNG")
    start_library()
    from hf_clip.training.comparison import compare_runs

    compared = compare_runs(options.runs)
    print(json.dumps(compared.to_dict(), indent=2) if options.json else compared.table())
    if options.plot is not None:
        from hf_clip.evaluation.plots.run_charts import plot_runs

        plot_runs(compared.rows, compared.names, options.plot)
    return 0
