"""Duplicates: time and memory of finding pairs, and precision and recall of "the same image" on edits and look-alikes.

    python benchmarks/bench_dedup.py                                       # made-up embeddings: 100,000 of width 512
    python benchmarks/bench_dedup.py --data stamps/*.parquet openclipart/*.parquet --model runs/emoji

**Edits** of the images of `--data` (of tables with a column `kind`, its photographs alone) are the same image: JPEG 30
and 60, WebP, scaled to one half and to twice the side, cropped by 5 and 10 % of both sides at a place by chance, a
border of 5 %, gamma 0.8 and 1.25, a blur of 1 % of the side, a line of small text.

**Look-alikes** are not: drawings of one concept by the vendors of the bundled emoji; the colors of an image turned;
and two frames, windows of seven eighths of an image that are 3 to 10 % of their side apart. Frames are of images that
are not compared with any edit.

A pair of an edit and its image that is found is right; any other pair that is found is wrong, those among images and
look-alikes too. Beside it: pHash (64 bits, distance up to 10) and cosine (from 0.94 on), both of all pairs.
"""

import argparse
import io
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_search import Generator
from emoji_embeddings import EMOJI, STYLES
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from hf_clip.search.duplicates.candidates import near_pairs
from hf_clip.search.duplicates.check import compare
from hf_clip.search.duplicates.finding import LEAST_SIMILARITY, TOP_K
from hf_clip.search.duplicates.looks import read_look

PHASH_DISTANCE, COSINE = 10, 0.94


# Edits.


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scaled(image: Image.Image, by: float) -> bytes:
    return encoded(image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.LANCZOS))


def cropped(image: Image.Image, by: float, draw: np.random.Generator) -> bytes:
    width, height = round(image.width * (1 - by)), round(image.height * (1 - by))
    left, top = (
        int(draw.integers(0, whole - part + 1)) for whole, part in ((image.width, width), (image.height, height))
    )
    return encoded(image.crop((left, top, left + width, top + height)))


def bordered(image: Image.Image, draw: np.random.Generator) -> bytes:
    color = ("white", "black", "gray")[draw.integers(3)]
    return encoded(ImageOps.expand(image, round(0.05 * max(image.size)), color))


def toned(image: Image.Image, gamma: float) -> bytes:
    return encoded(image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3))


def with_text(image: Image.Image, draw: np.random.Generator) -> bytes:
    marked = image.copy()
    size = max(7, round(0.08 * image.height))
    left, top = draw.uniform(0.02, 0.4) * image.width, (0.03, 0.88)[draw.integers(2)] * image.height
    ground = image.crop((round(left), round(top), image.width, round(top) + size)).convert("L")
    color = "black" if np.asarray(ground).mean() > 127 else "white"
    ImageDraw.Draw(marked).text((left, top), "(c) 2026 me", color, ImageFont.load_default(size))
    return encoded(marked)


EDITS: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "JPEG 30": lambda image, draw: encoded(image, "JPEG", quality=30),
    "JPEG 60": lambda image, draw: encoded(image, "JPEG", quality=60),
    "WebP": lambda image, draw: encoded(image, "WEBP"),
    "x0.5": lambda image, draw: scaled(image, 0.5),
    "x2": lambda image, draw: scaled(image, 2),
    "crop 5 %": lambda image, draw: cropped(image, 0.05, draw),
    "crop 10 %": lambda image, draw: cropped(image, 0.10, draw),
    "border 5 %": bordered,
    "gamma 0.8": lambda image, draw: toned(image, 0.8),
    "gamma 1.25": lambda image, draw: toned(image, 1.25),
    "blur": lambda image, draw: encoded(image.filter(ImageFilter.GaussianBlur(0.01 * max(image.size)))),
    "small text": with_text,
}


# Look-alikes.


def recolored(image: Image.Image, draw: np.random.Generator) -> Image.Image | None:
    """Its hues turned; None for one that has too little color for it to show."""
    values = np.asarray(image.convert("HSV")).copy()
    values[..., 0] += np.uint8(draw.integers(40, 216))
    turned = Image.fromarray(values, "HSV").convert("RGB")
    change = np.abs(np.asarray(turned, float) - np.asarray(image, float)).max(-1)
    return turned if (change > 40).mean() > 0.05 else None


def frames(image: Image.Image, draw: np.random.Generator) -> list[Image.Image]:
    """Two windows, 3 to 10 % of their side apart along one axis or both."""
    width, height = (7 * image.width // 8, 7 * image.height // 8)
    move = draw.uniform(0.03, 0.10)
    along = ((1, 0), (0, 1), (1, 1))[draw.integers(3)]
    right, down = (max(1, int(np.ceil(move * side))) * each for side, each in zip((width, height), along, strict=True))
    begins = (0, 0), (min(right, image.width - width), min(down, image.height - height))
    return [image.crop((left, top, left + width, top + height)) for left, top in begins]


@dataclass
class Item:
    """An image that is compared.

    Attributes:
        kind: image, emoji, color or frame; an edit's name.
        of: the number of the image that it was made of.
    """

    content: bytes
    kind: str
    of: int
    name: str = ""


def read_images(files: list[Path], count: int) -> Iterator[Image.Image]:
    """Images of tables, evenly spaced, `count` of each."""
    import pyarrow.parquet as pq

    for file in files:
        rows = pq.read_table(file).to_pylist()
        rows = [row for row in rows if row.get("kind", "photo") == "photo"]
        for at in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)):
            yield Image.open(io.BytesIO(rows[at]["image"]["bytes"])).convert("RGB")


def read_emoji(count: int) -> Iterator[Item]:
    """Drawings of the first concepts that several vendors drew."""
    import pyarrow.parquet as pq

    by_concept = defaultdict(list)
    for style in STYLES:
        for row in pq.read_table(EMOJI / f"{style}.parquet", columns=["image", "concept"]).to_pylist():
            by_concept[row["concept"]].append((style, row["image"]["bytes"]))
    several = sorted(concept for concept, drawn in by_concept.items() if len(drawn) > 1)
    for at in np.unique(np.linspace(0, len(several) - 1, min(count, len(several))).astype(int)):
        for style, content in by_concept[several[at]]:
            yield Item(content, "emoji", -1 - int(at), f"{several[at]}/{style}")


def make_items(images: list[Image.Image], emoji: list[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """What edits are compared with, and the edits. Every fourth image gives frames alone."""
    draw = np.random.default_rng(seed)
    kept, edits = list(emoji), []
    for number, image in enumerate(images):
        if number % 4 == 3:
            kept += [
                Item(encoded(frame), "frame", number, f"{number}/frame{at}")
                for at, frame in enumerate(frames(image, draw))
            ]
            continue
        kept.append(Item(encoded(image), "image", number, f"{number}"))
        turned = recolored(image, draw)
        if turned is not None:
            kept.append(Item(encoded(turned), "color", number, f"{number}/color"))
        edits += [Item(edit(image, draw), name, number, f"{number}/{name}") for name, edit in EDITS.items()]
    return kept, edits


# Embeddings and hashes.


def embed(model_path: Path | None, items: list[Item]) -> np.ndarray:
    """(N, D) unit embeddings, by a model, or by tiny images where there is none."""
    images = [Image.open(io.BytesIO(item.content)).convert("RGB") for item in items]
    if model_path is None:
        small = np.stack([np.asarray(image.resize((8, 8)), np.float32).ravel() / 255 for image in images])
        small -= 0.5
        return small / np.linalg.norm(small, axis=1, keepdims=True)
    from hf_clip import embed_images, load

    return embed_images(*load(str(model_path)), images, show_progress=False).numpy()


def phash(items: list[Item]) -> np.ndarray:
    """(N,) uint64: signs of the 64 lowest frequencies of 32 x 32 pixels, by their median (Zauner, 2010)."""
    place = np.arange(32)
    basis = np.cos(np.pi * (2 * place + 1) * np.arange(8)[:, None] / 64)
    found = []
    for item in items:
        gray = np.asarray(Image.open(io.BytesIO(item.content)).convert("RGB").convert("L").resize((32, 32)), float)
        low = (basis @ gray @ basis.T).ravel()
        found.append(np.packbits(low > np.median(low)).view(np.uint64)[0])
    return np.array(found)


def pairs_by_phash(one: np.ndarray, two: np.ndarray, is_one_set: bool) -> Iterator[tuple[int, int]]:
    for at, value in enumerate(one):
        for other in np.flatnonzero(np.bitwise_count(two ^ value) <= PHASH_DISTANCE):
            if not is_one_set or at < other:
                yield at, int(other)


# Measures.


class Counts:
    """Right and wrong pairs of one method."""

    def __init__(self, name: str):
        self.name = name
        self.right: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.names: list[tuple[str, str]] = []

    def take(self, edit: Item, kept: Item) -> None:
        if edit.kind in EDITS and kept.kind == "image" and kept.of == edit.of:
            self.right[edit.kind] += 1
            return
        self.names.append((edit.name, kept.name))
        kinds = {edit.kind, kept.kind} - set(EDITS)
        is_of_one = edit.of == kept.of
        self.wrong[" and ".join(sorted(kinds)) + (" of one" if is_of_one else "")] += 1

    def tell(self, edits: list[Item]) -> None:
        total = Counter(edit.kind for edit in edits)
        right, wrong = self.right.total(), self.wrong.total()
        precision = right / max(right + wrong, 1)
        print(f"{self.name:<18} precision {precision:.4f}  recall {right / max(len(edits), 1):.4f}")
        print("    recall: " + ", ".join(f"{name} {self.right[name] / max(total[name], 1):.3f}" for name in EDITS))
        print(
            "    wrong pairs: " + (", ".join(f"{count} {kind}" for kind, count in self.wrong.most_common()) or "none")
        )


def measure(
    kept: list[Item], edits: list[Item], model: Path | None, least: float, top_k: int, shows_wrong: bool
) -> Counts:
    embeds, of_edits = (embed(model, items) for items in (kept, edits))
    begun = time.monotonic()
    looks, looks_of_edits = ([read_look(item.content) for item in items] for items in (kept, edits))
    read = time.monotonic() - begun
    ours, by_cosine, by_hash = Counts("pixel check"), Counts(f"cosine {COSINE}"), Counts(f"pHash {PHASH_DISTANCE}")
    candidates = Counter()
    begun, compared = time.monotonic(), 0
    for one, one_looks, of_one, others in ((edits, looks_of_edits, of_edits, embeds), (kept, looks, embeds, None)):
        rows, columns, _ = near_pairs(of_one, others, least=least, top_k=top_k)
        compared += len(rows)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            candidates[one[row].kind] += (
                others is not None and kept[column].kind == "image" and kept[column].of == one[row].of
            )
            if one[row].content == kept[column].content or compare(one_looks[row], looks[column]).is_same:
                ours.take(one[row], kept[column])
    seconds = time.monotonic() - begun
    for one, of_one, is_one_set in ((edits, of_edits, False), (kept, embeds, True)):
        for row, column in zip(*np.nonzero(of_one @ embeds.T >= COSINE), strict=True):
            if not is_one_set or row < column:
                by_cosine.take(one[row], kept[column])
        for row, column in pairs_by_phash(phash(one), phash(kept), is_one_set):
            by_hash.take(one[row], kept[column])
    print(f"{len(kept)} images and look-alikes ({dict(Counter(item.kind for item in kept))}), {len(edits)} edits")
    print(f"candidates hold {candidates.total() / max(len(edits), 1):.4f} of the edits' images")
    for counts in (ours, by_hash, by_cosine):
        counts.tell(edits)
    print(f"{compared} pairs compared, {1000 * seconds / max(compared, 1):.2f} ms each; images read in {read:.1f} s")
    if shows_wrong:
        print("\n".join(f"    {one}  {other}" for one, other in ours.names))
    return ours


def measure_speed(rows: int, width: int) -> None:
    """Time and memory of pairs among made-up embeddings, of which every tenth is nearly another one."""
    generator = Generator(width)
    embeds = np.empty((rows, width), np.float16)
    for first in range(0, rows, 20_000):
        count = min(20_000, rows - first)
        embeds[first : first + count] = generator.images(count)
    copies = np.arange(0, rows - 1, 10)
    noise = generator.draw.standard_normal((len(copies), width)).astype(np.float32) * 0.2 / np.sqrt(width)
    copied = embeds[copies + 1].astype(np.float32) + noise
    embeds[copies] = copied / np.linalg.norm(copied, axis=1, keepdims=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    first, second, _ = near_pairs(embeds, least=LEAST_SIMILARITY, top_k=TOP_K)
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    recall = np.mean([(at, at + 1) in found for at in copies.tolist()])
    print(
        f"{rows} x {width} embeddings: {len(first)} pairs in {seconds:.1f} s, {recall:.4f} of the copies; "
        f"peak memory {peak / 2**20:.2f} GiB ({before / 2**20:.2f} before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="embeddings of the first part; 0 skips it")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--data", type=Path, nargs="+", help="tables of images that are edited (default: none)")
    parser.add_argument("--images", type=int, default=160, help="images of each table")
    parser.add_argument("--concepts", type=int, default=2000, help="concepts of emoji")
    parser.add_argument("--model", type=Path, help="whose embeddings find pairs (default: tiny images)")
    parser.add_argument("--least-similarity", type=float, default=LEAST_SIMILARITY)
    parser.add_argument("--top-k", type=int, default=TOP_K)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", action="store_true", help="list the pairs that are wrong")
    parser.add_argument("--quick", action="store_true", help="all of it at its smallest")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.width, options.images, options.concepts = 3000, 16, 4, 4
        options.data = [EMOJI / "noto.parquet"]
    if options.rows:
        measure_speed(options.rows, options.width)
    if options.data:
        kept, edits = make_items(
            list(read_images(options.data, options.images)), list(read_emoji(options.concepts)), options.seed
        )
        measure(kept, edits, options.model, options.least_similarity, options.top_k, options.wrong)


if __name__ == "__main__":
    main()
