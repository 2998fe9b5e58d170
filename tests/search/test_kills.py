"""An update that is killed at any moment, in commits and compactions too, goes on and ends with the same table."""

import os
import random
import shutil
import signal
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.counts import soak_count
from tests.helpers.ranks import process_context
from tests.helpers.search_toys import GrayEncoder, write_gray

AT_ONCE = 8
IMAGES = soak_count(80, 200)


def update(root: Path, log: Path) -> None:
    """Brings an index up to date; writes how many images it is about to encode to `log` each time."""
    from hf_clip.search import Index, models, updating

    embed = models.LazyModel.embed_pixels

    def logged(model, pixels):
        with log.open("a") as file:
            file.write(f"{len(pixels)}\n")
        return embed(model, pixels)

    model = GrayEncoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updating, "ENCODES_AT_ONCE", AT_ONCE)
        patch.setattr(models.LazyModel, "embed_pixels", logged)
        Index.open(root / "photos", model=model, processor=model.processor).update()


def change(root: Path, number: int) -> None:
    """Files are moved, changed and added, so that the next update has all to do."""
    photos = root / "photos"
    draw = random.Random(number)
    files = sorted(photos.rglob("*.png"))
    for file in draw.sample(files, 20):
        target = photos / f"moved{number}" / file.name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    for file in draw.sample(sorted(photos.rglob("*.png")), 20):
        file.write_bytes(file.read_bytes() + bytes([number % 256]))


def forked(function, *arguments, kill_after: float | None = None) -> bool:
    """Whether a fork of this process that runs the function came to its end."""
    child = os.fork()
    if not child:
        try:
            if kill_after is not None:
                threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            function(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code == 0


def kill_many_times(root: Path, kills: int, connection) -> None:
    """In a process of its own, which has LanceDB imported and has used nothing of it: it is forked again and again."""
    import hf_clip.model.state_key_hf_clip
    import hf_clip.search.updating  # noqa: F401

    warnings.filterwarnings("ignore", message="lancedb fork support")
    assert forked(update, root, root / "first.log")
    seconds, draw, encoded_beyond = 0.0, random.Random(0), []
    while sum(died for _, died in encoded_beyond) < kills:
        number = len(encoded_beyond)
        change(root, number)
        log = root / f"{number}.log"
        died, begun = 0, time.monotonic()
        # The first goes undisturbed, and tells how long one takes.
        while not forked(update, root, log, kill_after=draw.uniform(0, seconds) if number else None):
            died, begun = died + 1, time.monotonic()
        seconds = time.monotonic() - begun
        encoded = sum(map(int, log.read_text().split())) if log.exists() else 0
        encoded_beyond.append((encoded, died))
    connection.send(encoded_beyond)
    connection.close()


def table_of(root: Path) -> Counter:
    from hf_clip.search import Index
    from hf_clip.search.store import EMBEDDING

    index = Index.open(root / "photos")
    entry = index._entry()
    content = index._store.columns(entry, ["path", "hash", EMBEDDING], "missing = false")
    rows = zip(*(content[name].to_pylist() for name in ("path", "hash", EMBEDDING)), strict=True)
    return Counter((path, digest, tuple(vector)) for path, digest, vector in rows)


@pytest.mark.slow
def test_kills_lose_no_more_than_one_buffer_and_the_table_ends_the_same(tmp_path):
    kills = soak_count(1, 20)
    for number in range(IMAGES):
        file = write_gray(tmp_path / f"photos/{number % 3}/{number}.png", number)
        file.write_bytes(file.read_bytes() + str(number).encode())
    ours, theirs = process_context().Pipe()
    process = process_context().Process(target=kill_many_times, args=(tmp_path, kills, theirs))
    process.start()
    theirs.close()
    counted = ours.recv()
    process.join()
    for encoded, died in counted:
        # 20 files were changed.
        assert encoded <= 20 + died * AT_ONCE
    killed = table_of(tmp_path)
    shutil.rmtree(tmp_path / "photos/.hf-clip.lance")
    update(tmp_path, tmp_path / "left_alone.log")
    assert killed == table_of(tmp_path) and sum(killed.values()) == IMAGES
