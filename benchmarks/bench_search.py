"""Search at growing sizes: recall of text queries, time of a query, memory and bytes, of made-up embeddings.

    python benchmarks/bench_search.py [--rows 10000 50000 200000 1000000]
    python benchmarks/bench_search.py --kept runs/emoji-embeddings --texts runs/emoji-quality.npz

The second is of augmented emoji through the demo's model, 256 wide, as far as `emoji_embeddings.py` encoded them,
asked by captions that `bench_search_quality.py` embedded. The first is of made-up embeddings, which are 512 wide, of
a spectrum that falls as a power law, in 2,000 clusters, in two cones as those of CLIP are: a text and an image have a
cosine of 0.03 in the mean, two images 0.50. Queries are texts: half of a cluster's direction, half of their own. Each
size is an index as `Index.update` makes it, with its own choice of partitions; recall@10 is that of 200 queries that
the choice did not see, against a product with every row. Beside it: the same product by numpy in float32, and a walk
through a folder of 50,000 files that did not change.
"""

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hf_clip.search import approximate, calibration, store
from hf_clip.search.queries import find
from hf_clip.search.store import ModelEntry, Store
from hf_clip.search.walking import find_files

CLUSTERS = 2000
ROWS_AT_ONCE = 50_000


class Generator:
    """Unit embeddings of images and texts in two cones.

    Args:
        width: of the shared space.
    """

    def __init__(self, width: int, seed: int = 0):
        self.draw = np.random.default_rng(seed)
        # Standard deviations that fall as a power law, in directions of no meaning.
        self.scales = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
        self.scales /= np.linalg.norm(self.scales)
        self.turn = np.linalg.qr(self.draw.standard_normal((width, width)))[0].astype(np.float32)
        image_axis, text_axis = np.eye(width, dtype=np.float32)[:2]
        # Two unit images share the square of the cone's share: 0.50; an image and a text 0.03.
        self.image_mean = np.sqrt(0.5) * image_axis
        overlap = 0.03 / 0.5
        self.text_mean = np.sqrt(0.5) * (overlap * image_axis + np.sqrt(1 - overlap**2) * text_axis)
        self.clusters = self._directions(CLUSTERS)

    def _directions(self, count: int) -> np.ndarray:
        found = self.draw.standard_normal((count, len(self.scales))).astype(np.float32) * self.scales
        found[:, :2] = 0
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def _around(self, mean: np.ndarray, chosen: np.ndarray, own: float) -> np.ndarray:
        rows = np.sqrt(1 - own) * self.clusters[chosen] + np.sqrt(own) * self._directions(len(chosen))
        rows = mean + np.sqrt(0.5) * rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ self.turn

    def images(self, count: int) -> np.ndarray:
        return self._around(self.image_mean, self.draw.integers(0, CLUSTERS, count), 0.5)

    def texts(self, count: int) -> np.ndarray:
        return self._around(self.text_mean, self.draw.integers(0, CLUSTERS, count), 0.5)

    def bank(self) -> np.ndarray:
        return self.texts(256)


class KeptEmoji:
    """Embeddings of augmented emoji, in their order, and of captions, as `Generator` gives its own."""

    def __init__(self, kept: Path, texts: Path):
        self.parts = [np.load(part, mmap_mode="r") for part in sorted(kept.glob("part-?????.npy"))]
        arrays = np.load(texts)
        self.captions, self.of_bank, self.taken = arrays["captions"], arrays["bank"], 0

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def images(self, count: int) -> np.ndarray:
        size = len(self.parts[0])
        rows = np.arange(self.taken, self.taken + count)
        self.taken += count
        pieces = [self.parts[part][rows[rows // size == part] % size] for part in np.unique(rows // size)]
        return np.concatenate(pieces).astype(np.float32)

    def texts(self, count: int) -> np.ndarray:
        return self.captions[np.linspace(0, len(self.captions) - 1, count).astype(int)]

    def bank(self) -> np.ndarray:
        return self.of_bank


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def make_index(folder: Path, made: Generator | KeptEmoji, count: int, width: int) -> tuple[Store, ModelEntry, float]:
    """An index of made-up rows, as an update leaves it, and the seconds that it took beside making them up."""
    kept = Store(str(folder))
    entry = ModelEntry("made-up", "made-up", width=width)
    table, seconds = kept.images(entry), 0.0
    for first in range(0, count, ROWS_AT_ONCE):
        vectors = made.images(min(ROWS_AT_ONCE, count - first)).astype(np.float16)
        rows = [_row(first + at) for at in range(len(vectors))]
        begun = time.perf_counter()
        store.add_rows(table, store.to_rows(rows, list(vectors), width), replaced=False)
        seconds += time.perf_counter() - begun
    begun = time.perf_counter()
    store.compact(table)
    found, best = calibration.calibrate(kept, entry, made.bank())
    if approximate.is_wanted(entry, count):
        approximate.build(kept, entry)
        entry.facts["approximate"] = approximate.measure(kept, entry, found, best, count)
    return kept, entry, seconds + time.perf_counter() - begun


def _row(number: int) -> dict:
    state = {"path": f"{number // 1000}/{number}.jpg", "hash": f"{number:032x}", "size": number, "mtime": number}
    return {**state, "width": number % 1000, "height": 1, "taken": None, "error": None, "missing": False}


def measure(made: Generator | KeptEmoji, count: int, width: int, queries: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
    try:
        before = megabytes()
        kept, entry, seconds = make_index(folder, made, count, width)
        asked = made.texts(queries)
        _, exact = calibration.calibrate(kept, entry, asked)
        found, times = [], []
        for query, best in zip(asked, exact, strict=True):
            begun = time.perf_counter()
            rows, _, _ = find(kept, entry, query, 10)
            times.append(time.perf_counter() - begun)
            least = best[np.isfinite(best)].min() - 1e-4
            found.append(sum(row["score"] >= least for row in rows) / min(10, count))
        facts = entry.facts.get("approximate")
        how = "exact" if facts is None or not facts["is_used"] else f"nprobes {facts['nprobes']}/{facts['partitions']}"
        recall, a_row = np.mean(np.minimum(found, 1)), bytes_of(folder) / count
        print(f"{count:>9,} rows  recall@10 {recall:.4f}  median {_milliseconds(times):.1f} ms  {how}")
        print(f"{'':>9}  made in {seconds:.0f} s  {a_row:,.0f} bytes a row  peak +{megabytes() - before:,.0f} MB")
        _filters(kept, entry, asked[:8], count)
    finally:
        shutil.rmtree(folder)


def _filters(kept: Store, entry: ModelEntry, asked: np.ndarray, count: int) -> None:
    """Conditions that keep a thousandth, a hundredth and a half of the rows: the time, and how many rows are found."""
    for where, part in (("width = 7", 0.001), ("width < 10", 0.01), ("width < 500", 0.5)):
        times = []
        for query in asked:
            begun = time.perf_counter()
            rows, _, is_exact = find(kept, entry, query, 10, where=where)
            times.append(time.perf_counter() - begun)
            assert is_exact and len(rows) == min(10, int(count * part)), (where, len(rows))
        print(f"{'':>9}  where of {part:.1%}: {_milliseconds(times):.1f} ms, exact")


def _milliseconds(times: list[float]) -> float:
    return statistics.median(times) * 1000


def measure_numpy(count: int, width: int) -> None:
    rows = Generator(width).images(min(count, 200_000))
    query, times = rows[0], []
    for _ in range(9):
        begun = time.perf_counter()
        scores = rows @ query
        np.argpartition(-scores, min(10, len(scores) - 1))
        times.append(time.perf_counter() - begun)
    print(f"{len(rows):>9,} rows  numpy, float32: {_milliseconds(times):.1f} ms")


def measure_rclip(count: int, width: int) -> None:
    """rclip's own database and search over such rows, their embeddings given; skipped where it is not installed.

    `pip install --no-deps rclip` is enough for it.
    """
    try:
        from rclip import db, main, model
    except ImportError:
        print("rclip is not installed: pip install --no-deps rclip")
        return
    made = Generator(width)

    class Given(model.Model):
        def __init__(self):
            self.asked = made.texts(9).astype(np.float32)

        def compute_features_for_queries(self, queries):
            return self.asked[int(queries[0])] if queries else np.zeros(width, np.float32)

    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        kept = db.DB(Path(folder) / "db.sqlite3")
        for at, row in enumerate(made.images(count)):
            state = {"modified_at": 0.0, "size": at, "hash": f"{at:032x}", "deleted": None, "indexing": None}
            kept.upsert_image(
                {"filepath": f"/photos/{at}.jpg", "vector": row.astype(np.float32).tobytes(), **state}, commit=False
            )
        kept.commit()
        searching, times = main.RClip(Given(), kept, 8, None), []
        for number in range(5):
            begun = time.perf_counter()
            assert len(searching.search(str(number), "/photos")) == 10
            times.append(time.perf_counter() - begun)
        kept.close()
    print(f"{count:>9,} rows  rclip's search: {_milliseconds(times):.0f} ms")


def measure_walk(files: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-search-") as name:
        root = Path(name)
        for number in range(files):
            file = root / f"{number // 500}/{number}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.touch()
        begun = time.perf_counter()
        found = find_files(root)
        print(f"{len(found.images):>9,} files walked with their states: {time.perf_counter() - begun:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--kept", type=Path, help="folder of emoji_embeddings.py")
    parser.add_argument("--texts", type=Path, default=Path("runs/emoji-quality.npz"))
    options = parser.parse_args()

    def new() -> Generator | KeptEmoji:
        return Generator(options.width) if options.kept is None else KeptEmoji(options.kept, options.texts)

    images, texts = new().images(2000), new().texts(2000)
    print(f"cosines: text-image {(texts @ images.T).mean():.2f}, image-image {(images @ images.T).mean():.2f}")
    for count in options.rows:
        made = new()
        if isinstance(made, KeptEmoji) and count > len(made):
            print(f"{count:>9,} rows: only {len(made):,} were encoded")
            break
        measure(made, count, images.shape[1], options.queries)
    if options.kept is not None:
        return
    measure_numpy(max(options.rows), options.width)
    measure_rclip(min(max(options.rows), 50_000), options.width)
    measure_walk(options.files)


if __name__ == "__main__":
    main()
