"""Does a model that was trained on whole images point at their parts? Emoji on canvases, in a style that it never saw.

    python benchmarks/bench_locate.py [--model runs/emoji] [--canvases 100] [--modes] [--quick]
    python benchmarks/bench_locate.py --style noto --canvases 20 --scales 0.5 0.25   # how default scales are chosen

Four emoji of Twemoji, of different concepts, stand on a canvas of 256 pixels at random offsets, 48 to 128 pixels a
side, apart from one another; the windows know nothing of where. The four names are the labels. Printed: how often the
highest place of a name's heat map lies in its own emoji (chance: 0.25 among the four, less with the background), and
the mean IoU of its best box with the emoji's, which ends where the drawing does.

`--modes` measures each attention of a vision transformer. At the end: the time of `dense_image_features` beside
`encode_image`, alternated, for a ViT of random weights.
"""

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from emoji_embeddings import EMOJI, read_style
from PIL import Image

SIDE, LEAST, MOST, COUNT = 256, 48, 128, 4
THRESHOLD = 0.5


def drawn(row: dict) -> Image.Image:
    """The drawing alone, without the white around it."""
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    inked = np.asarray(image).min(axis=2) < 250
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    return image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) if len(rows) else image


def canvas(rows: list[dict], rng: np.random.Generator) -> tuple[Image.Image, list[str], list[tuple]]:
    """An image, the names of what stands on it, and the box (left, top, right, bottom) of each."""
    while True:
        chosen = [rows[at] for at in rng.choice(len(rows), COUNT, replace=False)]
        if len({row["concept"] for row in chosen}) == len({row["caption"] for row in chosen}) == COUNT:
            break
    while True:
        sides = rng.integers(LEAST, MOST + 1, COUNT)
        places = [(int(rng.integers(0, SIDE - side + 1)), int(rng.integers(0, SIDE - side + 1))) for side in sides]
        boxes = [(x, y, x + int(side), y + int(side)) for (x, y), side in zip(places, sides, strict=True)]
        if not any(overlap(one, other) for at, one in enumerate(boxes) for other in boxes[:at]):
            break
    image = Image.new("RGB", (SIDE, SIDE), "white")
    found = []
    for row, (left, top, right, _) in zip(chosen, boxes, strict=True):
        emoji = drawn(row)
        scale = (right - left) / max(emoji.size)
        emoji = emoji.resize([max(round(length * scale), 1) for length in emoji.size], Image.Resampling.BICUBIC)
        image.paste(emoji, (left, top))
        found.append((left, top, left + emoji.width, top + emoji.height))
    return image, [row["caption"] for row in chosen], found


def overlap(one: tuple, other: tuple) -> float:
    """Pixels that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def area(box: tuple) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(one: tuple, other: tuple) -> float:
    shared = overlap(one, other)
    return shared / (area(one) + area(other) - shared)


def corners(box: dict) -> tuple:
    return tuple(box[name] for name in ("xmin", "ymin", "xmax", "ymax"))


def measure(model, processor, rows: list[dict], count: int, seed: int, **looks) -> tuple[float, float, float]:
    """How often a name's highest place lies in its emoji, the mean IoU of its best box, and seconds for a canvas."""
    from hf_clip import ZeroShotClassifier
    from hf_clip.model.localization_hf_clip import Looks, boxes_of, enlarged, score_maps

    rng, hits, overlaps, seconds = np.random.default_rng(seed), [], [], 0.0
    for _ in range(count):
        image, names, boxes = canvas(rows, rng)
        classifier = ZeroShotClassifier(model, processor, names, ["{}"], cache=False)
        begun = time.perf_counter()
        [(_, scores)] = score_maps(classifier, [image], Looks(**looks), show_progress=False)
        found = boxes_of(image, scores, names, THRESHOLD)
        seconds += time.perf_counter() - begun
        for name, map_HV, box in zip(names, enlarged(scores, image), boxes, strict=True):
            row, column = divmod(int(map_HV.argmax()), SIDE)
            hits.append(box[0] <= column < box[2] and box[1] <= row < box[3])
            best = next((corners(one["box"]) for one in found if one["label"] == name), None)
            overlaps.append(0.0 if best is None else iou(best, box))
    return float(np.mean(hits)), float(np.mean(overlaps)), seconds / count


def measure_time(model, pixels, repeats: int) -> None:
    """The time of dense features beside that of an embedding, alternated: medians."""
    import torch

    from hf_clip.model.modeling_dense_hf_clip import ATTENTIONS

    calls = {"encode_image": lambda: model.encode_image(pixels)}
    calls |= {name: lambda name=name: model.dense_image_features(pixels, attention=name) for name in ATTENTIONS}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for name, call in calls.items():
                begun = time.perf_counter()
                call()
                # The first turn warms up.
                times[name] += [time.perf_counter() - begun] if turn else []
    base = statistics.median(times["encode_image"])
    told = ", ".join(f"{name} {statistics.median(times[name]) / base:.3f}" for name in ATTENTIONS)
    print(f"dense_image_features of {len(pixels)} images, encode_image ({base * 1e3:.0f} ms) = 1: {told}")


def small_vit(captions: list[str], **shape):
    """A vision transformer of random weights, and its processor."""
    import torch

    from hf_clip import HFCLIPConfig, HFCLIPImageProcessor, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer

    tokenizer = HFCLIPTokenizer.train(captions, vocab_size=560)
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = HFCLIPModel(HFCLIPConfig(text_config=text, vision_config=shape, projection_dim=64)).eval()
    size = shape.get("image_size", 224)
    image_processor = HFCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return model, HFCLIPProcessor(image_processor, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--canvases", type=int, default=100)
    parser.add_argument("--style", default="twemoji", help="another than the measured one, to choose settings on")
    parser.add_argument("--scales", type=float, nargs="+", help="sizes of windows, else the defaults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", action="store_true", help="measure each attention of a vision transformer")
    parser.add_argument("--quick", action="store_true", help="a tiny model of random weights, and no repeats")
    options = parser.parse_args()
    import torch

    from hf_clip import load
    from hf_clip.model.modeling_dense_hf_clip import ATTENTIONS

    torch.set_num_threads(1)
    rows = read_style(options.style)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiny |= {"image_size": 32, "patch_size": 8}
    if options.quick:
        options.canvases, options.modes = 1, True
        model, processor = small_vit([row["caption"] for row in rows[:50]], **tiny)
    elif (options.model / "config.json").is_file():
        model, processor = load(str(options.model))
    else:
        model = processor = None
        print(f"{options.model} holds no model: `make demo` trains one from {EMOJI}.")
    for attention in (ATTENTIONS if options.modes else ("query",)) if model is not None else ():
        looks = {"attention": attention} | ({"scales": tuple(options.scales)} if options.scales else {})
        hits, mean_iou, seconds = measure(model, processor, rows, options.canvases, options.seed, **looks)
        told = f"attention {attention}: " if options.modes else ""
        print(
            f"{told}points into the right emoji {hits:.3f}, mean IoU of its box {mean_iou:.3f} "
            f"({COUNT * options.canvases} emoji, {seconds * 1e3:.0f} ms a canvas)"
        )
    vit, _ = small_vit(["a"], **(tiny if options.quick else {}))
    size = vit.config.vision_config.image_size
    measure_time(vit, torch.randn(1 if options.quick else 8, 3, size, size), 1 if options.quick else 9)


if __name__ == "__main__":
    main()
