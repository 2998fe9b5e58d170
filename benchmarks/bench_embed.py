"""Captions in, and files in, embeddings out: this package beside transformers' and sentence-transformers' own loops.

    python benchmarks/bench_embed.py [--quick] [--model runs/emoji --data examples/emoji/twemoji.parquet]

Captions are of web-like lengths (log-normal numbers of tokens, mean 18, cut at 77), files are JPEGs of 3 megapixels.
transformers pads 256 captions to their longest, and prepares 32 images at once; sentence-transformers' loop is its
`encode` as it comes, where it is installed. The same float32 weights; each side is a process of its own, in turn. This
package as it comes computes in bf16 where the processor is fast at it, peers in float32; how far its embeddings are
from its own in float32 is printed, and what the cores would take for decoding and the tower alone. With a trained
model and images with captions it is compared what JPEGs decoded at a fraction of their size cost.
"""

import argparse
import importlib.util
import io
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from bench_decode import photograph
from bench_labels import WORDS, make_model
from sides import alternated, describe_machine, print_table, serve

SIDES = {
    "captions": ("hf_clip", "hf_clip, float32", "transformers", "sentence-transformers"),
    "files": (
        "hf_clip",
        "hf_clip, reduced JPEGs",
        "hf_clip, float32",
        "transformers",
        "sentence-transformers",
        "decoding alone",
        "tower alone",
    ),
}


def captions(count: int) -> list[str]:
    """Of log-normal lengths: a word is a token, and start and end are two."""
    rng, words = np.random.default_rng(0), WORDS.split()
    lengths = rng.lognormal(np.log(18) - 0.6**2 / 2, 0.6, count).clip(3, 77).astype(int)
    return [" ".join(rng.choice(words, length - 2)) for length in lengths]


def encoders(side: str, folder: Path):
    """Two functions: of captions, and of files."""
    import torch
    from PIL import Image

    if side.startswith("hf_clip"):
        from hf_clip import embed_images, embed_texts, load

        model, processor = load(folder)
        dtype, is_reduced = None if side.endswith("float32") else "auto", side.endswith("JPEGs")
        return (lambda texts: embed_texts(model, processor, texts, dtype=dtype)), (
            lambda files: embed_images(model, processor, files, dtype=dtype, may_reduce_jpeg=is_reduced)
        )
    if side.endswith("alone"):
        return None, part_alone(side, folder)
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


def part_alone(side: str, folder: Path):
    """A function of files: decodes them in one thread, or computes as many images of chance, 32 at once."""
    import torch

    from hf_clip import load
    from hf_clip.model.device_hf_clip import computing_in

    model, processor = load(folder)
    if side == "decoding alone":
        return lambda files: [processor.image_processor.resize_and_crop(file) for file in files]
    size = processor.image_processor.crop_size.height
    pixels = torch.randn(32, 3, size, size, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def compute(files):
        with computing_in(model, "auto"):
            for start in range(0, len(files), len(pixels)):
                model.encode_image(pixels[: len(files) - start])

    return compute


def compare_dtypes(folder: Path, texts: list[str], files: list[str]) -> None:
    """Prints how far embeddings as they come are from those in float32."""
    import torch

    from hf_clip import embed_images, embed_texts, load

    model, processor = load(folder)
    for what, embed, given in (("captions", embed_texts, texts), ("files", embed_images, files)):
        found = [embed(model, processor, given, dtype=dtype) for dtype in ("auto", "float32")]
        print(f"{len(given)} {what}: smallest cosine to float32", end=" ")
        print(f"{torch.nn.functional.cosine_similarity(*found).min():.5f}")


def show_cores(seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Prints the clock's seconds beside those of the parts, divided by the cores."""
    parts = sum(statistics.median(each[1] for each in seconds[side]) for side in ("decoding alone", "tower alone"))
    clock, cores = statistics.median(each[0] for each in seconds["hf_clip"]), os.cpu_count() or 1
    print(f"decoding and tower alone compute {parts:.2f} s: {parts / cores:.2f} s on {cores} cores;", end=" ")
    print(f"files to embeddings take {clock / (parts / cores):.2f} times that")


def compare_reduced_jpegs(source: Path, data: Path, enlarged: int = 16) -> None:
    """Prints levels, cosines and R@1 of a trained model on JPEGs in full, and decoded at a fraction of their size.

    Args:
        source: the model's folder.
        data: images with captions; every 4th, drawn large, `enlarged` times the model's size.
    """
    import torch
    from PIL import Image

    from hf_clip import decode_image, embed_images, embed_texts, load, open_source
    from hf_clip.sources import iterate_samples

    model, processor = load(source)
    edge = enlarged * model.config.vision_config.image_size
    files, captions = [], []
    for index, sample in enumerate(iterate_samples(open_source(data))):
        if index % 4 == 0 and sample.captions:
            buffer = io.BytesIO()
            decode_image(sample.image).resize((edge, edge), Image.BICUBIC).save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
            captions.append(sample.captions[0])
    prepared = processor.image_processor.resize_and_crop
    levels = [np.abs(prepared(file).astype(int) - prepared(file, may_reduce_jpeg=True)) for file in files[::8]]
    exact, reduced = (embed_images(model, processor, files, dtype=None, may_reduce_jpeg=may) for may in (False, True))
    text_embeds, names = embed_texts(model, processor, captions, dtype=None), np.array(captions)
    recalls = [(names[(found @ text_embeds.T).argmax(1)] == names).mean() for found in (exact, reduced)]
    print(f"{len(files)} JPEGs of {edge} x {edge}, reduced and in full: levels of 255 differ by", end=" ")
    print(f"{np.mean(levels):.2f} on average, {np.max(levels)} at most; smallest cosine", end=" ")
    cosines = torch.nn.functional.cosine_similarity(exact, reduced)
    print(
        f"{cosines.min():.5f}, median {cosines.median():.5f}; R@1 (image to text) {recalls[0]:.4f} in full,", end=" "
    )
    print(f"{recalls[1]:.4f} reduced")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a small model, few captions and files, one round")
    parser.add_argument("--model", type=Path, help="a trained model: what reduced JPEGs cost is compared with it")
    parser.add_argument("--data", type=Path, help="images with captions for it")
    parser.add_argument("--side", choices=SIDES["captions"] + SIDES["files"], help=argparse.SUPPRESS)
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
    if options.model:
        compare_reduced_jpegs(options.model, options.data)
    is_missing = importlib.util.find_spec("sentence_transformers") is None
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), options.quick)
        print(describe_machine("sentence-transformers"))
        width, height = (96, 64) if options.quick else (2048, 1536)
        # A few photographs, again and again.
        contents = [photograph(width, height, seed) for seed in range(min(options.files, 8))]
        for index in range(options.files):
            (Path(name) / f"{index:04}.jpg").write_bytes(contents[index % len(contents)])
        shared = ["--folder", name, *(["--quick"] if options.quick else [])]
        shared += ["--captions", str(options.captions), "--files", str(options.files)]
        for kind, count in (("captions", options.captions), ("files", options.files)):
            taken = [side for side in SIDES[kind] if not (is_missing and side == "sentence-transformers")]
            sides = {side: [__file__, "--side", side, "--kind", kind, *shared] for side in taken}
            seconds = alternated(sides, options.runs)
            print_table(f"{count} {kind}", seconds)
        show_cores(seconds)
        files = sorted(map(str, Path(name).glob("*.jpg")))[:8]
        compare_dtypes(Path(name), captions(options.captions)[:256], files)


if __name__ == "__main__":
    main()
