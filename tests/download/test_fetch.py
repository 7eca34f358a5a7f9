"""Downloads from a real server that misbehaves in every way."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from pipeline.core.disk import FreeSpace
from pipeline.core.errors import CorruptInput, InputError, Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.download import resume
from pipeline.download.fetch import FetchedFile, fetch
from pipeline.download.probe import probe, probe_mirrors
from pipeline.download.response import ResponseAction, ResponseHead, classify_response
from pipeline.download.resume import (
    PartFile,
    RemoteContent,
    require_free_space,
    translate_disk_full,
)
from pipeline.download.transport import RetryableError, RetryPolicy, retry_delay
from pipeline.sources.spans import Span
from tests.helpers.servers import FileServer

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
QUICK = RetryPolicy(
    attempts=3,
    base_delay=0.001,
    max_retry_after=0.05,
    connect_timeout=2,
    read_timeout=2,
    sync_bytes=16_384,
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/file": DATA, "/other": OTHER}) as started:
        yield started


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "corpus.part"


def get(part: Path, *urls: str, sha256: str | None = SHA, size: int | None = None, **more):
    more = {"stop": Stop(), "progress": lambda done, total: None, "policy": QUICK, **more}
    return fetch(urls, part, sha256=sha256, size=size, **more)


def stop_after(size: int) -> dict[str, object]:
    """A stop that is requested after that many bytes."""
    stop = Stop()

    def progress(done: int, total: int | None) -> None:
        if done >= size:
            stop.set("enough")

    return {"stop": stop, "progress": progress}


def leave_half(server: FileServer, part: Path, path: str = "/file", **more) -> int:
    """Interrupt a download half-way; returns the bytes so far."""
    with pytest.raises(Interrupted, match="enough"):
        get(part, server.url + path, **stop_after(100_000), **more)
    size = part.stat().st_size
    assert 100_000 <= size < 200_000
    return size


def test_whole(server: FileServer, part: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetched = get(part, server.url + "/file", progress=lambda *p: seen.append(p))
    assert part.read_bytes() == DATA
    spans = (Span(0, len(DATA), xxhash.xxh3_128_hexdigest(DATA)),)
    assert fetched == FetchedFile(part, server.url + "/file", len(DATA), SHA, '"one"', None, spans)
    assert seen[-1] == (len(DATA), len(DATA))
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.ranges() == [None]
    assert get(part, server.url + "/file").sha256 == SHA
    assert len(server.requests) == 1, "a complete file is not requested again"


def test_cut_connection_goes_on(server: FileServer, part: Path) -> None:
    server.behavior.cut_after_bytes = 70_000
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    starts = [0 if r is None else int(r[6:-1]) for r in server.ranges()]
    assert len(starts) >= 4
    assert all(0 < b - a <= 70_000 for a, b in itertools.pairwise(starts))
    assert server.requests[1].headers["if-range"] == '"one"'


def test_cut_that_never_grows_gives_up(server: FileServer, part: Path) -> None:
    server.behavior.cut_after_bytes, server.behavior.supports_ranges = 70_000, False
    with pytest.raises(InputError, match=r"/file: .*, 3 times in a row"):
        get(part, server.url + "/file")
    assert len(server.requests) == 1 + 3


def test_stop_and_resume(server: FileServer, part: Path) -> None:
    size = leave_half(server, part)
    sidecar = json.loads((part.parent / "corpus.part.json").read_text())
    assert sidecar["synced"] == size
    assert sidecar["etag"] == '"one"'
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={size}-"


def test_resume_without_ranges_starts_over(server: FileServer, part: Path) -> None:
    leave_half(server, part)
    server.behavior.supports_ranges = False
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_wrong_range_starts_over(server: FileServer, part: Path, shift: int) -> None:
    size = leave_half(server, part)
    server.behavior.range_shift = shift
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges()[-2:] == [f"bytes={size}-", None]


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("field", ["etag", "last_modified"])
def test_content_that_changes_starts_over(
    server: FileServer, part: Path, careless: bool, field: str
) -> None:
    server.behavior.etag = None
    setattr(server.behavior, field, "Mon, 23 Nov 2026 10:00:00 GMT")
    leave_half(server, part)
    server.files["/file"] = OTHER
    setattr(server.behavior, field, "Mon, 23 Nov 2026 11:00:00 GMT")
    server.behavior.ignore_if_range = careless
    get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == OTHER


def test_content_that_changes_within_one_call(server: FileServer, part: Path) -> None:
    server.behavior.cut_after_bytes, server.behavior.cut_count = 70_000, 1

    def before(request) -> None:
        if "range" in request.headers:
            server.files["/file"], server.behavior.etag = OTHER, '"two"'

    server.behavior.on_request = before
    fetched = get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == OTHER
    assert fetched.etag == '"two"'


def test_weak_etag_is_compared_but_not_sent(server: FileServer, part: Path) -> None:
    server.behavior.etag = 'W/"one"'
    size = leave_half(server, part)
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert "if-range" not in server.requests[-1].headers
    assert server.ranges()[-1] == f"bytes={size}-"


def test_without_validator_or_hash_nothing_is_appended(server: FileServer, part: Path) -> None:
    server.behavior.etag = None
    leave_half(server, part, sha256=None)
    get(part, server.url + "/file", sha256=None)
    assert server.ranges() == [None, None]
    assert part.read_bytes() == DATA


def test_unsynced_tail_is_dropped(server: FileServer, part: Path) -> None:
    size = leave_half(server, part)
    with part.open("ab") as file:
        file.write(bytes(10_000))
    get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={size}-"


@pytest.mark.parametrize("damage", ["prefix", "sidecar", "short", "negative"])
def test_damaged_partial_starts_over(server: FileServer, part: Path, damage: str) -> None:
    size = leave_half(server, part)
    sidecar = part.parent / "corpus.part.json"
    if damage == "prefix":
        part.write_bytes(b"?" + part.read_bytes()[1:])
    elif damage == "sidecar":
        sidecar.write_text('{"url": 1}')
    elif damage == "negative":
        sidecar.write_text(sidecar.read_text().replace(f'"synced":{size}', '"synced":-5'))
    else:
        part.write_bytes(part.read_bytes()[:50])
    get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, None]


def test_complete_file_of_unknown_length(server: FileServer, part: Path) -> None:
    server.behavior.send_length = False
    get(part, server.url + "/file")
    sidecar = part.parent / "corpus.part.json"
    saved = json.loads(sidecar.read_text())
    get(part, server.url + "/file")
    assert server.ranges() == [None], "its end is recorded"
    sidecar.write_text(json.dumps(saved | {"size": None}))  # killed before it was recorded
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={len(DATA)}-"], "416 says that nothing is missing"


def test_a_complete_file_without_size_or_etag_is_not_downloaded_twice(
    server: FileServer, part: Path
) -> None:
    server.behavior.send_length, server.behavior.etag = False, None
    get(part, server.url + "/file", sha256=None)
    assert get(part, server.url + "/file", sha256=None).size == len(DATA)
    assert server.ranges() == [None]


def test_file_that_shrank_starts_over(server: FileServer, part: Path) -> None:
    leave_half(server, part)
    server.files["/file"] = DATA[:50_000]
    get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == DATA[:50_000]


def test_busy_server_is_asked_again(server: FileServer, part: Path) -> None:
    server.behavior.first_statuses = [(429, {"Retry-After": "3600"}), (503, {})]
    began = time.monotonic()
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert 0.05 <= time.monotonic() - began < 5, "Retry-After is honoured up to a cap"


def test_waits() -> None:
    state = namedtuple("State", "attempt_number outcome")
    outcome = namedtuple("Outcome", "exception")
    wait = retry_delay(RetryPolicy(base_delay=1, max_delay=10, max_retry_after=300))

    def after(number: int, seconds: float | None) -> float:
        return wait(state(number, outcome(lambda: RetryableError("", seconds))))

    assert [after(n, None) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]
    assert [after(1, s) for s in (0.0, 7.0, 1e6)] == [0, 7, 300]


def test_stop_while_waiting(server: FileServer, part: Path) -> None:
    stop = Stop()
    server.behavior.first_statuses = [(503, {"Retry-After": "60"})]
    server.behavior.on_request = lambda request: stop.set("received SIGTERM")
    with pytest.raises(Interrupted, match="SIGTERM"):
        get(part, server.url + "/file", stop=stop, policy=RetryPolicy())


def test_next_mirror(server: FileServer, part: Path) -> None:
    fetched = get(part, server.url + "/gone", server.url + "/file")
    assert part.read_bytes() == DATA
    assert fetched.url == server.url + "/file"


def test_the_partial_file_survives_a_dead_mirror(server: FileServer, part: Path) -> None:
    size = leave_half(server, part)
    server.behavior.first_statuses = [(404, {})]
    with pytest.raises(InputError):
        get(part, server.url + "/file")
    assert part.stat().st_size == size
    get(part, server.url + "/other", server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={size}-", (
        "the mirror that it was started from comes first"
    )


def test_every_mirror_fails(server: FileServer, part: Path) -> None:
    server.behavior.first_statuses = [(503, {})] * 3
    dead = "http://127.0.0.1:9/file"
    with pytest.raises(InputError) as caught:
        get(part, server.url + "/file", server.url + "/gone", dead)
    text = str(caught.value)
    assert text.startswith(f"none of 3 mirrors works: {server.url}/file: status 503 Service")
    assert f"{server.url}/gone: status 404 Not Found" in text
    assert f"{dead}: " in text
    assert "refused" in text
    assert "\n" not in text
    assert caught.value.exit_code == 3
    assert not isinstance(caught.value, CorruptInput)


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_portal(server: FileServer, part: Path, size: int | None) -> None:
    have = leave_half(server, part)
    server.files["/file"], server.behavior.content_type = (
        b"<html>Please log in</html>",
        "text/html; x=y",
    )
    server.behavior.supports_ranges = False
    with pytest.raises(InputError, match=r"/file: status 200 OK, .*captive portal or an error"):
        get(part, server.url + "/file", size=size)
    assert part.stat().st_size == have, "a portal does not delete the partial file"


def test_a_corpus_with_the_wrong_content_type_is_accepted(server: FileServer, part: Path) -> None:
    server.behavior.content_type = "text/html"
    assert get(part, server.url + "/file", size=len(DATA)).sha256 == SHA


def test_encoding_is_refused(server: FileServer, part: Path) -> None:
    server.behavior.encoding = "gzip"
    with pytest.raises(InputError, match="Content-Encoding"):
        get(part, server.url + "/file")


def test_wrong_hash(server: FileServer, part: Path) -> None:
    with pytest.raises(CorruptInput) as caught:
        get(part, server.url + "/other", server.url + "/gone")
    found = hashlib.sha256(OTHER).hexdigest()
    assert f"{server.url}/other: the sha256 is {found}, expected {SHA}" in str(caught.value)
    assert caught.value.exit_code == 3
    assert not part.exists()
    assert get(part, server.url + "/other", server.url + "/file").url == server.url + "/file"


def test_wrong_start_is_fetched_anew(server: FileServer, part: Path) -> None:
    server.files["/file"] = OTHER
    size = leave_half(server, part)
    server.files["/file"] = DATA  # under the same ETag
    assert get(part, server.url + "/file").sha256 == SHA
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={size}-", None]


def test_wrong_size(server: FileServer, part: Path) -> None:
    with pytest.raises(CorruptInput, match="300000 bytes, expected 300001"):
        get(part, server.url + "/file", sha256=None, size=len(DATA) + 1)
    assert get(part, server.url + "/file", size=len(DATA) + 1).size == len(DATA), "the hash decides"
    part.unlink()
    with pytest.raises(CorruptInput, match="another file"):
        get(part, server.url + "/file", size=len(DATA) * 2)
    assert not part.exists(), "a very different size is rejected before the download"


def test_empty_file(server: FileServer, part: Path) -> None:
    server.files["/file"] = b""
    with pytest.raises(InputError, match="empty"):
        get(part, server.url + "/file", sha256=None)


def test_redirect(server: FileServer, part: Path) -> None:
    server.redirects["/moved"] = server.url + "/file"
    fetched = get(part, server.url + "/moved", headers={"Authorization": "Bearer x"})
    assert fetched.url == server.url + "/moved"
    assert fetched.sha256 == SHA


def test_url_signature_is_not_stored_and_a_new_one_resumes(server: FileServer, part: Path) -> None:
    server.behavior.authorize = lambda request: request.query == "signature=old"
    half = leave_half(server, part, "/file?signature=old")
    assert "signature" not in part.with_name(part.name + ".json").read_text()
    server.behavior.authorize = lambda request: request.query == "signature=new"
    get(part, server.url + "/file?signature=new")
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={half}-"]
    with pytest.raises(InputError, match=r"/other\?…: status 401") as caught:
        get(part, server.url + "/other?signature=old")
    assert "signature" not in str(caught.value)


def test_the_state_on_disk_is_that_of_the_bytes_on_disk(part: Path) -> None:
    part.parent.mkdir()
    blocks, state = iter(["one", "two", "three"]), {"next": "one"}

    def generate() -> Iterator[bytes]:
        for block in blocks:
            state["next"] = block  # the source is ahead of what is written
            if block == "three":
                raise InputError("the source failed")
            yield block.encode()

    file = PartFile(part, sync_bytes=1)
    file.start(RemoteContent("made"))
    with pytest.raises(InputError, match="the source failed"):
        file.append(generate(), Stop(), lambda done, total: None, state=state.copy)
    resumed = PartFile(part)
    resumed.resume(Stop())
    assert resumed.identity
    assert resumed.identity.state == {"next": "two"}
    assert part.read_bytes() == b"onetwo"
    assert not resumed.complete


def test_no_room(server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "free_space", lambda folder: FreeSpace(100_000_000, None))
    with pytest.raises(UserError, match=r"has 100 MB free, 5 GB are needed"):
        require_free_space(part, 5_000_000_000)
    assert get(part, server.url + "/file").size == len(DATA)
    monkeypatch.setattr(resume, "free_space", lambda folder: FreeSpace(1000, None))
    part.unlink()
    with pytest.raises(UserError, match="free"):
        get(part, server.url + "/file")
    with (
        pytest.raises(UserError, match=r"is full .*run the same command again"),
        translate_disk_full(part),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_local_file_is_linked(tmp_path: Path, part: Path) -> None:
    mine = tmp_path / "my file.bin"
    mine.write_bytes(DATA)
    fetched = get(part, mine.as_uri())
    assert fetched.sha256 == SHA
    assert os.path.samefile(part, mine)
    with pytest.raises(CorruptInput):
        get(part, mine.as_uri(), sha256="0" * 64)
    assert mine.read_bytes() == DATA


def test_local_file_is_never_written_to(server: FileServer, tmp_path: Path, part: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(OTHER)
    get(part, mine.as_uri(), sha256=None)
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert mine.read_bytes() == OTHER


def test_local_file_is_copied_and_resumed(
    tmp_path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    big = DATA * 8
    mine = tmp_path / "mine"
    mine.write_bytes(big)
    with pytest.raises(Interrupted):
        get(part, mine.as_uri(), sha256=None, **stop_after(1_000_000))
    assert 0 < part.stat().st_size < len(big)
    seen: list[int] = []
    fetched = get(part, mine.as_uri(), sha256=None, progress=lambda d, t: seen.append(d))
    assert part.read_bytes() == big
    assert fetched.sha256 == hashlib.sha256(big).hexdigest()
    assert seen[0] > 1_100_000, "it resumes where it stopped"
    mine.write_bytes(OTHER)
    assert get(part, mine.as_uri(), sha256=None).size == len(OTHER), "a changed file starts over"


def test_missing_local_file(tmp_path: Path, part: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        get(part, (tmp_path / "none").as_uri())


def test_probe(server: FileServer) -> None:
    remote = probe(server.url + "/file", QUICK)
    assert (remote.status, remote.size, remote.etag) == (206, len(DATA), '"one"')
    server.behavior.supports_ranges = False
    assert probe(server.url + "/file", QUICK).size == len(DATA)
    server.behavior.refuse_ranged_get = True
    remote = probe(server.url + "/file", QUICK)
    assert (server.requests[-1].method, remote.size) == ("HEAD", len(DATA))


def test_probe_local(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert probe((tmp_path / "a").as_uri()).size == 3


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("http:/gone", r"/gone: status 404 Not Found, not available"),
        ("http:/portal", r"/portal: status 200 OK, a web page"),
        ("refused", r"127.0.0.1:9/x: .*refused"),
        ("gopher", r"gopher://x/y: .*protocol"),
    ],
)
def test_probe_says_why(server: FileServer, path: str, says: str) -> None:
    if path == "http:/portal":
        server.files["/portal"], server.behavior.content_type = b"<html>", "text/html"
        server.behavior.supports_ranges = False
    named = {"refused": "http://127.0.0.1:9/x", "gopher": "gopher://x/y"}
    with pytest.raises(InputError, match=says):
        probe(named.get(path) or server.url + path[5:], QUICK)


def test_probe_mirrors(server: FileServer) -> None:
    urls = [server.url + "/gone", server.url + "/file"]
    assert probe_mirrors(urls, QUICK).url == urls[1]
    with pytest.raises(InputError, match=r"none of 2 mirrors works: .*/gone: status 404 .*; "):
        probe_mirrors([urls[0], "http://127.0.0.1:9/x"], QUICK)


IDENTITY = RemoteContent("u", '"a"', None, 100, 40, "x")


@pytest.mark.parametrize(
    ("head", "identity", "action"),
    [
        (ResponseHead(200, 0, 100, '"a"'), None, ResponseAction.START),
        (ResponseHead(206, 0, 100, '"a"'), None, ResponseAction.START),
        (ResponseHead(206, 40, 100, '"a"'), None, ResponseAction.REFUSED),
        (ResponseHead(200, 0, 100, '"b"'), IDENTITY, ResponseAction.START),
        (ResponseHead(206, 40, 100, '"a"'), IDENTITY, ResponseAction.APPEND),
        (ResponseHead(206, 40, None, None), IDENTITY, ResponseAction.APPEND),
        (ResponseHead(206, 40, 100, '"b"'), IDENTITY, ResponseAction.START_OVER),
        (ResponseHead(206, 40, 101, '"a"'), IDENTITY, ResponseAction.START_OVER),
        (ResponseHead(206, 39, 100, '"a"'), IDENTITY, ResponseAction.START_OVER),
        (ResponseHead(206, None, None, '"a"'), IDENTITY, ResponseAction.START_OVER),
        (ResponseHead(416, None, 40, '"a"'), RemoteContent("u", size=None), ResponseAction.DONE),
        (ResponseHead(416, None, 40), IDENTITY, ResponseAction.START_OVER),
        (ResponseHead(416, None, 0), None, ResponseAction.REFUSED),
        (ResponseHead(429), IDENTITY, ResponseAction.RETRY),
        (ResponseHead(408), IDENTITY, ResponseAction.RETRY),
        (ResponseHead(500), IDENTITY, ResponseAction.RETRY),
        (ResponseHead(403), IDENTITY, ResponseAction.REFUSED),
        (ResponseHead(200, 0, 100, encoding="br"), None, ResponseAction.ENCODED),
        (ResponseHead(200, 0, None, content_type="text/html"), None, ResponseAction.WEB_PAGE),
        (ResponseHead(200, 0, 0), None, ResponseAction.EMPTY),
    ],
)
def test_classify_response(
    head: ResponseHead, identity: RemoteContent | None, action: ResponseAction
) -> None:
    assert classify_response(head, 40 if identity else 0, identity, None) is action


def test_retry_after_as_a_date() -> None:
    import httpx

    def seconds(text: str) -> float | None:
        return ResponseHead.of(httpx.Response(429, headers={"Retry-After": text})).retry_after

    assert seconds("120") == 120
    assert seconds("Mon, 23 Nov 2020 10:00:00 GMT") == 0
    assert seconds("soon") is None
    assert (seconds("Mon, 23 Nov 2099 10:00:00 GMT") or 0) > 1e9
