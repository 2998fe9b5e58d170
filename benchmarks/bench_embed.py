"""Captions in, and files in, embeddings out: this package beside transformers' and sentence-transformers' own loops.

    python benchmarks/bench_embed.py [--quick]

Captions are of web-like lengths (log-normal numbers of tokens, mean 18, cut at 77), files are JPEGs of 3 megapixels.
transformers pads 256 captions to their longest, and prepares 32 images at once; sentence-transformers' loop is its
`encode` as it comes, where it is installed. The same weights, in float32; each side is a process of its own, in turn.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from bench_decode import photograph
from bench_labels import WORDS, make_model
from sides import alternated, print_table, serve

SIDES = ("hf_clip", "transformers", "sentence-transformers")


def captions(count: int) -> list[str]:
    """Of log-normal lengths: a word is a token, and start and end are two."""
    rng, words = np.random.default_rng(0), WORDS.split()
    lengths = rng.lognormal(np.log(18) - 0.6**2 / 2, 0.6, count).clip(3, 77).astype(int)
    return [" ".join(rng.choice(words, length - 2)) for length in lengths]


def encoders(side: str, folder: Path):
    """Two functions: of captions, and of files."""
    import torch
    from PIL import Image

    if side == "hf_clip":
        from hf_clip import embed_images, embed_texts, load

        model, processor = load(folder)
        return (lambda texts: embed_texts(model, processor, texts)), (
            lambda files: embed_images(model, processor, files)
        )
    if side == "sentence-transformers":
        from sentence_transformers import SentenceTransformer, models

        peer = SentenceTransformer(modules=[models.CLIPModel(str(folder))], device="cpu")
        return (
            lambda texts: peer.encode(texts, batch_size=256, show_progress_bar=False),
            lambda files: peer.encode([Image.open(file) for file in files], show_progress_bar=False),
        )
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    image_processor = CLIPImageProcessorPil.from_pretrained(folder)

    @torch.inference_mode()
    def embed_captions(texts):
        for start in range(0, len(texts), 256):
            batch = texts[start : start + 256]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=77, return_tensors="pt")
            torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)

    @torch.inference_mode()
    def embed_files(files):
        for start in range(0, len(files), 32):
            images = [Image.open(file) for file in files[start : start + 32]]
            pixels = image_processor(images=images, return_tensors="pt")
            torch.nn.functional.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)

    return embed_captions, embed_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a small model, few captions and files, one round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=("captions", "files"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.captions, options.files = 1, 20, 2
    if options.side:
        embed = encoders(options.side, options.folder)[options.kind == "files"]
        files = sorted(map(str, options.folder.glob("*.jpg")))
        given = captions(options.captions) if options.kind == "captions" else files[: options.files]
        embed(given[:2])
        return serve(lambda: embed(given))
    present = [side for side in SIDES if importlib.util.find_spec(side.replace("-", "_")) is not None]
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), options.quick)
        width, height = (96, 64) if options.quick else (2048, 1536)
        # A few photographs, again and again.
        contents = [photograph(width, height, seed) for seed in range(min(options.files, 8))]
        for index in range(options.files):
            (Path(name) / f"{index:04}.jpg").write_bytes(contents[index % len(contents)])
        shared = ["--folder", name, *(["--quick"] if options.quick else [])]
        shared += ["--captions", str(options.captions), "--files", str(options.files)]
        for kind, count in (("captions", options.captions), ("files", options.files)):
            sides = {side: [__file__, "--side", side, "--kind", kind, *shared] for side in present}
            print_table(f"{count} {kind}, float32", alternated(sides, options.runs))


if __name__ == "__main__":
    main()
