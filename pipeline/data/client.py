"""The HTTP client: its patience, its logins, and which of its errors a retry may cure."""

from __future__ import annotations

import base64
import netrc
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, UserError

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Patience:
    """How long to insist: times in seconds, `sync` as in `Part`.

    `attempts` counts tries in a row that bring no new byte. The wait between them is `base`, twice
    that, and so on up to `cap`, or what the server asks for (Retry-After) up to `asked`.
    """

    attempts: int = 6
    base: float = 1.0
    cap: float = 60.0
    asked: float = 300.0
    connect: float = 20.0
    read: float = 30.0
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


def open_client(patience: Patience) -> httpx.Client:
    """A client with those time-outs, which follows redirects, verifies TLS and knows ~/.netrc.

    Raises:
        UserError: SSL_CERT_FILE or SSL_CERT_DIR, which httpx heeds, hold no certificates.
    """
    import httpx

    try:
        return httpx.Client(
            timeout=httpx.Timeout(patience.read, connect=patience.connect),
            follow_redirects=True,
            headers={"User-Agent": "gristmill"},
            auth=_login(),
        )
    except OSError as error:  # ssl's own are such, too
        said = {k: os.environ[k] for k in ("SSL_CERT_FILE", "SSL_CERT_DIR") if k in os.environ}
        told = ", ".join(f"{name}={value}" for name, value in said.items())
        raise UserError(f"no certificates can be read from {told or 'certifi'}: {error}") from error


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
        raise Again(str(error) or type(error).__name__) from error
