"""Running the server: its socket, its end, and the file by which `hf-clip search` finds it."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .application import create_app
from .guard import LOOPBACK
from .limits import Limits
from .service import Service

logger = logging.getLogger(__name__)

PORT = 7860
# In the folder of an index: what `hf-clip search` needs to ask the server.
FOUND_BY = "serving.json"
LEAST_TOKEN = 16
# Requests that are being answered when the server is to end have so long.
LAST_SECONDS = 10


class ServeError(ValueError):
    """The server cannot be started; one line."""


def serve(
    open_service: Callable[[], Service],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> None:
    """Serves until a signal ends it, and answers what it was asked until then. Where, and its end, are logged.

    Args:
        open_service: opens the model and the index, once the port is known to be free.
        host: where to listen: this machine's loopback, or, with a token, another address of it.
        port: 0 takes one that is free.
        token: what callers must show, of LEAST_TOKEN characters or more.
        allowed_hosts: more names by which the server is called, such as that of a proxy before it.
        limits: of requests.

    Raises:
        ServeError: for a host without a token, a token that is short, and a port in use.
    """
    check_access(host, token)
    listening = listen(host, port)
    with contextlib.closing(listening):
        service = open_service()
        run = secrets.token_urlsafe(16)
        names = {*LOOPBACK, host, *allowed_hosts, *([] if host in LOOPBACK else [socket.gethostname()])}
        app = create_app(service, hosts=names, token=token, run=run, any_number=is_everywhere(host))
        port = listening.getsockname()[1]
        server = make_server(app, limits or service.limits)
        with _signals(server), announced(service, host, port, token, run):
            about = service.describe()
            found = f"{about['index']['rows']} images, " if about["index"] else ""
            logger.info(f"http://{_shown(host)}:{port}/ ({found}{about['model']}). Ctrl-C stops it.")
            server.run(sockets=[listening])
        logger.info("stopped.")


def check_access(host: str, token: str | None) -> None:
    """Raises ServeError for an address that others reach without a token, and for a token that is guessed."""
    if token is not None and len(token) < LEAST_TOKEN:
        raise ServeError(f"`token` has {len(token)} characters: take {LEAST_TOKEN} or more, by chance.")
    if host not in LOOPBACK and token is None:
        raise ServeError(f"`host={host}` lets others reach the images: give a `token`, or drop `host`.")


def is_everywhere(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")  # noqa: S104


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises ServeError if it cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ServeError(
            f"`port={port}` of {host} cannot be taken ({reason}): name another `port`; 0 takes a free one."
        ) from error
    return made


def make_server(app: Any, limits: Limits) -> uvicorn.Server:
    class Connection(BoundedConnection):
        head_seconds, most = limits.head_seconds, limits.connections

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return uvicorn.Server(config)


class BoundedConnection(H11Protocol):
    """A connection that is closed when a request's head does not come, and when there are too many."""

    head_seconds: float
    most: int
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_between = self.cycle is None or self.cycle.response_complete
        if not is_between:
            self._forget_timer()
        elif self._head_timer is None:
            # Of the next request on this connection.
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._end)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


@contextlib.contextmanager
def _signals(server: uvicorn.Server) -> Iterator[None]:
    """uvicorn ends gracefully and then raises the signal once more, which does no harm here.

    One that comes before uvicorn listens to signals ends the server too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def announced(service: Service, host: str, port: int, token: str | None, run: str) -> Iterator[None]:
    """While the body runs, a file in the index's folder says how to ask this server; its owner alone reads it."""
    index = service.index
    address = "::1" if host == "::" else "127.0.0.1" if is_everywhere(host) else host
    if index is None or "://" in index.place or address not in LOOPBACK:
        yield
        return
    file = Path(index.place) / FOUND_BY
    content = {"pid": os.getpid(), "host": address, "port": port, "token": token, "run": run, "model": service.name}
    partial = file.with_name(f".{FOUND_BY}.{run}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        partial.replace(file)
    except OSError as error:
        logger.warning("%s cannot be written (%s): hf-clip search will not use this server.", file, error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(file.read_text("utf-8"))["run"] == run:
                file.unlink()


def _shown(host: str) -> str:
    if is_everywhere(host):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
