"""The HTTP client: its patience, and which of its errors a retry may cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

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
    """A client with those time-outs, which follows redirects."""
    import httpx

    timeout = httpx.Timeout(patience.read, connect=patience.connect)
    return httpx.Client(timeout=timeout, follow_redirects=True, headers={"User-Agent": "gristmill"})


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn what httpx raises into what a retry may cure, and what it may not."""
    import httpx

    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise InputError(f"{url}: {error}") from error
    except httpx.TransportError as error:
        raise Again(str(error) or type(error).__name__) from error
