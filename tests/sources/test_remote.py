"""Files at addresses: the same rows in the same order as here, whatever befalls the requests, and each counted."""

import os
import socket
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_clip.sources import SourceError, cache, iterate_samples, list_shards, open_source, remote
from hf_clip.sources.cache import FETCHERS, PartCache
from hf_clip.sources.files import list_files
from hf_clip.training.config import DataConfig
from hf_clip.training.data_fingerprint import fingerprint
from hf_clip.training.stream import PairStream, open_training_source
from hf_clip.training.stream.data import describe_fetching
from tests.helpers.mock_hub import running_hub, use_in_this_process
from tests.helpers.object_store import BUCKET, forget, object_store
from tests.training.test_stream import ids, make_stream, row, take, write_parquet, write_tar

FAULTS = ["status_503", None, "truncated", "timeout"]


@pytest.fixture(scope="module")
def opened():
    with object_store() as store:
        yield store


@pytest.fixture
def store(opened, monkeypatch):
    forget(opened, monkeypatch)
    return opened


def pairs(first: int, last: int) -> list[dict]:
    return [{"image": row(index)["image"], "caption": f"pair {index}"} for index in range(first, last)]


def upload(folder: Path) -> str:
    for file in folder.iterdir():
        remote.file_system("s3://").put_file(str(file), f"{BUCKET}/{folder.name}/{file.name}")
    return f"s3://{BUCKET}/{folder.name}"


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three parquet files of some row groups each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        write_parquet(folder / f"{number:02d}.parquet", pairs(20 * number, 20 * number + 20), 7)
    return folder


OPTIONS = {"lanes": 4, "shuffle_block": 24, "decoded_cache_gb": 0.0}


def stream_of(data: str, workers: int = 2) -> PairStream:
    return make_stream(open_training_source(DataConfig(train=[data])), 8, workers=workers, **OPTIONS)


def order_of(data: str, workers: int = 2, steps: int = 20) -> list[int]:
    return ids(take(stream_of(data, workers), steps))


def test_the_order_is_that_of_local_files_whatever_befalls_the_requests(shards, store, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS_OF_REQUEST", 0.5)
    address, expected = upload(shards), order_of(str(shards))
    assert len(set(expected)) == 60
    before = remote.repeated_requests()
    store.faults = lambda number: FAULTS[number % len(FAULTS)] if number < 8 else None
    stream = stream_of(address)
    assert ids(take(stream, 20)) == expected
    assert store.injected == Counter(status_503=2, truncated=2, timeout=2)
    assert remote.repeated_requests() - before == store.injected
    fetched = stream.fetched()
    assert fetched["parts"] >= 9 and fetched["bytes"] > 5000 and fetched["timeout"] >= 2
    said = describe_fetching(Counter(parts=9, bytes=2_340_000_000, truncated=3, timeout=1))
    assert said == "Fetched 9 shards, 2.34 GB; 4 requests were made again (3 truncated, 1 timeout)."


def test_tars_are_read_whole_in_the_same_order_again(tmp_path, store, monkeypatch):
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(4):
        write_tar(tmp_path, pairs(9 * number, 9 * number + 9 - number)).rename(folder / f"{number}.tar")
    address = upload(folder)
    expected = order_of(address, workers=0, steps=9)
    assert [shard.num_rows for shard in list_shards(open_source(address))] == [None] * 4
    store.requests.clear()
    store.faults = lambda number: "truncated"
    monkeypatch.setattr(cache, "cache", PartCache())
    before = remote.repeated_requests()
    assert order_of(address, steps=9) == expected
    assert (remote.repeated_requests() - before)["truncated"] == store.injected["truncated"] == 4
    assert set(store.requests.values()) == {2}, "each tar was fetched once, and once again for its fault"


def test_lists_braces_and_patterns_name_files_of_all_kinds(shards, store, tmp_path):
    address = upload(shards)
    (tmp_path / "all.txt").write_text(f"# two here, one there\n{shards}/{{00,02}}.parquet\n\n{address}/01.parquet\n")
    names = [shards / "00.parquet", shards / "02.parquet", f"{address}/01.parquet"]
    assert list_files(f"@{tmp_path}/all.txt") == (names, None)
    assert list_files(f"{address}/{{00..02}}.parquet")[0] == [f"{address}/0{number}.parquet" for number in range(3)]
    assert list_files(f"{address}/*1.parquet") == ([f"{address}/01.parquet"], None)
    assert list_files(address) == ([f"{address}/0{number}.parquet" for number in range(3)], address)
    captions = [sample.captions[0] for sample in iterate_samples(open_source(f"@{tmp_path}/all.txt"))]
    assert captions == [f"pair {index}" for index in (*range(20), *range(40, 60), *range(20, 40))]
    found = fingerprint([address], 60)
    assert found[f"{address}/00.parquet"] == (shards / "00.parquet").stat().st_size and found["number of files"] == 3


def test_the_web_is_read_like_a_store(shards, store):
    upload(shards)
    remote.file_system("s3://").chmod(f"{BUCKET}/shards/00.parquet", "public-read")
    web = f"{store.url}/{BUCKET}/shards/00.parquet?version=1"
    assert [sample.captions for sample in iterate_samples(open_source(web))] == [
        [f"pair {index}"] for index in range(20)
    ]


def test_files_of_the_hub_are_read_by_their_addresses(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_sizes", {})
    with running_hub({"datasets/owner/pairs": shards}) as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        assert order_of("hf://datasets/owner/pairs") == order_of(str(shards))


def test_what_a_store_does_not_have_is_named_with_its_fix(store):
    remote.file_system("s3://").pipe_file(f"{BUCKET}/table.csv", b"image,caption\n0.png,zero\n")
    for data, message in (
        ("s3://bucket/gone.parquet", "no such file or folder: 's3://bucket/gone.parquet'. Check the address."),
        ("s3://bucket/*.tar", "'s3://bucket/*.tar' matches no file. Check the pattern."),
        ("s3://bucket/table.csv", "parquet files with images inside and tars are read. Write one of these, or fetch"),
    ):
        with pytest.raises(SourceError) as caught:
            open_source(data)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gs://bucket/x.tar", "a package that reads gs:// is not installed. Install it: pip install gcsfs."),
        ("ftq://host/x.tar", "ftq:// is no kind of address. Known are s3://, hf://, https://, gs://."),
        ("s3://bucket/{0..2.tar", "Close each brace, as in 'shard-{00..31}.tar'."),
        ("@gone.txt", "'@gone.txt' is no list of files (FileNotFoundError"),
    ],
)
def test_what_names_no_files_is_named_with_its_fix(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source(data)
    assert message in str(caught.value)


def test_a_store_that_stays_busy_ends_the_reading(shards, store, monkeypatch):
    address = upload(shards)
    monkeypatch.setattr(remote, "MAX_REQUESTS", 1)
    store.faults = lambda number: "status_503"
    message = r"'s3://.*/\d\d.parquet' could not be read in 1 requests \(1 status_503; the last: .*then resume the run"
    with pytest.raises(SourceError, match=message):
        open_source(address)
    store.faults = lambda number: None
    assert len(list(iterate_samples(open_source(address)))) == 60


def test_a_run_that_is_asked_to_stop_waits_for_no_store(shards, store, monkeypatch):
    asked = threading.Event()

    def busy(*args):
        asked.set()
        raise TimeoutError

    stream = stream_of(upload(shards), workers=0)
    stream.is_stopped = asked.is_set
    monkeypatch.setattr(remote, "FIRST_WAIT", 600.0)
    monkeypatch.setattr(remote, "_once", busy)
    assert list(stream.batches()) == []


def test_a_store_that_is_not_there_is_sought_again(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "MAX_REQUESTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar"
    with pytest.raises(SourceError, match=r"could not be read in 2 requests \(2 connection; the last: .*Connect"):
        open_source(address)


class Bytes:
    """A `read_bytes` whose files are of any length."""

    def __init__(self, monkeypatch, meet: int = 1):
        self.read: list[str] = []
        self.meeting = threading.Barrier(meet, timeout=10)
        monkeypatch.setattr("hf_clip.sources.remote.read_bytes", self)

    def __call__(self, address: str, first: int, last: int) -> bytes:
        self.read.append(address)
        self.meeting.wait()
        return bytes(last - first)


def test_parts_are_fetched_ahead_side_by_side(monkeypatch):
    content, parts = Bytes(monkeypatch, meet=3), PartCache()
    for name in "abc":
        parts.fetch_ahead(f"x://{name}", 0, 10)
    for name in "abc":
        with parts.borrow(f"x://{name}", 0, 10) as file:
            assert os.fstat(file.fileno()).st_size == 10
    assert sorted(content.read) == ["x://a", "x://b", "x://c"] and (parts.fetched, parts.fetched_bytes) == (3, 30)


def test_what_nobody_is_going_to_read_is_not_fetched(monkeypatch):
    content, parts, begun = Bytes(monkeypatch), PartCache(), threading.Semaphore(0)
    content.meeting, goes_on = SimpleNamespace(wait=lambda: begun.release() or goes_on.wait(10)), threading.Event()
    for number in range(50):
        parts.fetch_ahead(f"x://{number}", 0, 2 * remote.BYTES_OF_REQUEST)
    for _ in range(FETCHERS):
        assert begun.acquire(timeout=10)
    parts.forget_ahead()
    goes_on.set()
    assert parts.held_bytes == 0
    with parts.borrow("x://49", 0, 10):
        pass
    # Of those begun, the first request alone.
    assert len(content.read) == FETCHERS + 1 and parts.fetched == 1


def test_the_cache_keeps_to_its_bound_but_for_what_is_being_read(monkeypatch, caplog):
    content, parts = Bytes(monkeypatch), PartCache(max_bytes=20)
    with parts.borrow("x://a", 0, 10):
        pass
    parts.fetch_ahead("x://b", 0, 10)
    with parts.borrow("x://b", 0, 10):
        # `a` was read and makes space for `c`, which waits to be read: there is none for `d`.
        parts.fetch_ahead("x://c", 0, 10)
        parts.fetch_ahead("x://d", 0, 10)
        with parts.borrow("x://c", 0, 10):
            assert parts.held_bytes == 20 and not caplog.records
            with parts.borrow("x://e", 0, 10), parts.borrow("x://b", 0, 10):
                assert parts.held_bytes == 30
    assert content.read == ["x://a", "x://b", "x://c", "x://e"]
    assert [record.getMessage() for record in caplog.records] == [
        "The parts of remote files that are read at one time take 0.0 GB, more than `shard_cache_gb`=2e-08. Raise it, "
        "lower `lanes`, or write smaller shards."
    ]
    with parts.borrow("x://f", 0, 10):
        assert parts.held_bytes == 20
