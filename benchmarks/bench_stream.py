"""How soon a rank of a large run has its first pairs, in how much memory, and which pairs those are.

    python benchmarks/bench_stream.py [--quick]

Each side is a process of its own. "generated": an index of 1,000,000 row groups in 10,000 files, of which no file is
there: dealt to a run's lanes, and the first pieces of each own lane. "real": as many parquet files of one row group
as there are files, from their footers to the first batch. "2 billion": the order of a rank among 1,024, by arithmetic
(all lanes' rows are each pair once) and by reading lanes to their ends. Seconds and memory are those after imports.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH_SIZE = 32_768
FILES, GROUPS = 10_000, 1_000_000
QUICK_FILES, QUICK_GROUPS = 20, 1000


def resident() -> float:
    """MB of this process in memory, at most so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def stream_of(data, rank: int, world_size: int, batch_size: int = BATCH_SIZE):
    from hf_clip import HFCLIPImageProcessor
    from hf_clip.training.config import AugmentationConfig, DataConfig
    from hf_clip.training.stream import PairStream

    config = DataConfig(train=["made up"], workers=0, decoded_cache_gb=0)
    return PairStream(data, config, HFCLIPImageProcessor(), batch_size, 0, AugmentationConfig(), rank, world_size)


def made_up(lengths: np.ndarray, num_files: int):
    """Training data of row groups of which there is the index alone."""
    import datasets

    from hf_clip.sources import Source
    from hf_clip.sources.columns import Columns
    from hf_clip.sources.row_groups import ParquetIndex, RowGroups
    from hf_clip.training.stream import TrainingData

    files = tuple(f"made-up/{number:06d}.parquet" for number in range(num_files))
    first_groups = np.arange(num_files + 1) * len(lengths) // num_files
    index = ParquetIndex(files, datasets.Features(), first_groups, np.concatenate([[0], np.cumsum(lengths)]))
    parts = RowGroups(index, Columns("image", ("caption",), (), None, None, ()))
    columns = {"image_column": "image", "caption_columns": ("caption",)}
    source = Source(dataset=None, name="made up", find_rows=lambda: parts, **columns)
    return TrainingData((source,), (1.0,))


def begin_generated(rank: int, world_size: int, groups: int, files: int) -> str:
    from hf_clip.training.stream.order import EpochOrder

    lengths = np.random.default_rng(0).integers(900, 1100, groups)
    stream = stream_of(made_up(lengths, files), rank, world_size)
    for lane in stream.own_lanes:
        order = EpochOrder(stream.pieces[lane], stream.data.weights, (stream.seed, 0, lane))
        shard = stream.shards[0][order[0].piece.shard]
    return f"{stream.num_rows:,} pairs, {stream.lanes} lanes; the first piece of the last lane is of {shard.name}"


def begin_real(folder: str) -> str:
    from hf_clip.training.config import DataConfig
    from hf_clip.training.stream import open_training_source

    data = open_training_source(DataConfig(train=[folder]))
    stream = stream_of(data, 0, 1, 32)
    next(stream.batches())
    return f"{stream.num_rows:,} pairs of {len(stream.shards[0]):,} row groups; one batch was made"


def write_files(folder: Path, count: int) -> None:
    """Parquet files of a few pairs, the same but for their names."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    image = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "PNG")
    rows = [{"image": {"bytes": image.getvalue(), "path": None}, "caption": f"pair {row}"} for row in range(4)]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    for number in range(count):
        (folder / f"{number:06d}.parquet").write_bytes(content.getvalue())


def share_billions(groups: int) -> str:
    """Whose rows they are among 1,024 ranks, by arithmetic, and how a step mixes them, by sampling."""
    from hf_clip.training.stream.order import EpochOrder, choose_lanes, choose_shuffle_block, deal, rows_of_lane

    lengths, world_size = np.random.default_rng(1).integers(0, 20_001, groups), 1024
    total = int(lengths.sum())
    lanes = choose_lanes(BATCH_SIZE, total, None, world_size)
    dealt, starts = deal([lengths], lanes), np.cumsum(lengths) - lengths
    begins = np.concatenate([starts[of.shards] + of.firsts for [of] in dealt])
    ends = np.concatenate([starts[of.shards] + of.lasts for [of] in dealt])
    whole = begins[0] == 0 and ends[-1] == total and bool((begins[1:] == ends[:-1]).all())
    sizes = [len(rows_of_lane(total, lane, lanes)) for lane in range(lanes)]
    block = choose_shuffle_block(lanes) // lanes
    # The first block of each lane: row groups that a step's pairs come from.
    first = [EpochOrder(of_lane, [1.0], (0, 0, lane))[0].piece for lane, of_lane in enumerate(dealt)]
    return (
        f"{total:,} pairs, {world_size} ranks, {lanes} lanes of {min(sizes):,} to {max(sizes):,} pairs; "
        f"each pair once: {whole}; {total // BATCH_SIZE:,} steps an epoch; the first step's {BATCH_SIZE:,} pairs come "
        f"from {len({piece.shard for piece in first}):,} row groups, shuffled in blocks of {block} a lane"
    )


def measure(side: str, folder: str, quick: bool) -> None:
    """Within a side's process: what it found, its seconds and its growth."""
    import hf_clip.training.stream  # noqa: F401

    files, groups = (QUICK_FILES, QUICK_GROUPS) if quick else (FILES, GROUPS)
    stream_of(made_up(np.full(10, 100), 2), 0, 1, 32)
    before, started = resident(), time.perf_counter()
    if side.startswith("generated"):
        found = begin_generated(int(side.split()[2]) - 1, int(side.split()[2]), groups, files)
    elif side == "real":
        found = begin_real(folder)
    else:
        found = share_billions(groups if quick else 200_000)
    seconds = time.perf_counter() - started
    print(f"{side}: {seconds:.1f} s, {resident() - before:.0f} MB more. {found}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few files and row groups")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options.side, options.folder, options.quick)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), QUICK_FILES if options.quick else FILES)
        quick = ["--quick"] if options.quick else []
        for side in ("generated of 1 rank", "generated of 1024 ranks", "real", "2 billion"):
            command = [sys.executable, os.path.abspath(__file__), "--side", side, "--folder", folder, *quick]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
