"""Slow servers, proxies, and lines that are shared with others."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import InputError, Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.download.fetch import Fetched, fetch, probe
from pipeline.download.resume import Progress
from pipeline.download.throttle import Pace
from pipeline.download.transport import Patience
from tests.helpers.servers import FileServer, Proxy, Socks

DATA = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
BRIEF = Patience(attempts=2, base=0.001, connect=2, read=2, sync=16_384, crawl=0.3, slowest=100_000)
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


def get(part: Path, *urls: str, progress: Progress | None = None) -> Fetched:
    return fetch(
        urls, part, sha256=SHA, size=None, stop=Stop(), patience=BRIEF,
        progress=progress or (lambda done, total: None),
    )  # fmt: skip


def test_a_body_that_drips_is_left_for_the_next_mirror(server: FileServer, part: Path) -> None:
    server.mood.block, server.mood.pause = 8, 0.01
    with pytest.raises(InputError, match=r"only \d+ bytes in 0 s, 2 times in a row"):
        get(part, server.url + "/file")
    with FileServer({"/file": DATA}) as other:
        found = get(part, server.url + "/file", other.url + "/file")
    assert found.url.startswith(other.url)
    assert part.read_bytes() == DATA


def test_little_by_little_is_no_progress_either(server: FileServer, part: Path) -> None:
    patience = Patience(attempts=6, base=0.001, connect=2, read=2, crawl=0.2, slowest=100_000)
    server.mood.block, server.mood.pause = 100, 0.01  # in all six less than one is to bring
    with pytest.raises(InputError, match="6 times in a row"):
        fetch(
            [server.url + "/file"], part, sha256=SHA, size=None, stop=Stop(),
            progress=lambda done, total: None, patience=patience,
        )  # fmt: skip
    assert len(server.requests) == 6


def test_a_byte_a_request_is_no_progress(server: FileServer, part: Path) -> None:
    server.mood.cut = 1
    with pytest.raises(InputError, match="2 times in a row"):
        get(part, server.url + "/file")
    assert len(server.requests) == 2


def test_a_head_that_drips_is_not_waited_for(server: FileServer, part: Path) -> None:
    server.mood.head_pause = 0.02
    for ask in (lambda url: get(part, url), lambda url: probe(url, BRIEF)):
        with pytest.raises(InputError, match="disconnected"):
            ask(server.url + "/file")
    assert len(server.requests) == 3


@pytest.mark.parametrize("tenth", range(1, 10))
def test_cut_at_every_tenth(server: FileServer, part: Path, tenth: int) -> None:
    at = len(DATA) * tenth // 10
    server.mood.cut, server.mood.cuts = at, 1
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={at}-"]


def test_bandwidth_is_kept_to(server: FileServer, part: Path) -> None:
    seen: list[int] = []
    pace = Pace(lambda done, total: seen.append(done), 1e6, Stop())
    started = time.monotonic()
    get(part, server.url + "/file", progress=pace)
    # the first block, of up to 64 KiB, is not waited for
    assert time.monotonic() - started >= (len(DATA) - 65_536) / 1e6
    assert seen[-1] == len(DATA)


def test_a_stop_is_seen_while_the_line_rests() -> None:
    stop = Stop()
    pace = Pace(lambda done, total: None, 1.0, stop)
    pace(0, None)
    stop.set("enough")
    with pytest.raises(Interrupted, match="enough"):
        pace(3600, None)


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
        assert len(proxy.requests) == 2, "not for those that NO_PROXY names"
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


def test_what_cannot_be_a_proxy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://proxy")
    with pytest.raises(UserError, match=r"env \| grep -i proxy"):
        probe("http://corpus.example/file", BRIEF)
