"""Requests that mean harm, over a real socket: none gets a file, none stops the server."""

import json
import random
import socket
import time
import urllib.request
from urllib.parse import urlsplit

import pytest

from hf_clip.serving.limits import Limits
from tests.helpers.counts import soak_count
from tests.helpers.served import data_url, gray_index, running, service_of
from tests.serving.test_api import bomb

CANARY = b"what nobody may read"
LIMITS = Limits(body_bytes=2**20, head_seconds=0.3, body_seconds=0.3, connections=64)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "secret.png").write_bytes(CANARY)
    service = service_of(gray_index(folder / "photos", range(0, 40, 4)), LIMITS)
    (folder / "photos/secret.txt").write_bytes(CANARY)
    with running(service) as address:
        yield address
    service.close()


def send(address: str, content: bytes, timeout: float = 5.0) -> bytes:
    """What comes back for raw bytes; nothing where the server hangs up."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout) as connection:
        try:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (ConnectionError, TimeoutError):
            return b""


def request(address: str, target: str, body: bytes = b"", host: str | None = None, more: str = "") -> bytes:
    host = host or urlsplit(address).netloc
    method = "POST" if body else "GET"
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{kind}{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


def traversal(address: str, draw: random.Random) -> bytes:
    up = draw.choice(["../", "..%2f", "%2e%2e/", "..\\", "....//", "%252e%252e%252f", "..%00/"]) * draw.randint(1, 6)
    name = draw.choice(["secret.png", "secret.txt", "etc/passwd", "photos/secret.txt", ".hf-clip.lance/serving.json"])
    start = draw.choice(["/thumb/", "/", "/page.js/", "/thumb/0?size=", "/v1/", "//", "/file=", "/gradio_api/file="])
    return request(address, f"{start}{up}{name}")


def foreign_host(address: str, draw: random.Random) -> bytes:
    host = draw.choice(
        ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[::2]", "", " ", "169.254.169.254"]
    )
    return request(address, draw.choice(["/", "/v1/status", "/thumb/0"]), host=host or "x")


def paths_for_images(address: str, draw: random.Random) -> bytes:
    name = draw.choice(
        ["../secret.png", "/etc/passwd", "file:///etc/passwd", "secret.txt", "http://127.0.0.1:1/a.png"]
    )
    content = draw.choice([{"near": name}, {"images": name}, {"liked": [name]}, {"where": f"path = read('{name}')"}])
    return request(address, "/v1/search", json.dumps({"query": [], **content}).encode())


def huge_body(address: str, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        # Says so at once, or never.
        return request(address, "/v1/search", b" " * (2**20 + 1))
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    head = f"POST /v1/search HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + chunk * 20


def bombs(address: str, draw: random.Random) -> bytes:
    body = {"input": data_url(bomb(draw.choice([9_000, 60_000, 2**31 - 1])))}
    return request(address, "/v1/embeddings", json.dumps(body).encode())


def nonsense(address: str, draw: random.Random) -> bytes:
    return draw.choice(
        [
            draw.randbytes(200),
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            request(address, "/v1/search", b"[" * 200_000),
            request(address, "/v1/search", b"[" * 20_000 + b"]" * 20_000),
            request(address, "/v1/search", b'{"query": "\xff"}'),
            request(address, "/v1/search", more="Upgrade: websocket\r\nConnection: Upgrade\r\n"),
            request(address, "/v1/search", b"{}", more="Content-Length: -5\r\n"),
        ]
    )


def odd_texts(address: str, draw: random.Random) -> bytes:
    """What JSON, paths and headers can hold, and few programs expect."""
    half = '"a \\ud800"'
    body = draw.choice(
        [
            f'{{"input": {half}}}',
            f'{{"input": [{{"text": {half}}}]}}',
            f"{{{half}: 1}}",
            f'{{"query": {half}}}',
            f'{{"query": "a", "where": {half}}}',
            f'{{"token": {half}}}',
            '{"query": "a", "where": "length(repeat(path, 2000000000)) > 0"}',
            json.dumps({"query": "a", "where": " AND ".join(["width > 1"] * 30_000)}),
            json.dumps({"query": "a", "where": "true) OR (missing"}),
            '{"query": "a", "top_k": ' + "9" * 4000 + "}",
        ]
    )
    path = "/login" if "token" in body else "/v1/embeddings" if "input" in body else "/v1/search"
    return draw.choice(
        [
            request(address, path, body.encode()),
            request(address, path, body.encode()),
            request(address, "/thumb/" + "9" * 5000),
            request(address, "/", more="Origin: http://[evil\r\n"),
            request(address, "/nothing", host="[::1"),
            request(address, "/v1/search", b"{}", more="Content-Length: " + "9" * 5000 + "\r\n"),
        ]
    )


KINDS = (traversal, foreign_host, paths_for_images, huge_body, bombs, nonsense, odd_texts)


def test_no_request_gets_a_file_or_stops_the_server(address):
    draw = random.Random(0)
    for number in range(soak_count(126, 1000)):
        answer = send(address, KINDS[number % len(KINDS)](address, draw))
        assert CANARY not in answer and b"root:" not in answer
        status = answer.split(b" ", 2)[1:2]
        # The page itself is no secret; all else is refused, or the connection ends.
        assert (
            status in ([], [b"400"], [b"401"], [b"403"], [b"404"], [b"405"], [b"413"], [b"431"])
            or b"<!doctype" in answer
        ), answer[:300]
    assert is_alive(address)


def test_slow_clients_keep_nobody_out(address):
    place = urlsplit(address)
    head = f"POST /v1/search HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: 100\r\n\r\n".encode()
    slow = [socket.create_connection((place.hostname, place.port), 5) for _ in range(soak_count(80, 300))]
    for number, connection in enumerate(slow):
        try:
            # A third says nothing, a third half of a head, a third a head and half of a body.
            connection.sendall((b"", head[:20], head + b"{")[number % 3])
        except ConnectionError:
            pass
    begun = time.monotonic()
    while not is_alive(address):
        assert time.monotonic() - begun < 5
    for connection in slow:
        connection.settimeout(5)
        try:
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # noqa: B023
        except ConnectionError:
            answer = b""
        assert not answer or b" 408 " in answer[:20]
        connection.close()
    assert is_alive(address)


def is_alive(address: str) -> bool:
    body = json.dumps({"query": "gray 4"}).encode()
    asked = urllib.request.Request(f"{address}/v1/search", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return json.load(answer)["data"][0]["path"] == "4.png"
    except OSError:
        return False
