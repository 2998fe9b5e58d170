"""One table of a model's numbers on every data set of a suite, beside published ones.

    python benchmarks/run_suite.py --model runs/emoji --only fashion emoji-twemoji

Data sets on the Hub are fetched as they are read. Features are kept in HF_HOME: a run that was stopped goes on.
"""

import argparse
import json
from pathlib import Path

from hf_clip.evaluation.cache import FeatureCache, default_cache_folder
from hf_clip.evaluation.features import Encoding
from hf_clip.evaluation.suite import read_suite, run_suite

SUITE = Path(__file__).with_name("suite.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint of any format: folder, file or Hub id")
    parser.add_argument("--suite", type=Path, default=SUITE, help="a YAML file such as suite.yaml, the default")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the data sets")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default 64)")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--output", type=Path, help="write the results as JSON too")
    options = parser.parse_args()

    from hf_clip import load

    entries = read_suite(options.suite, options.only)
    model, processor = load(options.model, device=options.device)
    encoding = Encoding(options.batch_size, cache=FeatureCache(default_cache_folder()))
    result = run_suite(model.eval(), processor, entries, options.suite.parent, encoding=encoding)
    print(result.table())
    if options.output is not None:
        options.output.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
