"""Means against forgetting: a trained model fine-tuned on new data in several ways, and what it then knows of its old.

    python benchmarks/bench_finetune.py --start runs/emoji --train stamps/train.parquet openclipart/train.parquet \
        --test stamps=stamps/test.parquet openclipart=openclipart/test.parquet \
        --old emoji=examples/emoji/twemoji.parquet@split=train --replay examples/emoji/noto.parquet \
        --output-dir runs/tuned

The ways: `plain` (the last model), `best` (of the same run, the best by what is held out of the new data), `lora`,
`distill` (from the start), `replay` (old training data mixed in) and `wise-ft` (weights of `best` mixed with the
start's). Each is picked by data held out of training alone. R@1 image to text, means over seeds with the half width of
a 95% interval; `--seeds 2` makes the third alone, and finished runs in the folder are not made again.

    python benchmarks/bench_finetune.py --teach --start runs/emoji --teacher runs/larger --recipe emoji \
        --test unseen=examples/emoji/twemoji.parquet --output-dir runs/taught

trains the recipe from its own start with and without a stored teacher, in as many steps, and shows both.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_clip import evaluate_retrieval, load, load_recipe, train
from hf_clip.sources import DataSpec
from hf_clip.training.mixing import evaluation_by_recipe, wise_ft
from hf_clip.training.teaching import open_teachers, write_teachers

NUMBER = "validation.image_to_text.recall_at_1"
# Student's t, two-sided 95%, by degrees of freedom.
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}

WAYS: dict[str, list[str]] = {
    "best": [f"checkpoints.best={NUMBER}"],
    "lora": [
        f"checkpoints.best={NUMBER}",
        "lora={rank: 16}",
        "optimizer.algorithm=adamw",
        "optimizer.learning_rate=1e-3",
    ],
    "distill": [f"checkpoints.best={NUMBER}", "distillation={from_start: true, weight: 0.5}"],
    "replay": [f"checkpoints.best={NUMBER}"],
}


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        if options.quick:
            shrink(options, Path(temporary))
        folder = Path(options.output_dir or temporary)
        rows = taught(options, folder) if options.teach else tuned(options, folder)
    show(options, rows)


def tuned(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """The numbers of each way, one a seed."""
    rows: dict[str, list[dict[str, float]]] = {"start": [numbers(options, options.start)]}
    for seed in options.seeds:
        for way, overrides in WAYS.items():
            run = folder / f"{way}-{seed}"
            sources = [*options.train, *(options.replay if way == "replay" else [])]
            if way == "replay" and not options.replay:
                continue
            make(options, run, sources, [*overrides, f"seed={seed}"])
            if way == "best":
                rows.setdefault("plain", []).append(at_the_last_step(options, run))
            rows.setdefault(way, []).append(numbers(options, run))
        mixed = folder / f"wise-ft-{seed}"
        evaluate, by = evaluation_by_recipe(folder / f"best-{seed}/recipe.yaml", NUMBER)
        found = wise_ft(options.start, folder / f"best-{seed}", evaluate, by)
        found.model.save_pretrained(mixed)
        found.processor.save_pretrained(mixed)
        rows.setdefault("wise-ft", []).append(numbers(options, mixed))
        (mixed / "mixture.json").write_text(json.dumps(found.to_dict()))
    return rows


def at_the_last_step(options: argparse.Namespace, run: Path) -> dict[str, float]:
    """The numbers of the last model, where another one was exported: those of its evaluation during training."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    last = next(each["evaluation"] for each in lines if each["step"] == options.steps and "evaluation" in each)
    return {name: last[name]["image_to_text"]["recall_at_1"] for name in options.tests}


def make(options: argparse.Namespace, run: Path, sources: Sequence[str], overrides: Sequence[str]) -> None:
    """Trains where it was not done before."""
    if (run / "results.json").is_file():
        return
    content = {
        "model": {"start_from": str(options.start)},
        "steps": options.steps,
        "batch_size": options.batch_size,
        "eval_every": max(options.steps // 12, 1),
        "eval_at_start": True,
        "data": {
            "train": list(sources),
            "weights": [1.0] * len(sources),
            "caption_columns": ["caption"],
            "validation_fraction": 0.1,
        },
        "optimizer": {"learning_rate": options.learning_rate, "weight_decay": 0.1, "warmup_fraction": 0.05},
        "augmentation": {"rotation": 15, "scale": 0.25, "shift": 0.05, "saturation": 0.4, "cutout": 0.3},
        "label_smoothing": 0.1,
        "templates": ["{}"],
        "evaluations": {name: evaluation(file) for name, file in options.tests.items()},
    }
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".json")
    # JSON is YAML.
    file.write_text(json.dumps(content))
    train(load_recipe(file, [*overrides, *options.set]), run)


def evaluation(test: str) -> dict:
    file, where = parts(test)
    return {"data": [file], "where": where, "during_training": True}


def parts(test: str) -> tuple[str, dict[str, str]]:
    """The file and the conditions of FILE@COL=VALUE,..."""
    file, _, where = test.partition("@")
    return file, dict(each.split("=") for each in where.split(",") if each)


def taught(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """A recipe with and without a stored teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = load_recipe(options.recipe, options.set)
    columns = dict.fromkeys([*plain.data.keyword_columns, *plain.data.where])
    files = []
    for index, source in enumerate(plain.data.train):
        file = folder / f"taught_{index}.parquet"
        if not file.is_file():
            spec = DataSpec(source, caption_columns=plain.data.caption_columns, extra_columns=tuple(columns))
            write_teachers(spec, open_teachers([options.teacher], None), file)
        files.append(str(file))
    learned = [f"data.train=[{', '.join(files)}]", "data.teachers=[teacher]", "augmentation.mixup=0"]
    ways = {
        "plain": ["augmentation.mixup=0"],
        "taught": [*learned, f"distillation={{weight: {options.weight}}}"],
        "recipe": [],
    }
    rows: dict[str, list[dict[str, float]]] = {"teacher": [numbers(options, options.teacher)]}
    for seed in options.seeds:
        for way, overrides in ways.items():
            run = folder / f"{way}-{seed}"
            if not (run / "results.json").is_file():
                train(load_recipe(options.recipe, [*options.set, *overrides, f"seed={seed}"]), run)
            rows.setdefault(way, []).append(numbers(options, run))
    return rows


def numbers(options: argparse.Namespace, model: str | Path) -> dict[str, float]:
    """R@1 image to text on each test, all old data included."""
    loaded = load(model)
    found = {}
    for name, file in options.tests.items():
        file, conditions = parts(file)
        source = DataSpec(file, where=conditions, caption_columns=["caption"]).open()
        found[name] = evaluate_retrieval(*loaded, source).metrics["image_to_text"]["recall_at_1"]
    return found


def show(options: argparse.Namespace, rows: dict[str, list[dict[str, float]]]) -> None:
    names = list(options.tests)
    print(f"{'R@1 image to text':20}" + "".join(f"{name:>20}" for name in names))
    for way, found in rows.items():
        cells = []
        for name in names:
            values = np.array([each[name] for each in found])
            spread = ""
            if len(values) > 1:
                half = T_95.get(len(values) - 1, 2.0) * values.std(ddof=1) / len(values) ** 0.5
                spread = f" ± {half:.3f}"
            cells.append(f"{values.mean():.3f}{spread}")
        print(f"{way:20}" + "".join(f"{cell:>20}" for cell in cells))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", help="the trained model to start from")
    parser.add_argument("--train", nargs="+", default=[], help="new training data")
    parser.add_argument("--test", nargs="+", default=[], metavar="NAME=FILE[@COL=VALUE]", help="new data to test on")
    parser.add_argument("--old", nargs="+", default=[], metavar="NAME=FILE[@COL=VALUE]", help="what may be forgotten")
    parser.add_argument("--replay", nargs="+", default=[], help="old training data, for the way `replay`")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all recipes")
    parser.add_argument("--output-dir")
    parser.add_argument("--teach", action="store_true", help="a stored teacher instead of fine-tuning")
    parser.add_argument("--teacher", help="with --teach, the stronger model")
    parser.add_argument("--recipe", default="emoji", help="with --teach, what the student trains by")
    parser.add_argument("--weight", type=float, default=0.5, help="with --teach, of distillation")
    parser.add_argument("--quick", action="store_true", help="a tiny model and data, for a test of this script")
    options = parser.parse_args()
    options.tests = dict(each.split("=", 1) for each in [*options.test, *options.old])
    if not options.quick and not options.tests:
        parser.error("--test is missing: name data to test on.")
    return options


def shrink(options: argparse.Namespace, place: Path) -> None:
    """A tiny model, and squares to train it on."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.helpers.squares import NAMES, rows, write_parquet
    from tests.helpers.toys import tiny_clip

    model, processor = tiny_clip(NAMES, image_size=16, num_hidden_layers=1)
    model.save_pretrained(place / "start")
    processor.save_pretrained(place / "start")
    options.start, options.steps, options.batch_size, options.seeds = place / "start", 3, 16, [0]
    options.train = [str(write_parquet(place / "train.parquet", rows(2)))]
    options.tests = {"new": str(write_parquet(place / "test.parquet", rows(1, 50)))}
    options.set = ["mixed_precision=no"]


if __name__ == "__main__":
    main()
