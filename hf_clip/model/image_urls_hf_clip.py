"""Images by URL, for programs that take URLs from strangers: bounded in time and size, public addresses only.

The address that was checked is the one that is connected to, so that a name can't answer differently the second
time, and every redirect is checked like the first URL. Proxies of the environment are not used: behind one, no
address could be checked.
"""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from string import punctuation
from time import monotonic
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from .image_decoding_hf_clip import ImageDecodeError

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
# Where routers of the whole world lead, of IPv6. Old versions of `ipaddress` take much besides for global.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# IPv4 addresses within IPv6 ones, besides those that `ipaddress` knows (RFC 6052). In the prefix that networks keep to
# themselves (64:ff9b:1::/48, RFC 8215) each says where they stand, so that none of it can be allowed.
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def public_addresses(host: str, port: int, look_up: Callable = socket.getaddrinfo) -> list[str]:
    """The addresses of a host, all of them public.

    Args:
        look_up: what asks the name service, as `socket.getaddrinfo` does.

    Raises:
        ImageDecodeError: if there are none, or one of them is private, of this machine, or otherwise not public.
    """
    try:
        found = list(dict.fromkeys(entry[4][0] for entry in look_up(host, port, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError) as error:
        raise _refused(f"the host {host!r} has no address ({error})") from error
    for address in found:
        if not _is_public(address):
            raise _refused(f"the host {host!r} has the address {address}, which is not public")
    return found


def _is_public(address: str) -> bool:
    # An IPv6 address can end with the name of an interface.
    ip = ipaddress.ip_address(address.partition("%")[0])
    within = []
    if ip.version == 6:
        if ip in NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in GLOBAL_UNICAST:
            within = [ip.sixtofour, *(ip.teredo or ())]
        else:
            return False
    return all(one.is_global and not one.is_multicast for one in (ip, *within) if one is not None)


def fetch_image(
    url: str,
    *,
    timeout: float = 10.0,
    max_bytes: int = 32 * 1024 * 1024,
    resolve: Callable[[str, int], Iterable[str]] = public_addresses,
) -> bytes:
    """The bytes behind an http or https URL.

    Args:
        timeout: seconds for each request, from connecting to the last byte.
        max_bytes: larger answers are refused, by their header or when they get there.
        resolve: gives the addresses of (host, port) that may be connected to, or raises.

    Raises:
        ImageDecodeError: (a ValueError, `reason` "url", or "too_large") whatever goes wrong.
        ValueError: if `timeout` or `max_bytes` is not above 0.
    """
    if not (timeout > 0 and max_bytes > 0):
        raise ValueError(f"timeout={timeout} and max_bytes={max_bytes} must be above 0.")
    for _ in range(MAX_REDIRECTS + 1):
        content, location = _request(url, timeout, max_bytes, resolve)
        if location is None:
            return content
        try:
            url = urljoin(url, location)
        except ValueError:
            raise _refused("a redirect leads to what is no URL") from None
    raise _refused(f"more than {MAX_REDIRECTS} redirects")


def _refused(problem: str, reason: str = "url") -> ImageDecodeError:
    # Much of it is what a server says: nothing in it may steer a terminal.
    problem = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in problem[:300])
    return ImageDecodeError(f"{problem}. Fetch the image yourself and pass its bytes.", reason)


def _shown(parts: SplitResult) -> str:
    """A URL as errors tell it: what stands before the host and behind the path may be secret."""
    host = parts.netloc.rpartition("@")[2]
    path = parts.path if host else parts.path.rpartition("@")[2]
    return repr(f"{parts.scheme}://{host}{path}"[:100])


def _request(url: str, timeout: float, max_bytes: int, resolve) -> tuple[bytes, str | None]:
    """The bytes, or where a redirect leads."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # Neither it nor what is wrong with it: where a password would stand cannot be told.
        raise _refused("that is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _refused(f"{_shown(parts)} is no http or https URL")
    port = port or (443 if parts.scheme == "https" else 80)
    addresses = list(resolve(host, port))
    connection = _Connection(host, port, addresses, is_secure=parts.scheme == "https", timeout=timeout)
    # A socket's own timeout starts again with every byte.
    deadline = threading.Timer(timeout, connection.stop)
    deadline.daemon = True
    deadline.start()
    try:
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=punctuation)
        connection.request("GET", path, headers={"User-Agent": "hf_clip", "Accept-Encoding": "identity"})
        answer = _read(connection.getresponse(), max_bytes)
        if connection.is_late:
            # An answer of unstated length ends wherever the connection does.
            raise TimeoutError
        return answer
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, ImageDecodeError) and not connection.is_late:
            raise
        problem = f"it took longer than {timeout:g} s" if connection.is_late else f"{type(error).__name__}: {error}"
        raise _refused(f"{_shown(parts)} cannot be fetched ({problem})") from error
    finally:
        deadline.cancel()
        connection.close()


def _read(response, max_bytes: int) -> tuple[bytes, str | None]:
    if response.status in REDIRECTS and (location := response.getheader("Location")):
        return b"", location
    if response.status != 200:
        raise _refused(f"the server answers {response.status} {response.reason}")
    size = response.length or 0
    content = b"" if size > max_bytes else response.read(max_bytes + 1)
    if max(size, len(content)) > max_bytes:
        raise _refused(f"the image has more than {max_bytes} bytes", "too_large")
    if len(content) < size:
        raise _refused(f"the answer ends after {len(content)} of {size} bytes")
    return content, None


class _Connection(HTTPConnection):
    """A connection to addresses that were checked, and no others."""

    def __init__(self, host: str, port: int, addresses: list[str], *, is_secure: bool, timeout: float):
        super().__init__(host, port, timeout=timeout)
        self.addresses, self.is_secure, self.is_stopped = addresses, is_secure, False
        self.deadline = monotonic() + timeout
        # `sock` is forgotten where the answer ends with the connection, while the answer is still read.
        self.waited_for: socket.socket | None = None
        # Of the Host header, which names the port unless it is the usual one.
        self.default_port = 443 if is_secure else 80

    @property
    def is_late(self) -> bool:
        return self.is_stopped or monotonic() >= self.deadline

    def connect(self) -> None:
        problem: OSError = OSError("no address")
        for address in self.addresses:
            if self.is_late:
                raise TimeoutError
            try:
                left = max(self.deadline - monotonic(), 1e-3)
                self.sock = self.waited_for = socket.create_connection((address, self.port), left)
                break
            except OSError as error:
                problem = error
        else:
            raise problem
        if self.is_late:
            raise TimeoutError
        if self.is_secure:
            # The handshake waits for the other side: only after the socket stands where `stop` finds it.
            context, plain = ssl.create_default_context(), self.sock
            self.sock = self.waited_for = context.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def stop(self) -> None:
        """Ends whatever waits for the other side."""
        self.is_stopped = True
        if self.waited_for is not None:
            with suppress(OSError):
                # Not SSLSocket's own, which would drop its state under the thread that reads.
                socket.socket.shutdown(self.waited_for, socket.SHUT_RDWR)
