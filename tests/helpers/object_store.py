"""An object store on this machine's loopback: moto's S3 behind faults of a plan.

A request of an object is told by its path and range. Faults befall the first request of some, by the order in which
they come: whoever asks again gets it whole. So each fault costs exactly one repeated request.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from hf_clip.sources import cache, remote
from hf_clip.sources.parquet_files import _remote_footer

BUCKET = "bucket"
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        pass


class ObjectStore:
    """`faults`: what befalls a new request, by its number from 0: "status_503", "truncated" or "timeout" (the answer
    does not come to its end). `injected` counts them, `requests` those of
    objects."""

    def __init__(self):
        self.faults: Callable[[int], str | None] = lambda number: None
        self.injected: Counter[str] = Counter()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.is_over = threading.Event()
        self._store = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable) -> Iterator[bytes]:
        fault, path = None, environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "GET" and path.count("/") > 1:
            key = (path, environ.get("HTTP_RANGE", ""))
            with self._lock:
                self.requests[key] += 1
                fault = self.faults(len(self.requests) - 1) if self.requests[key] == 1 else None
                self.injected.update([fault] if fault else [])
        if fault == "status_503":
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(_BUSY)))])
            return iter([_BUSY])
        content = self._store(environ, start_response)
        return iter(content) if fault is None else self._cut(b"".join(content), fault)

    def _cut(self, content: bytes, fault: str) -> Iterator[bytes]:
        yield content[: len(content) // 2]
        if fault == "timeout":
            self.is_over.wait(60)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store with an empty bucket, which s3:// leads to; requests are made again at once."""
    store = ObjectStore()
    variables = {
        "ENDPOINT_URL": store.url,
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setattr(remote, "FIRST_WAIT", 0.01)
        remote._file_system.cache_clear()
        try:
            # What moto holds is that of all its servers in a process.
            urlopen(Request(f"{store.url}/moto-api/reset", method="POST"))
            remote.file_system("s3://").mkdir(BUCKET)
            yield store
        finally:
            store.close()
            remote._file_system.cache_clear()


def forget(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a store without faults before a test, and nothing of it known or kept."""
    store.faults = lambda number: None
    store.injected.clear()
    store.requests.clear()
    monkeypatch.setattr(remote, "_sizes", {})
    monkeypatch.setattr(cache, "cache", cache.PartCache())
    _remote_footer.cache_clear()
