"""The HTTP client: its patience, and which of its errors a retry may cure."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.errors import InputError, UserError

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Patience:
    """How long to insist: times in seconds, `sync` as in `Part`.

    `attempts` counts tries in a row that bring nothing new, or less than `slowest` bytes a second.
    The wait between them is `base`, twice that, and so on up to `cap`, or what the server asks for
    (Retry-After) up to `asked`. `connect` and `read` are the longest silences; `crawl` is how long
    the head of an answer may take, and a body may be slower than `slowest`.
    """

    attempts: int = 6
    base: float = 1.0
    cap: float = 60.0
    asked: float = 300.0
    connect: float = 20.0
    read: float = 30.0
    crawl: float = 60.0
    slowest: float = 1000.0
    sync: int = 32 << 20


PATIENCE = Patience()


class Again(Exception):
    """A passing fault; `after`: seconds to wait that the server asked for."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


def waiting(patience: Patience) -> Callable[[Any], float]:
    """Tenacity's wait: exponential, or what the server asked for."""

    def wait(state: Any) -> float:
        backoff = min(patience.base * 2.0 ** (state.attempt_number - 1), patience.cap)
        asked = getattr(state.outcome.exception(), "after", None)
        return backoff if asked is None else max(0.0, min(asked, patience.asked))

    return wait


class Client:
    """Asks for URLs: follows redirects, goes through the user's proxies, gives up in time.

    httpx times single reads only, so a head that drips would never end; here the connection is
    broken then, by way of httpx's request extension `trace`.

    Raises:
        UserError: A variable such as HTTPS_PROXY or NO_PROXY holds what no proxy can be.
    """

    def __init__(self, patience: Patience) -> None:
        import httpx

        self._seconds = patience.crawl
        self._stream: Any = None
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(patience.read, connect=patience.connect),
                follow_redirects=True,
                headers={"User-Agent": "gristmill"},
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"the proxies that the environment names cannot be used: {error}",
                "See what this shows: env | grep -i proxy",
            ) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    @contextmanager
    def stream(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The answer, its body still to be read."""
        timer = threading.Timer(self._seconds, self._break)
        timer.daemon = True
        timer.start()
        try:
            with self._client.stream(
                method, url, headers=dict(headers), extensions={"trace": self._note}
            ) as response:
                timer.cancel()
                yield response
        finally:
            timer.cancel()

    def _note(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._stream = info["return_value"]

    def _break(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it is closed already, or none yet
            # a second handle of the same connection: the first one is another thread's
            number = os.dup(self._stream.get_extra_info("socket").fileno())
            with socket.socket(fileno=number) as handle:
                handle.shutdown(socket.SHUT_RDWR)


def brisk(blocks: Iterable[bytes], patience: Patience) -> Iterator[bytes]:
    """The blocks, for as long as they come faster than a crawl.

    Raises:
        Again: They do not.
    """
    since, size = time.monotonic(), 0
    for block in blocks:
        yield block
        size += len(block)
        spent = time.monotonic() - since
        if spent > patience.crawl:
            if size < patience.slowest * spent:
                raise Again(f"only {size} bytes in {spent:.0f} s")
            since, size = time.monotonic(), 0


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn what httpx raises into what a retry may cure, and what it may not."""
    import httpx

    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise InputError(f"{url}: {error}") from error
    except httpx.TransportError as error:
        raise Again(f"{str(error) or type(error).__name__}{_way(url)}") from error


def _way(url: str) -> str:
    """Through which proxy a URL is asked for, if any; without its password."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = urlsplit(proxies.get(target.scheme) or proxies.get("all") or "")
    if not proxy.hostname or proxy_bypass(target.netloc):
        return ""
    return f" (through the proxy {proxy.hostname}:{proxy.port})"
