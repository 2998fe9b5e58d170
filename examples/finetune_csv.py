"""Fine-tunes a CLIP on a CSV of image paths and captions, and prints R@1 before and after.

python examples/finetune_csv.py pairs.csv --held-out held_out.csv --output-dir runs/mine
"""

import argparse
from pathlib import Path

from hf_clip import DataSpec, evaluate_retrieval, load, load_recipe, train


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description="Fine-tune a CLIP on a CSV with the columns image and caption.")
    parser.add_argument("pairs", type=Path, help="image paths are relative to the CSV")
    parser.add_argument("--held-out", type=Path, required=True, help="a CSV of pairs that are not trained on")
    parser.add_argument("--model", default="openai/clip-vit-base-patch32", help="a Hub id, a folder or a file")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/mine"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other keys of the recipe")
    options = parser.parse_args(arguments)

    # The recipe `finetune` comes with the package; `hf-clip train --explain KEY` says what a key is.
    chosen = [f"model.start_from={options.model}", f"data.train=[{options.pairs}]"]
    config = load_recipe("finetune", [*chosen, *options.set])
    train(config, options.output_dir)

    held_out = DataSpec(str(options.held_out)).open().require_captions()
    before, after = (
        evaluate_retrieval(*load(source), held_out).to_dict()["image_to_text"]["recall_at_1"]
        for source in (options.model, options.output_dir)
    )
    print(f"R@1 on {options.held_out}: {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
