"""A server that `hf-clip serve` runs on an index, asked in place of loading the model: with nothing that is heavy."""

import base64
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# As `hf_clip.serving` and `hf_clip.search` have them, which take seconds to import.
FOUND_BY = "serving.json"
FOLDER = ".hf-clip.lance"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
RUN_HEADER = "x-hf-clip-run"
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 60.0


def place_of(root: Path) -> Path:
    """Where the index of a folder, or of a file, lies by default."""
    return root.with_name(f".{root.name}{FOLDER}") if root.is_file() else root / FOLDER


def running_server(root: str, index: str | None) -> dict[str, Any] | None:
    """What the server of an index says about itself, if there is one; a file that a dead one left is none."""
    place = Path(index) if index else place_of(Path(root))
    try:
        found = json.loads((place / FOUND_BY).read_text(encoding="utf-8"))
        os.kill(found["pid"], 0)
        # A file that came along with somebody's images must not send questions elsewhere.
        is_here = found["host"] in LOOPBACK and all(
            text is None or (isinstance(text, str) and text.isascii() and text.isprintable())
            for text in (found["token"], found["run"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_here else None


class ServersHits(list):
    """Hits of a server, with the fields of `hf_clip.search.Hits`."""

    def __init__(self, answer: dict[str, Any]):
        super().__init__(SimpleNamespace(**{**row, "row": int(row["row"])}) for row in answer["data"])
        self.match_probability: float | None = answer["match_probability"]
        self.has_match: bool = answer["has_match"]


def ask(server: dict[str, Any], question: dict[str, Any]) -> ServersHits | None:
    """The server's hits; None for whatever it does not answer with hits: then the index itself is asked."""
    try:
        return ServersHits(_post(server, "/v1/search", json.dumps(question).encode()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def data_url(file: Path) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(file.read_bytes()).decode()


def _post(server: dict[str, Any], path: str, body: bytes) -> dict[str, Any]:
    """The answer's JSON. Raises OSError, ValueError. By hand: Python's own client takes longer than the search."""
    host, port = str(server["host"]), int(server["port"])
    name = f"[{host}]" if ":" in host else host
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {name}:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if server.get("token"):
        lines.append(f"Authorization: Bearer {server['token']}")
    with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, content = received.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    of_server = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in headers)}
    # Another program may have that number and that port by now.
    if status.split()[1:2] != ["200"] or of_server.get(RUN_HEADER) != server["run"]:
        raise ValueError(status)
    return json.loads(content)
