"""What stands before the application: who may ask, from where, how much, and for how long.

It is the outermost layer of ASGI. A request that is refused never reaches the application, and gets OpenAI's error in
one line. Names of hosts are checked against rebinding of DNS, origins against other sites' pages.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from .errors import RequestError
from .limits import Limits

logger = logging.getLogger(__name__)

COOKIE = "hf_clip_session"
# By it a caller knows that it reached the server that it meant.
RUN_HEADER = "x-hf-clip-run"
# They show nothing of the model or the index.
OPEN_PATHS = ("/health", "/login", "/page.css", "/login.js", "/favicon.ico")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Nothing but this server's own files runs, is shown or is asked.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Checks each request, holds its body within limits, and ends it in time.

    Args:
        app: the application.
        hosts: names by which the server may be called, beside its numbers if `any_number`.
        token: what callers must show; None lets all in.
        run: a random name of this run.
        any_number: whether any IP address is a name of the server.
    """

    def __init__(
        self,
        app: Any,
        *,
        hosts: Collection[str] = LOOPBACK,
        token: str | None = None,
        limits: Limits | None = None,
        run: str = "",
        any_number: bool = False,
    ):
        self.app, self.limits, self.run = app, limits or Limits(), run
        self._hosts, self._any_number = {host.lower() for host in hosts}, any_number
        self._token, self._session = token, secrets.token_urlsafe(32)
        self._active, self._held_bytes = 0, 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            # There is no websocket here.
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        answer = _Answer(send, self.run)
        self._active += 1
        held = 0
        try:
            self._check(scope)
            body, held = await self._body(scope, receive)
            if scope["path"] == "/login" and scope["method"] == "POST":
                await self._log_in(body, answer)
                return
            await asyncio.wait_for(self.app(scope, _replay(body, receive), answer), self.limits.answer_seconds)
        except RequestError as error:
            if error.status == 401 and scope["path"] == "/" and scope["method"] == "GET":
                await answer.whole(303, b"", {"location": "/login"})
            else:
                await answer.refuse(error)
        except TimeoutError:
            seconds = self.limits.answer_seconds
            await answer.refuse(
                RequestError(504, f"no answer within {seconds:g} s: ask for less at once.", None, "timeout")
            )
        except Exception as error:
            logger.error("%s %r failed", scope["method"], scope["path"][:200], exc_info=error)
            await answer.refuse(RequestError(500, "the server failed: its log says why."))
        finally:
            self._active -= 1
            self._held_bytes -= held

    # Who asks.

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        """Raises RequestError for whoever may not ask."""
        headers = _headers(scope)
        host = headers.get("host", "")
        name = _host_name(host)
        if name not in self._hosts and not (self._any_number and _is_number(name)):
            raise RequestError(
                403, f"this server is not called {name[:80]!r}: name it with --allow-host.", None, "host"
            )
        self._check_origin(scope, headers, host)
        if self._active > self.limits.active:
            raise RequestError(503, "too many requests at once: try again in a second.", None, "busy")
        if self._token is not None and scope["path"] not in OPEN_PATHS and not self._is_known(headers):
            raise RequestError(
                401, "a token is missing or wrong: send Authorization: Bearer TOKEN.", None, "invalid_token"
            )

    def _check_origin(self, scope: MutableMapping[str, Any], headers: dict[str, str], host: str) -> None:
        origin = headers.get("origin")
        is_page = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        is_foreign = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not is_page
        if is_foreign or (origin is not None and _place_of(origin) != host.lower()):
            raise RequestError(403, "another site's page may not ask this server.", None, "origin")

    def _is_known(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(given.strip(), self._token or ""):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and same(cookie.value, self._session)

    async def _log_in(self, body: bytes, answer: "_Answer") -> None:
        try:
            given = json.loads(body)["token"]
        except (ValueError, KeyError, TypeError, RecursionError):
            given = None
        if self._token is None or not isinstance(given, str) or not same(given, self._token):
            # Guesses take time.
            await asyncio.sleep(0.5)
            raise RequestError(401, "this is not the token.", "token", "invalid_token")
        cookie = f"{COOKIE}={self._session}; HttpOnly; SameSite=Strict; Path=/"
        await answer.whole(200, b"{}", {"content-type": "application/json", "set-cookie": cookie})

    # How much.

    async def _body(self, scope: MutableMapping[str, Any], receive: Any) -> tuple[bytes, int]:
        """The body, and how many bytes it holds of those that all requests may. Raises RequestError."""
        length = _headers(scope).get("content-length", "0")
        most = self.limits.body_bytes
        too_large = RequestError(
            413, f"the request is larger than {most // 2**20} MB: send less at once.", None, "too_large"
        )
        if not length.isdecimal() or int(length) > most:
            raise too_large
        parts: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the caller left.", None, "gone")
                    part = message.get("body", b"")
                    parts.append(part)
                    held += len(part)
                    self._held_bytes += len(part)
                    if held > most:
                        raise too_large
                    if self._held_bytes > self.limits.waiting_bytes:
                        raise RequestError(503, "too much is being sent at once: try again in a second.", None, "busy")
                    if not message.get("more_body", False):
                        return b"".join(parts), held
        except BaseException as error:
            self._held_bytes -= held
            if isinstance(error, TimeoutError):
                seconds = self.limits.body_seconds
                raise RequestError(408, f"the request did not come within {seconds:g} s.", None, "timeout") from None
            raise


class _Answer:
    """Where an answer goes: with this server's headers, and once."""

    def __init__(self, send: Any, run: str):
        self._send, self._is_begun = send, False
        self._headers = {**HEADERS, RUN_HEADER: run}

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._is_begun = True
            given = {bytes(name).lower() for name, _ in message.get("headers", [])}
            more = [
                (key.encode(), value.encode()) for key, value in self._headers.items() if key.encode() not in given
            ]
            message["headers"] = [*message.get("headers", []), *more]
        await self._send(message)

    async def whole(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        sent = {**headers, "content-length": str(len(content))}
        start = {"type": "http.response.start", "status": status}
        await self({**start, "headers": [(key.encode(), value.encode()) for key, value in sent.items()]})
        await self({"type": "http.response.body", "body": content})

    async def refuse(self, error: RequestError) -> None:
        if self._is_begun:
            return
        # What of the body was not read is not waited for.
        headers = {"content-type": "application/json", "connection": "close"}
        await self.whole(error.status, json.dumps(error.content()).encode(), headers)


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that does not say where they differ."""
    return hmac.compare_digest(*(text.encode(errors="surrogatepass") for text in (given, wanted)))


def _replay(body: bytes, receive: Any) -> Any:
    is_given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    return {bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1") for name, value in scope["headers"]}


def _host_name(host: str) -> str:
    """The name in a Host header, without its port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _place_of(origin: str) -> str | None:
    """Host and port of an origin; None of what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
