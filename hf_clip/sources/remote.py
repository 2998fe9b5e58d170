"""Files that lie elsewhere, by addresses such as s3://bucket/0001.tar: which there are, and their bytes.

fsspec opens them: `s3fs` reads s3://, huggingface_hub hf://, aiohttp https://, `gcsfs` gs://. What fails for a while
is tried again, and counted by reason; what a reader gets is whole, or an error.
"""

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard, cast

import fsspec
import fsspec.asyn

from .errors import SourceError, one_line

# Of each request: how long it may take, how often it is made, how long to wait between.
SECONDS_OF_REQUEST = 60.0
MAX_REQUESTS = 10
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Bytes of a request, so that a slow store is told from a large file.
BYTES_OF_REQUEST = 2**24
CONNECTIONS = 64

# What reads addresses of a kind, and how it is installed.
_PACKAGES = {"s3": "'hf_clip[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_KNOWN = "s3://, hf://, https://, gs://"
_TRUNCATED = ("ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError")
_OF_NETWORKS = ("aiohttp", "botocore", "aiobotocore", "httpx", "httpcore", "requests", "urllib3", "http")
# What `giving_up` was given; `bool()` is False.
_is_stopped: Callable[[], bool] = bool
_repeated: Counter[str] = Counter()
_sizes: dict[str, int] = {}
_lock = threading.Lock()
_chance = random.Random()


class Address(str):
    """An address, with the names that `Path` has for its parts."""

    __slots__ = ()

    @property
    def _path(self) -> PurePosixPath:
        # What follows a question mark, as of signed addresses, is no part of the name.
        is_web = self.startswith(("http://", "https://"))
        return PurePosixPath(self.partition("?")[0] if is_web else self)

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    def relative_to(self, folder: "Address | Path") -> PurePosixPath:
        return self._path.relative_to(Address(folder)._path)


File = Path | Address


class Truncated(OSError):
    """Fewer bytes came than there are."""


def is_address(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and "://" in text


def suffix_of(file: str) -> str:
    """What a file's name ends with, in small letters, here or at an address."""
    return (Address(file) if is_address(file) else Path(file)).suffix.lower()


def folder_of(file: str) -> str:
    """The folder that a file lies in, here or at an address."""
    return os.path.dirname(file if is_address(file) else os.path.abspath(file))


@contextmanager
def giving_up(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Within the context, what waits for an answer gives up once `is_stopped` is true."""
    global _is_stopped
    before, _is_stopped = _is_stopped, is_stopped
    try:
        yield
    finally:
        _is_stopped = before


def repeated_requests() -> Counter[str]:
    """How many requests this process made again, by the reason."""
    with _lock:
        return _repeated.copy()


def list_address(address: str) -> tuple[list[File], File | None]:
    """The sorted files that an address or a pattern names, and the folder if it is one.

    Raises:
        SourceError: there are none, or the store cannot be read.
    """
    kind = address.partition("://")[0]
    if any(mark in address for mark in "*[") or ("?" in address and kind not in ("http", "https")):
        found = _request(address, "glob", detail=True)
        if not found:
            raise SourceError(f"{address!r} matches no file. Check the pattern.")
        return _listed(address, found), None
    info = _request(address, "info")
    if info["type"] != "directory":
        if info.get("size") is not None:
            _sizes[address] = info["size"]
        return [Address(address)], None
    folder = Address(address.rstrip("/"))
    files = _listed(address, _request(address, "find", detail=True))
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return shown, folder


def _listed(address: str, found: dict[str, dict[str, Any]]) -> list[File]:
    files: list[File] = []
    for name, info in found.items():
        if info["type"] == "directory":
            continue
        files.append(Address(file_system(address).unstrip_protocol(name)))
        if info.get("size") is not None:
            _sizes[str(files[-1])] = info["size"]
    return sorted(files, key=PurePosixPath)


def size_of(address: str) -> int:
    """The bytes that a file has. Raises SourceError where it is gone, or its store does not tell."""
    if address not in _sizes:
        size = _request(address, "info").get("size")
        if size is None:
            raise SourceError(f"{address!r}: its server does not tell how long it is. Fetch it, and name the copy.")
        _sizes[address] = size
    return _sizes[address]


def read_bytes(address: str, first: int = 0, last: int | None = None) -> bytes:
    """The bytes of a file from `first` up to `last`, by default all.

    Raises:
        SourceError: they cannot be had.
    """
    size = size_of(address)
    last = size if last is None else min(last, size)
    parts = []
    for start in range(first, last, BYTES_OF_REQUEST):
        stop = min(start + BYTES_OF_REQUEST, last)

        def whole(content: bytes, start: int = start, stop: int = stop) -> bytes:
            # Servers that know no ranges send everything.
            content = content[start:stop] if len(content) == size != stop - start else content
            if len(content) != stop - start:
                raise Truncated(f"{len(content)} bytes came of {stop - start}")
            return content

        parts.append(_request(address, "cat_file", check=whole, start=start, end=stop))
    return b"".join(parts)


@lru_cache
def _file_system(kind: str) -> fsspec.AbstractFileSystem:
    options: dict[str, Any] = {}
    if kind == "s3":
        # What is tried again is tried here, where it is counted.
        timeouts = {"connect_timeout": SECONDS_OF_REQUEST, "read_timeout": SECONDS_OF_REQUEST}
        options["config_kwargs"] = {"retries": {"max_attempts": 0}, "max_pool_connections": CONNECTIONS, **timeouts}
    system = fsspec.filesystem(kind, skip_instance_cache=True, use_listings_cache=False, **options)
    if kind == "s3":
        system.retries = 1
    return system


def file_system(address: str) -> fsspec.AbstractFileSystem:
    """The file system that opens an address. Raises SourceError where none does, or its package is missing."""
    kind = address.partition("://")[0]
    try:
        return _file_system(kind)
    except ImportError as error:
        package = _PACKAGES.get(kind, kind)
        raise SourceError(
            f"{address!r}: a package that reads {kind}:// is not installed. Install it: pip install {package}."
        ) from error
    except ValueError as error:
        raise SourceError(f"{address!r}: {kind}:// is no kind of address. Known are {_KNOWN}.") from error


def _request(address: str, method: str, check: Callable[[Any], Any] = lambda result: result, **options: Any) -> Any:
    """What a method of the address's file system gives and `check` takes, tried again while there is hope."""
    system, failures, last = file_system(address), Counter(), None
    for number in range(MAX_REQUESTS):
        if number:
            _wait(min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT))
        if number and _is_stopped():
            break
        try:
            return check(_once(system, method, cast(str, system._strip_protocol(address)), options))
        except SourceError:
            raise
        except Exception as error:
            reason = _reason_to_repeat(error)
            last = next(iter(_told(error)), error)
            if reason is None:
                raise SourceError(_explanation(address, error)) from error
            failures[reason] += 1
            with _lock:
                _repeated[reason] += 1
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.most_common())
    raise SourceError(
        f"{address!r} could not be read in {failures.total()} requests ({reasons}; the last: "
        f"{one_line(last or OSError())}). Check the network and the store, then resume the run."
    ) from last


def _wait(seconds: float) -> None:
    """Waits for about so long, or until it is to give up."""
    # A thousand processes that a store refused at once had better not come back at once.
    end = time.monotonic() + seconds * _chance.uniform(0.5, 1.5)
    while not _is_stopped() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


def _once(system: fsspec.AbstractFileSystem, method: str, path: str, options: dict[str, Any]) -> Any:
    if not system.async_impl:
        return getattr(system, method)(path, **options)

    async def within_time() -> Any:
        return await asyncio.wait_for(getattr(system, f"_{method}")(path, **options), SECONDS_OF_REQUEST)

    return fsspec.asyn.sync(cast(fsspec.asyn.AsyncFileSystem, system).loop, within_time)


def _chain(error: BaseException | None) -> list[Exception]:
    """An error and those that it came from."""
    chain: list[Exception] = []
    while isinstance(error, Exception) and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _told(error: Exception) -> list[Exception]:
    """What an error is about: fsspec makes a missing file of a server that does not answer, too."""
    return [each for each in _chain(error) if not isinstance(each, FileNotFoundError | PermissionError)]


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about, in the words of boto, aiohttp, requests and httpx."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _reason_to_repeat(error: Exception) -> str | None:
    """Why a request is worth another try, in a word; None where it is not."""
    chain = _chain(error)
    for each in chain:
        if (status := _status(each)) is not None and status >= 400:
            return f"status_{status}" if status in (408, 429) or status >= 500 else None
    if type(error).__name__ == "NoCredentialsError":
        return None
    if any(isinstance(each, Truncated) or type(each).__name__ in _TRUNCATED for each in chain):
        return "truncated"
    if any(isinstance(each, TimeoutError) or "Timeout" in type(each).__name__ for each in chain):
        return "timeout"
    is_of_network = any(
        isinstance(each, OSError) or type(each).__module__.split(".")[0] in _OF_NETWORKS for each in _told(error)
    )
    return "connection" if is_of_network else None


def _explanation(address: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or 404 in map(_status, _chain(error)):
        return f"no such file or folder: {address!r}. Check the address."
    is_denied = isinstance(error, PermissionError) or {401, 403} & set(map(_status, _chain(error)))
    if is_denied or type(error).__name__ == "NoCredentialsError":
        if address.startswith("s3://"):
            fix = (
                "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true reads public "
                "buckets"
            )
        else:
            fix = "Run `hf auth login`" if address.startswith("hf://") else "Check the credentials"
        return f"{address!r} may not be read ({one_line(error)}). {fix}."
    return f"{address!r} cannot be read ({one_line(error)}). Check the address."
