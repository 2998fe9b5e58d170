"""Search on the emoji styles: is what is asked for there, and do images with words find what they describe?

    python benchmarks/bench_search_quality.py [--model runs/emoji] [--kept runs/emoji-quality.npz]

**Match probability.** The concepts of a style are halved, a person's variants together; the index holds one half, and
all captions are asked: those of the other half are about things that are not there. Printed: the AUROC of the raw
cosine of the best image, of the match probability as it is, and with names: the captions of the training split, the
question's own apart. Each half is the index once, for two halvings. What is found is in the order of the cosine, so
that R@1 is one number.

**Mixtures.** Captions that differ in one word (man and woman, men and women, boy and girl, prince and princess,
colors): the image of the one with the words of the other must find the other's image, the source's image apart. "+"
is image and word, "+ -" is image + word - word of the source; as plain sums of unit embeddings, and by `compose`,
which centers them.

Twemoji is the style that the model never saw; the constants were chosen on the others. Embeddings are computed once.
"""

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
from emoji_embeddings import EMOJI, STYLES, decoded, read_style

from hf_clip.search import calibration, store
from hf_clip.search.calibration import LOOKED_AT, Calibration, bank_prompts
from hf_clip.search.queries import Term, compose
from hf_clip.search.store import ModelEntry, Store

VARIANTS = re.compile(
    r"\b(man|woman|person|men|women|people|boy|girl|child|mermaid|merman|merperson|prince|princess|king|queen)\b"
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink")
WORDS = [("man", "woman"), ("men", "women"), ("boy", "girl"), ("prince", "princess")]
WORDS += [(one, other) for at, one in enumerate(COLORS) for other in COLORS[at + 1 :]]


def compute(model_path: Path, rows: dict[str, list[dict]], texts: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Embeddings of the images of each style, and of the texts of each kind."""
    from hf_clip import embed_images, embed_texts, load

    model, processor = load(str(model_path))
    found = {
        style: embed_images(model, processor, [decoded(row) for row in rows[style]], show_progress=False).numpy()
        for style in STYLES
    }
    return found | {
        kind: embed_texts(model, processor, some, dtype=None, show_progress=False).numpy()
        for kind, some in texts.items()
    }


def auroc(scores: np.ndarray, is_there: np.ndarray) -> float:
    """The fraction of pairs of a query that is there and one that is not in which the first scores higher."""
    order = np.sort(scores[~is_there])
    below, up_to = (np.searchsorted(order, scores[is_there], side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(order))


def calibrated(images: np.ndarray, bank: np.ndarray, names: np.ndarray) -> Calibration:
    """As an update of an index of these images has it."""
    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        kept, entry = Store(folder), ModelEntry("emoji", "emoji", width=images.shape[1])
        nothing = {"size": 0, "mtime": 0, "width": 64, "height": 64, "taken": None, "error": None, "missing": False}
        rows = [{"path": f"{at}.png", "hash": f"{at:032x}", **nothing} for at in range(len(images))]
        content = store.to_rows(rows, list(images.astype(np.float16)), images.shape[1])
        store.add_rows(kept.images(entry), content, replaced=False)
        return calibration.calibrate(kept, entry, bank, names)[0]


def halves(captions: list[str], seed: int):
    """Which captions are in the index, for each of two halves."""
    kinds = [VARIANTS.sub("_", caption) for caption in captions]
    known = sorted(set(kinds))
    chosen = {known[at] for at in np.random.default_rng(seed).permutation(len(known))[: len(known) // 2]}
    is_there = np.array([kind in chosen for kind in kinds])
    return is_there, ~is_there


def measure_matches(style: str, captions: list[str], images, queries, bank, names) -> None:
    figures = []
    for is_there in (one for seed in (0, 1) for one in halves(captions, seed)):
        held = images[is_there].astype(np.float16).astype(np.float32)
        scores = queries @ held.T
        best = np.argsort(-scores, axis=1)[:, :LOOKED_AT]
        raw = scores.max(1)
        first = np.array(captions, object)[is_there][best[:, 0]] == np.array(captions, object)
        found = [first[is_there].mean(), auroc(raw, is_there)]
        for competing in (names[:0], names):
            known = calibrated(images[is_there], bank, competing)
            told = np.array(
                [known.match_probability(query, held[at]) for query, at in zip(queries, best, strict=True)]
            )
            found += [auroc(told, is_there), float(((told >= 0.5) == is_there).mean())]
            if not len(competing):
                is_low = told < calibration.LOW
                low = float(is_low[is_there & first].mean()), float(is_low[~is_there].mean())
        figures.append([*found, *low])
    recall, raw, plain, plain_right, named, named_right, low_right, low_absent = np.mean(figures, 0)
    print(
        f"{style:<9} R@1 {recall:.3f}  AUROC raw {raw:.3f}  probability {plain:.3f}, right {plain_right:.3f}  "
        f"with names {named:.3f}, right {named_right:.3f}: {(named - raw) / (1 - raw):+.3f} of the gap; "
        f"low: {low_right:.3f} of right first images, {low_absent:.3f} of what is not there"
    )


def word_pairs(captions: list[str]) -> list[tuple[int, int, str, str]]:
    """(source, target, word of the source, word of the target)."""
    places, found = {caption: at for at, caption in enumerate(captions)}, set()
    for caption, at in places.items():
        for word, other in WORDS + [(other, word) for word, other in WORDS]:
            for place in re.finditer(rf"\b{word}\b", caption):
                changed = caption[: place.start()] + other + caption[place.end() :]
                if changed in places:
                    found.add((at, places[changed], word, other))
    return sorted(found)


def measure_mixtures(style: str, captions: list[str], images, of_text, bank) -> None:
    known = calibrated(images, bank, bank[:0])
    pairs = word_pairs(captions)
    right: dict[str, list[bool]] = {name: [] for name in ("plain +", "plain + -", "ours +", "ours + -")}
    for source, target, word, other in pairs:
        terms = [Term(images[source], False), Term(of_text[other], True), Term(of_text[word], True, -1.0)]
        plain = images[source] + of_text[other]
        directions = (plain, plain - of_text[word], compose(terms[:2], known), compose(terms, known))
        for name, direction in zip(right, directions, strict=True):
            scores = images @ direction
            scores[source] = -np.inf
            right[name].append(int(scores.argmax()) == target)
    told = "  ".join(f"{name} {np.mean(found):.3f}" for name, found in right.items())
    print(f"{style:<9} {len(pairs)} pairs, R@1: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--kept", type=Path, default=Path("runs/emoji-quality.npz"))
    options = parser.parse_args()
    rows = {style: read_style(style) for style in STYLES}
    captions = {style: [row["caption"] for row in rows[style]] for style in STYLES}
    learned = dict.fromkeys(
        row["caption"] for style in STYLES if style != "twemoji" for row in rows[style] if row["split"] == "train"
    )
    unique = list(dict.fromkeys(one for style in STYLES for one in captions[style]))
    words = list(dict.fromkeys(word for pair in WORDS for word in pair))
    texts = {"captions": unique, "words": words, "bank": list(bank_prompts())}
    if not options.kept.exists():
        if not (options.model / "config.json").is_file():
            print(f"{options.model} holds no model: `make demo` trains one from {EMOJI}.")
            return
        np.savez(options.kept, **compute(options.model, rows, texts))
    arrays = np.load(options.kept)
    of_text = {one: row for kind in texts for one, row in zip(texts[kind], arrays[kind], strict=True)}
    bank, names = arrays["bank"], np.stack([of_text[one] for one in learned])
    for style in STYLES:
        queries = np.stack([of_text[caption] for caption in captions[style]])
        measure_matches(style, captions[style], arrays[style], queries, bank, names)
    for style in STYLES:
        measure_mixtures(style, captions[style], arrays[style], of_text, bank)


if __name__ == "__main__":
    main()
