"""Slow servers, proxies, and limited bandwidth."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import InputError, Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.download.fetch import FetchedFile, fetch
from pipeline.download.probe import probe
from pipeline.download.resume import ProgressCallback
from pipeline.download.transport import RetryPolicy, Throttle
from tests.helpers.servers import FileServer, Proxy, Socks

DATA = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
BRIEF = RetryPolicy(
    attempts=2,
    base_delay=0.001,
    connect_timeout=2,
    read_timeout=2,
    sync_bytes=16_384,
    stall_timeout=0.3,
    min_bytes_per_second=100_000,
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/file": DATA}) as started:
        yield started


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "corpus.part"


def get(part: Path, *urls: str, progress: ProgressCallback | None = None) -> FetchedFile:
    return fetch(
        urls, part, sha256=SHA, size=None, stop=Stop(), policy=BRIEF,
        progress=progress or (lambda done, total: None),
    )  # fmt: skip


@pytest.mark.slow
def test_slow_body_moves_on_to_the_next_mirror(server: FileServer, part: Path) -> None:
    server.behavior.block_bytes, server.behavior.block_pause_s = 8, 0.01
    with pytest.raises(InputError, match=r"only \d+ bytes in 0 s, 2 times in a row"):
        get(part, server.url + "/file")
    with FileServer({"/file": DATA}) as other:
        found = get(part, server.url + "/file", other.url + "/file")
    assert found.url.startswith(other.url)
    assert part.read_bytes() == DATA


def test_progress_that_is_too_slow_counts_as_failure(server: FileServer, part: Path) -> None:
    policy = RetryPolicy(
        attempts=6,
        base_delay=0.001,
        connect_timeout=2,
        read_timeout=2,
        stall_timeout=0.2,
        min_bytes_per_second=100_000,
    )
    server.behavior.block_bytes, server.behavior.block_pause_s = (
        100,
        0.01,
    )  # in all six less than one must bring
    with pytest.raises(InputError, match="6 times in a row"):
        fetch(
            [server.url + "/file"], part, sha256=SHA, size=None, stop=Stop(),
            progress=lambda done, total: None, policy=policy,
        )  # fmt: skip
    assert len(server.requests) == 6


def test_a_byte_a_request_is_no_progress(server: FileServer, part: Path) -> None:
    server.behavior.cut_after_bytes = 1
    with pytest.raises(InputError, match="2 times in a row"):
        get(part, server.url + "/file")
    assert len(server.requests) == 2


def test_slow_headers_are_not_waited_for(server: FileServer, part: Path) -> None:
    server.behavior.head_pause_s = 0.02
    for ask in (lambda url: get(part, url), lambda url: probe(url, BRIEF)):
        with pytest.raises(InputError, match="disconnected"):
            ask(server.url + "/file")
    assert len(server.requests) == 3


@pytest.mark.parametrize("tenth", range(1, 10))
def test_cut_at_every_tenth(server: FileServer, part: Path, tenth: int) -> None:
    at = len(DATA) * tenth // 10
    server.behavior.cut_after_bytes, server.behavior.cut_count = at, 1
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={at}-"]


def test_bandwidth_is_kept_to(server: FileServer, part: Path) -> None:
    seen: list[int] = []
    throttle = Throttle(lambda done, total: seen.append(done), 1e6, Stop())
    started = time.monotonic()
    get(part, server.url + "/file", progress=throttle)
    # no wait before the first block of up to 64 KiB
    assert time.monotonic() - started >= (len(DATA) - 65_536) / 1e6
    assert seen[-1] == len(DATA)


def test_a_stop_is_seen_while_the_throttle_waits() -> None:
    stop = Stop()
    throttle = Throttle(lambda done, total: None, 1.0, stop)
    throttle(0, None)
    stop.set("enough")
    with pytest.raises(Interrupted, match="enough"):
        throttle(3600, None)


@pytest.mark.slow
def test_through_the_proxy_of_the_environment(
    server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy({"corpus.example": server.url}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert probe("http://corpus.example/file", BRIEF).size == len(DATA)
        get(part, "http://corpus.example/file")
        assert len(proxy.requests) == len(server.requests) == 2
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        probe(server.url + "/file", BRIEF)
        assert len(proxy.requests) == 2, "not for the hosts in NO_PROXY"
    assert part.read_bytes() == DATA


def test_through_a_socks_proxy(
    server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Socks(server) as socks:
        monkeypatch.setenv("ALL_PROXY", socks.url)
        get(part, "http://corpus.example/file")
    assert set(socks.hosts) == {"corpus.example"}
    assert part.read_bytes() == DATA


def test_a_dead_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    with pytest.raises(InputError, match=r"through the proxy 127.0.0.1:9") as caught:
        probe("http://corpus.example/file", BRIEF)
    assert "secret" not in str(caught.value)


def test_invalid_proxy_variable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://proxy")
    with pytest.raises(UserError, match=r"env \| grep -i proxy"):
        probe("http://corpus.example/file", BRIEF)
