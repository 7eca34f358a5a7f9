"""The HTTP client: its patience, its logins, and which of its errors a retry may cure."""

from __future__ import annotations

import base64
import contextlib
import netrc
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.core.errors import InputError, UserError

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
AUTHORITY = "where a site has an authority of its own, let SSL_CERT_FILE name its certificate"
LOGIN = "is there a login for that host in ~/.netrc, mode 600?"


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
    """Asks for URLs: verifies TLS, follows redirects, knows ~/.netrc and the user's proxies.

    httpx times single reads only, so a head that drips would never end; here the connection is
    broken then, by way of httpx's request extension `trace`.

    Raises:
        UserError: A variable such as HTTPS_PROXY or NO_PROXY holds what no proxy can be, or
            SSL_CERT_FILE or SSL_CERT_DIR, which httpx heeds, no certificates.
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
                limits=httpx.Limits(max_keepalive_connections=0),  # `_break` knows the last one
                auth=_login(),
            )
        except OSError as error:  # ssl's own are such, too
            raise UserError(f"no certificates can be read from {_trusted()}: {error}") from error
        except (ValueError, httpx.InvalidURL) as error:
            # an invalid URL is cut anywhere, so its message may quote a password
            why = "" if isinstance(error, httpx.InvalidURL) else f": {error}"
            raise UserError(
                f"the proxies that the environment names cannot be used{why}",
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


def _trusted() -> str:
    """Where the certificates come from."""
    said = {k: os.environ[k] for k in ("SSL_CERT_FILE", "SSL_CERT_DIR") if k in os.environ}
    return ", ".join(f"{name}={value}" for name, value in said.items()) or "certifi"


def _login() -> Callable[[httpx.Request], httpx.Request] | None:
    """What adds a host's login from ~/.netrc, or from where NETRC says; None without that file.

    httpx sends it to no other host on a redirect. A file that cannot be used is passed over, for
    most servers want no login; one that does is told to need it.
    """
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, ValueError, netrc.NetrcParseError):
        return None

    def add(request: httpx.Request) -> httpx.Request:
        found = known.authenticators(request.url.host)
        if found and "Authorization" not in request.headers:  # the hub's token goes first
            login = base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
            request.headers["Authorization"] = f"Basic {login}"
        return request

    return add


def distrust(error: BaseException | None) -> str:
    """Why a server's certificate is not trusted, if that is behind an error, else ""."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({error.verify_message}); {AUTHORITY}"
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn what httpx raises into what a retry may cure, and what it may not."""
    import httpx

    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise InputError(f"{url}: {error}") from error
    except httpx.TransportError as error:
        if why := distrust(error):
            raise InputError(f"{url}: {why}") from error
        raise Again(f"{str(error) or type(error).__name__}{_way(url)}") from error


def _way(url: str) -> str:
    """Through which proxy a URL is asked for, if any; without its password."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = urlsplit(proxies.get(target.scheme) or proxies.get("all") or "")
    if not proxy.hostname or proxy_bypass(target.netloc):
        return ""
    return f" (through the proxy {proxy.hostname}:{proxy.port})"
