"""Do thresholds keep their measured error on images that had no say? Fashion-MNIST, in three parts, its ten classes.

    python benchmarks/bench_operating_points.py [--model runs/emoji] [--data examples/fashion/test_small.parquet]

Thresholds for a false positive rate of 0.01 from the first part, the rate and its 95 % interval from the second; the
third part's rate should lie in that interval. Printed for each of ten divisions: of how many classes it does. A right
interval alone does not make it all ten: the third part's rate has a sampling error of its own.
"""

import argparse
from pathlib import Path

import numpy as np

FASHION = Path(__file__).parent.parent / "examples/fashion/test_small.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--data", type=Path, default=FASHION)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="random scores instead of a model's")
    options = parser.parse_args()
    from hf_clip.evaluation.operating_points import OperatingPoint, find_operating_points

    if options.quick:
        draw = np.random.default_rng(0)
        is_true = draw.integers(0, 10, 2000)[:, None] == np.arange(10)
        scores, labels, table = draw.normal(size=(2000, 10)) + is_true, [str(one) for one in range(10)], ""
    elif (options.model / "config.json").is_file():
        scores, is_true, labels, table = measured(options)
    else:
        print(f"{options.model} holds no model: `make demo` trains one.")
        return
    print(table)
    counts = []
    for seed in range(options.seeds):
        asked = OperatingPoint(options.rate, seed=seed)
        found = find_operating_points(scores, is_true, labels, asked)
        counts.append(sum(bool(row["third_part"]["is_in_interval"]) for row in found.concepts))
    print(f"classes whose third part lies in the second's interval, by division: {counts}, mean {np.mean(counts):.1f}")


def measured(options: argparse.Namespace) -> tuple:
    """Cosines, which class is true, class names, and the table of the first division."""
    from hf_clip import ZeroShotClassifier, load, open_source
    from hf_clip.evaluation.features import Encoding
    from hf_clip.evaluation.labeled_images import embed_labeled
    from hf_clip.evaluation.operating_points import OperatingPoint, find_operating_points
    from hf_clip.evaluation.zero_shot import cosines

    model, processor = load(str(options.model))
    found = embed_labeled(model, processor, open_source(options.data), Encoding())
    labels = sorted({label for (label,) in found.labels})
    classifier = ZeroShotClassifier(model, processor, labels, cache=False)
    scores = cosines(classifier, found.embeddings)
    is_true = np.array([label for (label,) in found.labels])[:, None] == np.array(labels)
    return (
        scores,
        is_true,
        labels,
        find_operating_points(scores, is_true, labels, OperatingPoint(options.rate)).table(),
    )


if __name__ == "__main__":
    main()
