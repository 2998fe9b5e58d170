"""How soon the command and the package answer: medians of alternated runs, each in a process of its own.

    python benchmarks/bench_start.py [--runs 5]

Beside what is unavoidable: a bare interpreter for help and wrong usage, torch with transformers' modeling base for
`import hf_clip`. The last line classifies an image by a small model of random weights in a folder.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HF_CLIP = "import sys; from hf_clip_cli.main import main; sys.exit(main(sys.argv[1:]))"
COMMANDS = {
    "bare interpreter": ["pass"],
    "import torch, transformers.modeling_utils": ["import torch; import transformers.modeling_utils"],
    "import hf_clip": ["import hf_clip"],
    "hf-clip --help": [HF_CLIP, "--help"],
    "hf-clip --version": [HF_CLIP, "--version"],
    "hf-clip classify --help": [HF_CLIP, "classify", "--help"],
    "hf-clip eval zero-shot --help": [HF_CLIP, "eval", "zero-shot", "--help"],
    "wrong usage (a missing recipe)": [HF_CLIP, "train", "--recipe", "gone.yaml", "--output-dir", "out"],
    "hf-clip doctor": [HF_CLIP, "doctor"],
    "hf-clip classify one.png": [HF_CLIP, "classify", "one.png", "--labels", "a cat,a dog", "--model", "model"],
}


def make_model(folder: Path) -> None:
    """A model of random weights, its processor, and an image."""
    from PIL import Image

    from hf_clip import HFCLIPConfig, HFCLIPImageProcessor, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer

    tokenizer = HFCLIPTokenizer.train(["a cat", "a dog"], vocab_size=520)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = HFCLIPConfig(text_config={**tower, **ids, "vocab_size": len(tokenizer)}, vision_config=tower)
    HFCLIPModel(config).save_pretrained(folder / "model")
    HFCLIPProcessor(HFCLIPImageProcessor(), tokenizer).save_pretrained(folder / "model")
    Image.new("RGB", (64, 64), "red").save(folder / "one.png")


def seconds(arguments: list[str], folder: Path) -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", *arguments], cwd=folder, env=environment, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name))
        times: dict[str, list[float]] = {command: [] for command in COMMANDS}
        for _ in range(options.runs):
            for command, arguments in COMMANDS.items():
                times[command].append(seconds(arguments, Path(name)))
    for command, found in times.items():
        print(f"{command:45}{statistics.median(found):7.2f} s   ({min(found):.2f} to {max(found):.2f})")
    medians = {command: statistics.median(found) for command, found in times.items()}
    ratio = medians["import hf_clip"] / medians["import torch, transformers.modeling_utils"]
    print(f"import hf_clip takes {ratio:.2f} times torch with transformers' modeling base")


if __name__ == "__main__":
    main()
