"""Images by URL: what is fetched, and what is refused before or while it is. All servers are on the loopback."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_clip.model import image_urls_hf_clip as urls_hf_clip
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.image_urls_hf_clip import fetch_image, public_addresses

HOST = "images.example"


def answers(*found):
    """A name service that knows one answer."""
    return lambda host, port, type: [(2, type, 6, "", (address, port)) for address in found]


def resolve(host, port):
    """As the real one, but that one name leads to the loopback."""
    return ["127.0.0.1"] if host == HOST else public_addresses(host, port, answers("192.168.1.7"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        page = self.path.split("?")[0].strip("/")
        getattr(self, page.partition("-")[0], self.missing)(page)

    def send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(content), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def missing(self, page):
        self.send(404)

    def image(self, page):
        self.send(200, b"12345678")

    def endless(self, page):
        self.send(200, Content_Length=None)
        while True:
            try:
                self.wfile.write(b"x" * 4096)
            except OSError:
                return

    def liar(self, page):
        self.send(200, b"x", Content_Length=10**12)
        self.close_connection = True

    def cut(self, page):
        self.send(200, b"x", Content_Length=5)
        self.close_connection = True

    def drip(self, page):
        """A byte whenever the client might lose patience: no single wait is long."""
        self.send(200, Content_Length=None)
        while not self.server.is_over.wait(0.01):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def hop(self, page):
        left = int(page.partition("-")[2])
        self.send(302, Location=f"/hop-{left - 1}" if left else "/image")

    def inside(self, page):
        self.send(302, Location="http://intranet.example/secret")

    def literal(self, page):
        self.send(307, Location=f"http://127.0.0.1:{self.server.server_port}/image")

    def file(self, page):
        self.send(301, Location="file:///etc/passwd")

    def bracket(self, page):
        self.send(302, Location="http://user:SECRET@[::1")

    def login(self, page):
        self.send(302, Location=f"http://user:SECRET@{self.headers['Host']}/cut?token=SECRET#SECRET")

    def colors(self, page):
        self.wfile.write(b"HTTP/1.1 404 \x1b[31mred\x1b[0m\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.asked, server.is_over = True, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def fetch(server, page, **options):
    url = f"http://{HOST}:{server.server_port}/{page}"
    return fetch_image(url, **{"resolve": resolve, "timeout": 20.0, **options})


def test_an_image_comes_as_it_is_asked_for_by_name(server):
    server.asked.clear()
    assert fetch(server, "image?size=ä b#part") == b"12345678"
    assert server.asked == [("/image?size=%C3%A4%20b", f"{HOST}:{server.server_port}")]
    assert fetch(server, "hop-4") == b"12345678"
    assert fetch(server, "image", max_bytes=8) == b"12345678"


@pytest.mark.parametrize(
    ("page", "options", "reason", "said"),
    [
        ("gone", {}, "url", "the server answers 404"),
        ("image", {"max_bytes": 7}, "too_large", "more than 7 bytes"),
        ("liar", {"max_bytes": 1000}, "too_large", "more than 1000 bytes"),
        ("endless", {"max_bytes": 100_000}, "too_large", "more than 100000 bytes"),
        ("cut", {}, "url", "ends after 1 of 5 bytes"),
        ("drip", {"timeout": 0.2}, "url", r"longer than 0\.2 s"),
        ("hop-9", {}, "url", "more than 5 redirects"),
        ("inside", {}, "url", "'intranet.example' has the address 192.168.1.7, which is not public"),
        ("literal", {}, "url", "has the address"),
        ("file", {}, "url", "'file:///etc/passwd' is no http or https URL"),
        ("bracket", {}, "url", "a redirect leads to what is no URL"),
        ("colors", {}, "url", r"answers 404 \\x1b\[31mred\\x1b"),
    ],
)
def test_what_is_refused_on_the_way(server, page, options, reason, said):
    with pytest.raises(ImageDecodeError, match=said) as refused:
        fetch(server, page, **options)
    assert refused.value.reason == reason


@pytest.mark.parametrize("page", ["cut", "drip", "login"])
def test_errors_tell_no_secret_of_a_url(server, page):
    place = f"{HOST}:{server.server_port}"
    with pytest.raises(ImageDecodeError, match=f"'http://{place}/(cut|drip)' cannot be fetched|ends after") as refused:
        url = f"http://user:SECRET@{place}/{page}?signature=SECRET#SECRET"
        fetch_image(url, resolve=resolve, timeout=0.2 if page == "drip" else 20.0)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["http://user:SECRET@[::1", "http://user:SECRET/", "http://user:p?SECRET@host/", "ftp://user:SECRET@host/?SECRET",
     "user:SECRET@host/a.png", "http:\\\\user:SECRET@host/"],
)  # fmt: skip
def test_what_is_no_url_is_told_without_its_secrets(url):
    with pytest.raises(ImageDecodeError, match="no URL|no http") as refused:
        fetch_image(url)
    assert "SECRET" not in str(refused.value)


def test_the_time_is_for_all_addresses_of_a_host_together(monkeypatch):
    clock, asked = [0.0], []

    def never(address, timeout):
        asked.append(address[0])
        clock[0] += timeout
        raise TimeoutError

    monkeypatch.setattr(urls_hf_clip, "monotonic", lambda: clock[0])
    monkeypatch.setattr(urls_hf_clip.socket, "create_connection", never)
    with pytest.raises(ImageDecodeError, match="longer than 20 s"):
        fetch_image(f"http://{HOST}/", timeout=20.0, resolve=lambda host, port: ["192.0.2.1", "192.0.2.2"])
    assert asked == ["192.0.2.1"] and clock == [20.0]


def test_by_default_this_machine_is_out_of_reach(server):
    server.asked.clear()
    for host in ("127.0.0.1", "localhost", "[::1]"):
        with pytest.raises(ImageDecodeError, match="not public"):
            fetch_image(f"http://{host}:{server.server_port}/image")
    assert not server.asked


def test_https_speaks_tls_to_the_checked_address(server):
    # The server does not: what matters is that it was that one, and that nothing was sent in the clear.
    server.asked.clear()
    with pytest.raises(ImageDecodeError, match="SSL"):
        fetch_image(f"https://{HOST}:{server.server_port}/image", resolve=resolve)
    assert not any(path == "/image" for path, _ in server.asked)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
     "2002:a00:1::", "2001:db8::1", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808", "::127.0.0.1", "::8.8.8.8",
     "::ffff:0:127.0.0.1", "fec0::1", "4000::1", "2001:0:808:808::80ff:fffe", "2002:e000:1::", "64:ff9b::e000:1",
     "::ffff:224.0.0.1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    with pytest.raises(ImageDecodeError, match="not public"):
        public_addresses("name.example", 80, answers("93.184.215.14", address))


def test_addresses_that_are_public():
    found = (
        "93.184.215.14",
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    )
    assert public_addresses("name.example", 80, answers(*found, found[0])) == list(found)


@pytest.mark.parametrize("url", ["http://", "ftp://images.example/a", "http://[::1", "http://a:99999/", "//a/b"])
def test_what_is_no_url(url):
    with pytest.raises(ImageDecodeError, match="no URL|no http"):
        fetch_image(url, resolve=lambda host, port: [])


def test_limits_must_be_limits():
    for limits in ({"timeout": 0}, {"max_bytes": -1}):
        with pytest.raises(ValueError, match="must be above 0"):
            fetch_image("http://images.example/", **limits)
