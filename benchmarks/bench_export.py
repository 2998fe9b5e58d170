"""The image and text towers exported, beside torch: the same weights, each side a process, measured in turn.

    python benchmarks/bench_export.py [--quick] [--folder DIR]

Sides are this package in bfloat16 and float32 (eager), transformers in float32, and `hf-clip export` for ONNX Runtime
(float32 and int8) and OpenVINO (float32). 16 images, prepared before, and 64 captions. With --folder what was exported
is kept there, and used again. The first side is int8: ratios say by how much it is faster. Cosines are those of the
parity reports, here on weights that are random.
"""

import argparse
import json
import tempfile
from pathlib import Path

from bench_labels import SMALL, labels
from sides import alternated, describe_machine, print_table, serve

EXPORTS = {"onnx int8": ("onnx", True), "onnx float32": ("onnx", False), "openvino float32": ("openvino", False)}
SIDES = (
    "onnx int8",
    "hf_clip bfloat16",
    "hf_clip float32",
    "transformers float32",
    "onnx float32",
    "openvino float32",
)


def make_models(folder: Path, is_small: bool) -> None:
    """ViT-B/32 of random weights in transformers' format, and its exports, where they are not there yet."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from hf_clip import HFCLIPImageProcessor, HFCLIPProcessor, HFCLIPTokenizer, export_model

    if not (folder / "model").is_dir():
        torch.manual_seed(0)
        fields = {"text_config": SMALL, "vision_config": SMALL} if is_small else {}
        CLIPModel(CLIPConfig(**fields)).save_pretrained(folder / "model")
        HFCLIPProcessor(HFCLIPImageProcessor(), HFCLIPTokenizer()).save_pretrained(folder / "model")
    for side, (to, int8) in EXPORTS.items():
        if not (folder / side).is_dir() and not (is_small and side != "onnx int8"):
            output_dir = folder / side
            # Random weights tell drawn images hardly apart.
            export_model(folder / "model", to=to, int8=int8, output_dir=output_dir, allow_low_parity=True)


def encoder(side: str, folder: Path, what: str, count: int):
    """A function that encodes images or texts, made before, once."""
    import torch

    from hf_clip import load, load_exported

    kind, _, dtype = side.partition(" ")
    model, processor = load_exported(folder / side) if side in EXPORTS else load(folder / "model")
    image_size = model.config.vision_config.image_size
    pixel_values = torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    input_ids = processor(text=[f"a photo of a {label}." for label in labels(count)], return_tensors="pt")["input_ids"]
    if kind == "transformers":
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(folder / "model").eval()
        encode_image, encode_text = model.get_image_features, model.get_text_features
    else:
        if side not in EXPORTS:
            model.to(getattr(torch, dtype))
        encode_image, encode_text = model.encode_image, model.encode_text
    pixel_values = pixel_values.to(model.dtype)
    return torch.inference_mode()(
        (lambda: encode_image(pixel_values)) if what == "images" else (lambda: encode_text(input_ids))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a small model, two sides, one round")
    parser.add_argument("--folder", type=Path, help="where exports are kept, and looked for")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("images", "texts"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work = encoder(options.side, options.folder, options.what, getattr(options, options.what))
        work()
        return serve(work)
    if options.quick:
        options.runs, options.images, options.texts = 1, 1, 2
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        make_models(folder, options.quick)
        print(describe_machine("onnxruntime", "openvino"))
        for side in EXPORTS:
            if (folder / side).is_dir():
                found = json.loads((folder / side / "hf_clip_export.json").read_text(encoding="utf-8"))["parity"]
                print(
                    f"{side}: cosine {found['min_image_cosine']:.5f} (images) {found['min_text_cosine']:.5f} (texts)"
                )
        for what in ("images", "texts"):
            count = getattr(options, what)
            shared = ["--folder", str(folder), "--what", what, f"--{what}", str(count)]
            sides = SIDES[: 2 if options.quick else None]
            seconds = alternated({side: [__file__, "--side", side, *shared] for side in sides}, options.runs)
            print_table(f"{count} {what}, ViT-B/32", seconds)


if __name__ == "__main__":
    main()
