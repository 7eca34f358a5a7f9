"""The HTTP client: timeouts, retries, logins, bandwidth, and which errors a retry may fix."""

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
from pipeline.core.stop import Stop
from pipeline.download.resume import SYNC_BYTES, ProgressCallback

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and retries; times in seconds.

    `attempts`: attempts in a row without progress before a mirror is given up; progress slower than
    `min_bytes_per_second` does not count. `base_delay`: wait before the first retry; it doubles up
    to `max_delay`. A Retry-After of the server is followed up to `max_retry_after`.
    `connect_timeout`, `read_timeout`: the longest silence. `stall_timeout`: the longest time for
    the head of a response, and for a body that is slower than `min_bytes_per_second`.
    `sync_bytes`: see `PartFile`.
    """

    attempts: int = 6
    base_delay: float = 1.0
    max_delay: float = 60.0
    max_retry_after: float = 300.0
    connect_timeout: float = 20.0
    read_timeout: float = 30.0
    stall_timeout: float = 60.0
    min_bytes_per_second: float = 1000.0
    sync_bytes: int = SYNC_BYTES


DEFAULT_RETRY_POLICY = RetryPolicy()
THROTTLE_POLL_SECONDS = 0.2
CERTIFICATE_HINT = "if your site has its own authority, set SSL_CERT_FILE to its certificate"
LOGIN_HINT = "is there a login for that host in ~/.netrc, mode 600?"


class RetryableError(Exception):
    """A temporary failure; `retry_after`: seconds to wait, if the server asked for it."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


def retry_delay(policy: RetryPolicy) -> Callable[[Any], float]:
    """The wait between retries, as tenacity takes it: exponential, or the server's Retry-After."""

    def delay(state: Any) -> float:
        retry_after = getattr(state.outcome.exception(), "retry_after", None)
        if retry_after is not None:
            return max(0.0, min(retry_after, policy.max_retry_after))
        return min(policy.base_delay * 2.0 ** (state.attempt_number - 1), policy.max_delay)

    return delay


class HttpClient:
    """An HTTP client that verifies TLS, follows redirects and uses ~/.netrc and the proxy settings.

    httpx's timeouts are per read, so a head that arrives byte by byte would never time out. A timer
    shuts the connection down instead. The connection comes from httpx's `trace` extension: the
    `network_stream` extension exists only after the head.

    Raises:
        UserError: HTTPS_PROXY, NO_PROXY or a similar variable is not a valid proxy, or
            SSL_CERT_FILE or SSL_CERT_DIR has no certificates.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        import httpx

        self._head_timeout = policy.stall_timeout
        self._connection: Any = None  # the last network stream that was opened
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(policy.read_timeout, connect=policy.connect_timeout),
                follow_redirects=True,
                headers={"User-Agent": "gristmill"},
                limits=httpx.Limits(max_keepalive_connections=0),  # so the last one is in use
                auth=_netrc_auth(),
            )
        except OSError as error:  # includes ssl.SSLError
            source = _certificate_source()
            raise UserError(f"no certificates can be read from {source}: {error}") from error
        except (ValueError, httpx.InvalidURL) as error:
            # the message of an invalid URL may contain a password
            why = "" if isinstance(error, httpx.InvalidURL) else f": {error}"
            raise UserError(
                f"the proxy settings in the environment are not valid{why}",
                "See them with: env | grep -i proxy",
            ) from error

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    @contextmanager
    def stream(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Send a request; the body of the response is not read yet."""
        timer = threading.Timer(self._head_timeout, self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            with self._client.stream(
                method, url, headers=dict(headers), extensions={"trace": self._trace}
            ) as response:
                timer.cancel()
                yield response
        finally:
            timer.cancel()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._connection = info["return_value"]

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # closed already, or not open yet
            # through a duplicate of the socket: the request's thread is using the original
            number = os.dup(self._connection.get_extra_info("socket").fileno())
            with socket.socket(fileno=number) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)


def enforce_min_rate(blocks: Iterable[bytes], policy: RetryPolicy) -> Iterator[bytes]:
    """Pass blocks on while they arrive fast enough.

    Raises:
        RetryableError: They were slower than the policy allows for its `stall_timeout`.
    """
    since, size = time.monotonic(), 0
    for block in blocks:
        yield block
        size += len(block)
        seconds = time.monotonic() - since
        if seconds > policy.stall_timeout:
            if size < policy.min_bytes_per_second * seconds:
                raise RetryableError(f"only {size} bytes in {seconds:.0f} s")
            since, size = time.monotonic(), 0


def _certificate_source() -> str:
    """Where the certificates of authorities come from."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    return ", ".join(f"{k}={os.environ[k]}" for k in names if k in os.environ) or "certifi"


def _netrc_auth() -> Callable[[httpx.Request], httpx.Request] | None:
    """A hook that adds a host's login from ~/.netrc, or from $NETRC; None without such a file.

    httpx does not send it to another host on a redirect. An unreadable file is ignored, since most
    servers need no login; the error of one that does mentions the file.
    """
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, ValueError, netrc.NetrcParseError):
        return None

    def add(request: httpx.Request) -> httpx.Request:
        login = logins.authenticators(request.url.host)
        if login and "Authorization" not in request.headers:  # the hub's token has precedence
            encoded = base64.b64encode(f"{login[0]}:{login[2]}".encode()).decode()
            request.headers["Authorization"] = f"Basic {encoded}"
        return request

    return add


def certificate_problem(error: BaseException | None) -> str:
    """Why a server's certificate was rejected, if that caused the error; else empty."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({error.verify_message}); {CERTIFICATE_HINT}"
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def map_errors(url: str) -> Iterator[None]:
    """Turn httpx's errors into `RetryableError`, or `InputError` where a retry does not help."""
    import httpx

    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise InputError(f"{url}: {error}") from error
    except httpx.TransportError as error:
        if why := certificate_problem(error):
            raise InputError(f"{url}: {why}") from error
        raise RetryableError(f"{str(error) or type(error).__name__}{_via_proxy(url)}") from error


def _via_proxy(url: str) -> str:
    """The proxy that a URL is requested through, without its password; empty if there is none."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = urlsplit(proxies.get(target.scheme) or proxies.get("all") or "")
    if not proxy.hostname or proxy_bypass(target.netloc):
        return ""
    return f" (through the proxy {proxy.hostname}:{proxy.port})"


class Throttle:
    """A progress callback that blocks its caller, and so the sender, to keep to a bandwidth.

    For networks and file systems that are shared.

    Args:
        progress: The callback to forward to.
        bandwidth: Bytes per second.
        stop: Checked while it waits.
    """

    def __init__(self, progress: ProgressCallback, bandwidth: float, stop: Stop) -> None:
        self._progress = progress
        self._bandwidth = bandwidth
        self._stop = stop
        self._start: tuple[float, int] | None = None  # time and bytes

    def __call__(self, done: int, total: int | None) -> None:
        """Forward progress, then wait until `done` bytes are within the bandwidth."""
        self._progress(done, total)
        now = time.monotonic()
        since, first = self._start or (now, done)
        due = since + (done - first) / self._bandwidth
        # after a pause, the unused bandwidth is not made up for
        self._start = (since, first) if due > now - 1.0 and done >= first else (now, done)
        while (left := due - time.monotonic()) > 0:
            self._stop.check()
            time.sleep(min(left, THROTTLE_POLL_SECONDS))
