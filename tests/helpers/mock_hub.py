"""A Hub on this machine's loopback that keeps repositories in folders.

It speaks the part of the protocol that `huggingface_hub` reads with (a model's information, its tree, files by HEAD
and GET) and, for a client with `TOKEN`, the part that it writes with (repositories, branches, large files, commits,
the check of a card's front matter). What is fetched and written is recorded, and answers can be made to fail. Clients
find it by the variables of `environment()`, which they read when they import `huggingface_hub`: run them in a process
of their own.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# No secret: who has it may write to the mock.
TOKEN = "hf_" + "canary" * 6


class MockHub(ThreadingHTTPServer):
    """Serves `repositories`: name (owner/name, of a Space spaces/owner/name, of data datasets/owner/name) to
    folder.

    `branches` has those other than main, by (name, branch).

    `downloaded` lists what was fetched, as owner/name/file; `requests` counts (method, path) and `commits` those made,
    by repository; `large_files` holds what was uploaded beside commits, by its hash. New repositories stand under
    `home`. Each entry of `failures`, (part of method and path, status), makes one answer fail.
    """

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Path], home: Path | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = dict(repositories)
        self.home = home
        self.branches: dict[tuple[str, str], Path] = {}
        self.private: dict[str, bool] = {}
        self.downloaded: list[str] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        self.large_files: dict[str, bytes] = {}
        self.failures: list[tuple[str, int]] = []
        self.commits: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a process that takes this for the Hub, and keeps its cache under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def commit(self, name: str) -> str:
        """The id of a repository's last commit: `COMMIT`, and one more with each that is made here."""
        return f"{int(COMMIT, 16) + self.commits[name]:040x}"

    def folder(self, name: str, revision: str = "main") -> Path | None:
        return self.branches.get((name, revision)) or self.repositories.get(name)


def use_in_this_process(hub: MockHub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Has `huggingface_hub`, which read its variables long ago, take this for the Hub and `cache` for its cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    # What another test's Hub had under these names is not there.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@contextmanager
def running_hub(repositories: Mapping[str, Path], home: Path | None = None) -> Iterator[MockHub]:
    """A hub that answers within the block."""
    hub = MockHub(repositories, home)
    # It looks for its end 50 times a second instead of twice.
    thread = Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
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

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.server.requests[self.command, path] += 1
        for failure in self.server.failures:
            if failure[0] in f"{self.command} {path}":
                self.server.failures.remove(failure)
                self._send(failure[1], b'{"error": "as planned"}')
                return
        parts = path.strip("/").split("/")
        if self.command in ("GET", "HEAD"):
            self._read(parts)
        elif parts[-2:-1] == ["paths-info"]:
            self._read(parts)
        elif path == "/api/validate-yaml":
            problem = problem_of_card(json.loads(body)["content"])
            self._send_json({"errors": [{"message": problem}] if problem else []}, 400 if problem else 200)
        elif self.command == "PUT" and parts[0] == "large":
            self.server.large_files[parts[1]] = body
            self._send(200, b"")
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send_json({"error": "Invalid credentials in Authorization header"}, 401)
        else:
            self._write(parts, body)

    def _read(self, parts: list[str]) -> None:
        is_api = parts[0] == "api"
        kind = parts[1 if is_api else 0]
        parts = parts[2:] if is_api else parts[kind in ("spaces", "datasets") :]
        name, rest = "/".join(parts[:2]), parts[2:]
        if kind in ("spaces", "datasets"):
            name = f"{kind}/{name}"
        folder = self.server.folder(name, rest[1] if len(rest) > 1 else "main")
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self._send_json(self._describe(name, folder, rest))
        elif rest[:1] == ["resolve"] and (file := folder / "/".join(rest[2:])).is_file():
            if self.command == "GET":
                self.server.downloaded.append(f"{name}/{file.name}")
            content = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.server.commit(name)}
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                content = content[first : last + 1]
            self._send(206 if asked else 200, content, headers)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _describe(self, name: str, folder: Path, rest: list[str]) -> dict | list[dict]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
        if rest[:1] in (["tree"], ["paths-info"]):
            return [{"type": "file", "path": path, "size": size, "oid": "0" * 40} for path, size in names]
        siblings = [{"rfilename": path, "size": size} for path, size in names]
        described = {"sha": self.server.commit(name), "private": self.server.private.get(name, False)}
        return {"id": name, "modelId": name, **described, "tags": [], "siblings": siblings}

    def _write(self, parts: list[str], body: bytes) -> None:
        server = self.server
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            kind = "spaces/" if asked.get("type") == "space" else ""
            name = f"{kind}{asked.get('organization') or 'someone'}/{asked['name']}"
            exists = name in server.repositories
            if not exists:
                server.repositories[name] = server.home / name
                server.repositories[name].mkdir(parents=True)
                server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._send_json({"url": f"{server.url}/{name}", "id": name.removeprefix(kind)}, 409 if exists else 200)
        elif parts[-1] == "verify":
            self._send(200, b"{}")
        elif parts[-4:] == ["info", "lfs", "objects", "batch"]:
            self._send_json(
                {"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]}
            )
        else:
            name, (action, revision) = "/".join(parts[2:4]), parts[4:6]
            if parts[1] == "spaces":
                name = f"spaces/{name}"
            if action == "branch":
                server.branches[name, revision] = server.home / f"{name}@{revision}"
                server.branches[name, revision].mkdir(parents=True, exist_ok=True)
                self._send_json({})
            elif action == "preupload":
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": _upload_mode(file["path"]),
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._send_json({"files": files})
            else:
                self._commit(name, server.folder(name, revision), body)

    def _place(self, asked: dict) -> dict:
        """Where a large file is to be put; nowhere if it is there."""
        if asked["oid"] in self.server.large_files:
            return asked
        place = {"href": f"{self.server.url}/large/{asked['oid']}?signature=secret"}
        return {**asked, "actions": {"upload": place, "verify": {"href": f"{self.server.url}/verify"}}}

    def _commit(self, name: str, folder: Path, body: bytes) -> None:
        header, *lines = map(json.loads, body.splitlines())
        if header["value"].get("parentCommit") not in (None, self.server.commit(name)):
            self._send_json({"error": "A commit has happened since"}, 412)
            return
        for line in lines:
            value = line["value"]
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            is_large = line["key"] == "lfsFile"
            path.write_bytes(self.server.large_files[value["oid"]] if is_large else base64.b64decode(value["content"]))
        self.server.commits[name] += 1
        commit = self.server.commit(name)
        self._send_json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def _send_json(self, content: dict | list, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _upload_mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png", ".parquet")) else "regular"


def problem_of_card(content: str) -> str | None:
    """What the Hub would find wrong with a card's front matter, as far as it is checked here."""
    _, mark, rest = content.partition("---\n")
    try:
        data = yaml.safe_load(rest.partition("\n---\n")[0]) if mark else None
    except yaml.YAMLError as error:
        return f"not YAML: {error}"
    if not isinstance(data, dict):
        return "no front matter"
    for key in ("tags", "language", "datasets"):
        if not all(isinstance(item, str) for item in data.get(key) or []):
            return f"{key} must be a list of strings"
    for example in data.get("widget") or []:
        if not (isinstance(example.get("src"), str) and isinstance(example.get("candidate_labels"), str)):
            return "a widget's example needs src and candidate_labels"
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not (result["task"].get("type") and result["dataset"].get("type") and result["dataset"].get("name")):
                return "model-index: a result needs the type of its task, and its data set's type and name"
            if not all("value" in metric and metric.get("type") for metric in result["metrics"]):
                return "model-index: a metric needs a type and a value"
    return None
