"""1,000 labels in 8 templates to embeddings: this package beside OpenCLIP and transformers, the same weights.

    python benchmarks/bench_labels.py [--quick]

Each side is a process of its own that loads the model, warms up, and encodes when it is its turn: one round after the
other, medians, in float32; numbers are a label's. OpenCLIP's side is `build_zero_shot_classifier` as it comes (texts
padded to 77, 10 classes at once), on fewer labels; transformers' at its best is batches of 256 padded to their
longest. Then two starts of the command's library, with the labels' embeddings on disk and without labels.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sides import alternated, describe_machine, print_table, serve

WORDS = "red green old small wooden shiny striped tall wild northern dog cat house tree apple car boat bird chair lamp"
TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a drawing of the {}.",
    "a close-up photo of the {}.",
    "itap of a {}.",
    "a photo of the large {}.",
    "art of the {}.",
    "a low resolution photo of the {}.",
)
SIDES = ("hf_clip", "transformers", "OpenCLIP")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def labels(count: int) -> list[str]:
    """Labels of one to three words, as ImageNet's have."""
    rng, words = np.random.default_rng(0), WORDS.split()
    return [" ".join(rng.choice(words, rng.integers(1, 4))) + f" {index % 10}" for index in range(count)]


def make_model(folder: Path, is_small: bool) -> None:
    """ViT-B/32 of random weights in transformers' format, and its tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from hf_clip import HFCLIPImageProcessor, HFCLIPProcessor, HFCLIPTokenizer

    torch.manual_seed(0)
    fields = {"text_config": SMALL, "vision_config": SMALL} if is_small else {}
    CLIPModel(CLIPConfig(**fields)).save_pretrained(folder)
    HFCLIPProcessor(HFCLIPImageProcessor(), HFCLIPTokenizer()).save_pretrained(folder)


def encoder(side: str, folder: Path, is_small: bool):
    """A function of labels that encodes them in all templates."""
    import torch

    if side == "hf_clip":
        from hf_clip import HFCLIPModel, HFCLIPProcessor, ZeroShotClassifier

        model, processor = HFCLIPModel.from_pretrained(folder).eval(), HFCLIPProcessor.from_pretrained(folder)
        return lambda names: (
            ZeroShotClassifier(model, processor, names, TEMPLATES, dtype=None, cache=False).class_embeddings
        )
    if side == "transformers":
        from transformers import CLIPModel, CLIPTokenizer

        model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)

        @torch.inference_mode()
        def encode(names):
            prompts = [template.replace("{}", name) for name in names for template in TEMPLATES]
            embeddings = []
            for start in range(0, len(prompts), 256):
                inputs = tokenizer(prompts[start : start + 256], padding=True, return_tensors="pt")
                embeddings.append(model.get_text_features(**inputs).pooler_output)
            embeddings_CTD = torch.nn.functional.normalize(torch.cat(embeddings), dim=-1).unflatten(
                0, (len(names), -1)
            )
            return torch.nn.functional.normalize(embeddings_CTD.mean(1), dim=-1)

        return encode
    open_clip, model = open_clip_model(is_small)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    templates = [lambda name, template=template: template.replace("{}", name) for template in TEMPLATES]
    return lambda names: open_clip.build_zero_shot_classifier(
        model, tokenizer, names, templates, num_classes_per_batch=10, device="cpu"
    )


def open_clip_model(is_small: bool):
    """OpenCLIP, and its ViT-B/32 of random weights."""
    # Over the stub of torchvision, where that is missing.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.helpers.peers import load_open_clip

    open_clip = load_open_clip()
    if not is_small:
        return open_clip, open_clip.create_model("ViT-B-32-quickgelu").eval()
    tower = {"layers": 2, "width": 32}
    vision = {**tower, "head_width": 16, "patch_size": 32}
    return open_clip, open_clip.model.CLIP(32, vision, {**tower, "heads": 2}).eval()


def starts(folder: Path, count: int, runs: int) -> None:
    """Seconds from the process's begin to a model that is ready to classify, with kept labels and without labels."""
    script = (
        "import sys, time; from hf_clip import HFCLIPModel, HFCLIPProcessor, ZeroShotClassifier\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from bench_labels import TEMPLATES, labels\n"
        f"folder = {str(folder)!r}\n"
        "model, processor = HFCLIPModel.from_pretrained(folder), HFCLIPProcessor.from_pretrained(folder)\n"
        "started = time.perf_counter()\n"
        f"kept = dict(dtype=None, cache={str(folder / 'labels')!r})\n"
        f"ZeroShotClassifier(model.eval(), processor, labels({count}), TEMPLATES, **kept)\n"
        "print(time.perf_counter() - started)"
    )
    found = []
    for _ in range(runs + 1):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        found.append(float(done.stdout.split()[-1]))
    print(f"a first start encodes the labels in {found[0]:.2f} s, a later one has them after")
    print(f"{statistics.median(found[1:]):.2f} s: so much longer than a start without labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--open-clip-labels", type=int, default=100, help="of OpenCLIP, which takes minutes for 1,000")
    parser.add_argument("--quick", action="store_true", help="a small model, 20 labels, one round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        encode = encoder(options.side, options.folder, options.quick)
        encode(labels(10))
        return serve(lambda: encode(labels(options.labels)))
    if options.quick:
        options.runs, options.labels, options.open_clip_labels = 1, 20, 2
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), options.quick)
        print(describe_machine("open_clip_torch"))
        counts = {side: options.open_clip_labels if side == "OpenCLIP" else options.labels for side in SIDES}
        shared = ["--folder", name, *(["--quick"] if options.quick else [])]
        sides = {side: [__file__, "--side", side, "--labels", str(counts[side]), *shared] for side in SIDES}
        seconds = alternated(sides, options.runs)
        print_table(f"a label x {len(TEMPLATES)} templates, float32", seconds, counts)
        print(", ".join(f"{side} {count} labels" for side, count in counts.items()))
        starts(Path(name), options.labels, options.runs)


if __name__ == "__main__":
    main()
