"""A Hub on this machine's loopback that serves repositories from folders, for reading.

It speaks the part of the protocol that `huggingface_hub` reads with: the model's information, its tree, and files by
HEAD and GET. What is fetched is recorded. Clients find it by the variables of `environment()`, which they read when
they import `huggingface_hub`: run them in a process of their own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class MockHub(ThreadingHTTPServer):
    """Serves `repositories`: name (owner/name) to folder. `downloaded` lists what was fetched, as owner/name/file."""

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Path]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = dict(repositories)
        self.downloaded: list[str] = []

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a process that takes this for the Hub, and keeps its cache under `home`."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }


@contextmanager
def running_hub(repositories: Mapping[str, Path]) -> Iterator[MockHub]:
    """A hub that answers within the block."""
    hub = MockHub(repositories)
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MockHub

    def log_message(self, *args) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4 if is_api else 2 :]
        folder = self.server.repositories.get(name)
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self._send(200, json.dumps(self._describe(name, folder, rest)).encode())
        elif rest[:1] == ["resolve"] and (file := folder / "/".join(rest[2:])).is_file():
            if self.command == "GET":
                self.server.downloaded.append(f"{name}/{file.name}")
            content = file.read_bytes()
            self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _describe(self, name: str, folder: Path, rest: list[str]) -> dict | list[dict]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
        if rest[:1] == ["tree"]:
            return [{"type": "file", "path": path, "size": size, "oid": "0" * 40} for path, size in names]
        siblings = [{"rfilename": path, "size": size} for path, size in names]
        return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
