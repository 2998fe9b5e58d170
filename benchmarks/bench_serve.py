"""The server under load: searches a second of many clients beside one search alone, the slowest, and memory.

    python benchmarks/bench_serve.py [--rows 1000000] [--clients 16] [--requests 20000]
    python benchmarks/bench_serve.py --quick

An index of made-up embeddings, as `bench_search.py` makes it, is served by a process of its own, whose model gives
made-up embeddings of texts in no time: what is measured is the search, HTTP and the batches. The clients are threads
of this process, each with one connection, and ask without a pause. Beside their rate stands 1 / (median time of a
search in process, one at a time); memory is the server's resident size at each tenth of the requests.
"""

import argparse
import http.client
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bench_search import Generator, make_index

from hf_clip.search import calibration
from hf_clip.search.index import Index
from hf_clip.search.models import LazyModel
from hf_clip.serving import create_app
from hf_clip.serving.batching import Batcher
from hf_clip.serving.limits import Limits
from hf_clip.serving.running import listen, make_server
from hf_clip.serving.service import Service

TEXTS = 2000


class MadeUpModel(LazyModel):
    """Text number N has made-up embedding N."""

    def __init__(self, embeddings: np.ndarray):
        super().__init__("made-up")
        self._embeddings = embeddings
        self.batcher = Batcher({"texts": self._look_up}, {"texts": 256})

    def load(self):
        """Nothing: there are no weights."""
        return None, None

    def _look_up(self, texts: list[str]) -> np.ndarray:
        return self._embeddings[[int(text) % len(self._embeddings) if text.isdecimal() else 0 for text in texts]]

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return self.batcher.encode("texts", texts)


def prepare(folder: Path, rows: int, width: int) -> None:
    """Writes the index and the texts' embeddings."""
    made = Generator(width)
    kept, entry, _ = make_index(folder / "index", made, rows, width)
    found, _ = calibration.calibrate(kept, entry, made.bank())
    entry.tensors, entry.is_current, entry.is_whole = found.to_bytes(), True, True
    kept.put(entry)
    np.save(folder / "texts.npy", made.texts(TEXTS).astype(np.float32))


def open_made_up(folder: Path) -> tuple[Index, MadeUpModel]:
    model = MadeUpModel(np.load(folder / "texts.npy"))
    return Index(folder, str(folder / "index"), model), model


def alone(folder: Path, searches: int) -> list[float]:
    """Seconds of searches in this process, one at a time."""
    index, model = open_made_up(folder)
    index.search("0")
    times = []
    for number in range(searches):
        begun = time.perf_counter()
        index.search(str(number))
        times.append(time.perf_counter() - begun)
    model.batcher.close()
    return times


def serve(folder: Path, port) -> None:
    """The server's process; its port goes to `port`."""
    index, model = open_made_up(folder)
    socket = listen("127.0.0.1", 0)
    port.send(socket.getsockname()[1])
    make_server(create_app(Service(model, index)), Limits()).run(sockets=[socket])  # pyright: ignore[reportArgumentType]


def megabytes(process: int) -> float:
    with open(f"/proc/{process}/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Clients:
    """Threads that ask until all requests are answered."""

    def __init__(self, port: int, requests: int, process: int):
        self.port, self.requests, self.process = port, requests, process
        self.times: list[float] = []
        self.sizes: list[float] = []
        self._given, self._lock = 0, threading.Lock()

    def _next(self) -> int | None:
        with self._lock:
            self._given += 1
            if self._given > self.requests:
                return None
            if self._given % max(self.requests // 10, 1) == 0:
                self.sizes.append(megabytes(self.process))
            return self._given

    def run(self, _: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while (number := self._next()) is not None:
            begun = time.perf_counter()
            body = json.dumps({"query": str(number), "top_k": 20})
            connection.request("POST", "/v1/search", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            self.times.append(time.perf_counter() - begun)
        connection.close()


def measure(rows: int, width: int, clients: int, requests: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        folder = Path(name)
        prepare(folder, rows, width)
        median = statistics.median(alone(folder, min(100, requests)))
        print(f"{rows:,} rows, width {width}: one search alone {1000 * median:.1f} ms, {1 / median:.1f} a second")
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, there))
        process.start()
        assert process.pid is not None
        asking = Clients(here.recv(), requests, process.pid)
        _wait(asking.port)
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(asking.run, range(clients)))
        rate = requests / (time.perf_counter() - begun)
        process.terminate()
        process.join()
    middle, high = np.quantile(asking.times, (0.5, 0.99))
    print(f"{clients} clients: {rate:.1f} searches a second, {rate * median:.2f} of one alone")
    print(f"median {1000 * middle:.0f} ms, p99 {1000 * high:.0f} ms, slowest {1000 * max(asking.times):.0f} ms")
    print(f"resident MB at each tenth of {requests:,}: {' '.join(f'{size:.0f}' for size in asking.sizes)}")


def _wait(port: int) -> None:
    """Until the server answers."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="2,000 rows and 60 requests")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.width, options.clients, options.requests = 2000, 16, 4, 60
    measure(options.rows, options.width, options.clients, options.requests)


if __name__ == "__main__":
    main()
