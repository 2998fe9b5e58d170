"""Towers alone, pixels and ids in, embeddings out: this package beside OpenCLIP and transformers, and its products.

    python benchmarks/bench_encode.py [--quick] [--dtype DTYPE]

16 images, and 64 label prompts, of ViT-B/32 in float32, and in bfloat16 too where the processor is fast at it. Sides
are this package as it comes, its layers with a hook on them (texts share no beginning then), transformers (sdpa),
OpenCLIP, and the matrix products of the image tower alone. Prompts are padded to their longest, OpenCLIP's to
77. Weights are random, of one shape. Exports are bench_export's.
"""

import argparse
import tempfile
from pathlib import Path

from bench_labels import labels, make_model, open_clip_model
from sides import alternated, describe_machine, print_table, serve

SIDES = ("hf_clip", "hf_clip, hooked", "transformers", "OpenCLIP", "products alone")


def encoders(side: str, folder: Path, is_small: bool, dtype, images: int, texts: int):
    """Two functions: one encodes images, one texts; None where a side has none."""
    import torch

    prompts = [f"a photo of a {label}." for label in labels(texts)]
    pixels = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(dtype)
    if side == "OpenCLIP":
        open_clip, model = open_clip_model(is_small)
        input_ids = open_clip.get_tokenizer("ViT-B-32")(prompts)
        model.to(dtype)
        return lambda: model.encode_image(pixels), lambda: model.encode_text(input_ids)
    from hf_clip import HFCLIPModel, HFCLIPProcessor

    processor = HFCLIPProcessor.from_pretrained(folder)
    input_ids = processor(text=prompts, return_tensors="pt")["input_ids"]
    if side == "transformers":
        from transformers import CLIPModel

        peer = CLIPModel.from_pretrained(folder, dtype=dtype).eval()
        return lambda: peer.get_image_features(pixels), lambda: peer.get_text_features(input_ids)
    model = HFCLIPModel.from_pretrained(folder, dtype=dtype).eval()
    if side == "hf_clip":
        return lambda: model.encode_image(pixels), lambda: model.encode_text(input_ids, shared_prefix=5)
    if side == "products alone":
        return products(model.vision_model, images), None

    # A hook that looks at nothing.
    for tower in (model.text_model, model.vision_model):
        tower.encoder.layers[0].register_forward_hook(lambda *_: None)
    return lambda: model.encode_image(pixels), lambda: model.encode_text(input_ids)


def products(tower, images: int):
    """The matrix products of an image tower's layers, on rows of chance."""
    import torch

    config, dtype = tower.config, tower.dtype
    tokens = images * tower.embeddings.num_positions
    rows = {width: torch.randn(tokens, width, dtype=dtype) for width in (config.hidden_size, config.intermediate_size)}
    maps = [module for module in tower.encoder.modules() if isinstance(module, torch.nn.Linear)]
    return lambda: [module(rows[module.in_features]) for module in maps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--dtype", help="float32 and, where the processor is fast at it, bfloat16 by default")
    parser.add_argument("--quick", action="store_true", help="a small model, few images and texts, one round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("images", "texts"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.images, options.texts = 1, 2, 16
    if options.side:
        import torch

        dtype = getattr(torch, options.dtype)
        both = encoders(options.side, options.folder, options.quick, dtype, options.images, options.texts)
        work = torch.inference_mode()(both[options.what == "texts"])
        work()
        return serve(work)
    import torch

    from hf_clip.model.device_hf_clip import is_fast_at_bf16

    fast = ["float32", "bfloat16"] if is_fast_at_bf16(torch.device("cpu")) else ["float32"]
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), options.quick)
        print(describe_machine("open_clip_torch"))
        for dtype in [options.dtype] if options.dtype else fast:
            for what, sides in (("images", SIDES), ("texts", SIDES[:-1])):
                shared = ["--folder", name, "--dtype", dtype, "--what", what, *(["--quick"] if options.quick else [])]
                shared += ["--images", str(options.images), "--texts", str(options.texts)]
                seconds = alternated({side: [__file__, "--side", side, *shared] for side in sides}, options.runs)
                print_table(f"{getattr(options, what)} {what}, {dtype}", seconds)


if __name__ == "__main__":
    main()
