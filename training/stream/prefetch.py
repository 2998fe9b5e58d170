"""Work done in threads before its result is used: Pillow and file reads release the interpreter."""

import os
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Executor

MAX_DEFAULT_WORKERS = 16


def choose_workers() -> int:
    """The number of decoding threads by default: the machine's cores, divided among its processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), MAX_DEFAULT_WORKERS))


def prefetch_one(workers: Executor | None, items: Iterator) -> Iterator:
    """The same items; `workers` make the first at once, and each next one while the one before is used."""
    if workers is None:
        return items
    done = object()
    pending = workers.submit(next, items, done)

    def rest() -> Iterator:
        nonlocal pending
        while (item := pending.result()) is not done:
            pending = workers.submit(next, items, done)
            yield item

    return rest()


def prefetch(items: Iterator, depth: int = 1) -> Generator:
    """The same items, made in a thread up to `depth` ahead of their use; what the thread raises is raised here."""
    done, stopped = object(), threading.Event()
    ready: queue.Queue = queue.Queue(depth)

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:
            put((done, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
