"""Downloads against a real server in all its moods."""

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
from pipeline.download import fetch as http
from pipeline.download import resume as partial
from pipeline.download.fetch import fetch, probe, probe_mirrors
from pipeline.download.response import Answer, Verdict, judge
from pipeline.download.resume import Bound, room_is_needed
from pipeline.download.transport import Again, Patience, waiting
from pipeline.sources.spans import Span
from tests.helpers.servers import FileServer

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
QUICK = Patience(attempts=3, base=0.001, asked=0.05, connect=2, read=2, sync=16_384)


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
    more = {"stop": Stop(), "progress": lambda done, total: None, "patience": QUICK, **more}
    return fetch(urls, part, sha256=sha256, size=size, **more)


def stop_after(size: int) -> dict[str, object]:
    """A stop that is asked for when that many bytes are there."""
    stop = Stop()

    def progress(done: int, total: int | None) -> None:
        if done >= size:
            stop.set("enough")

    return {"stop": stop, "progress": progress}


def leave_half(server: FileServer, part: Path, path: str = "/file", **more) -> int:
    """Interrupt a download half-way; the bytes that are there."""
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
    assert fetched == http.Fetched(part, server.url + "/file", len(DATA), SHA, '"one"', None, spans)
    assert seen[-1] == (len(DATA), len(DATA))
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.ranges() == [None]
    assert get(part, server.url + "/file").sha256 == SHA
    assert len(server.requests) == 1, "a whole file is not asked for again"


def test_cut_connection_goes_on(server: FileServer, part: Path) -> None:
    server.mood.cut = 70_000
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    starts = [0 if r is None else int(r[6:-1]) for r in server.ranges()]
    assert len(starts) >= 4
    assert all(0 < b - a <= 70_000 for a, b in itertools.pairwise(starts))
    assert server.requests[1].headers["if-range"] == '"one"'


def test_cut_that_never_grows_gives_up(server: FileServer, part: Path) -> None:
    server.mood.cut, server.mood.ranges = 70_000, False
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
    server.mood.ranges = False
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_wrong_range_starts_over(server: FileServer, part: Path, shift: int) -> None:
    size = leave_half(server, part)
    server.mood.shift = shift
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges()[-2:] == [f"bytes={size}-", None]


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("field", ["etag", "modified"])
def test_content_that_changes_starts_over(
    server: FileServer, part: Path, careless: bool, field: str
) -> None:
    server.mood.etag = None
    setattr(server.mood, field, "Mon, 23 Nov 2026 10:00:00 GMT")
    leave_half(server, part)
    server.files["/file"] = OTHER
    setattr(server.mood, field, "Mon, 23 Nov 2026 11:00:00 GMT")
    server.mood.careless = careless
    get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == OTHER


def test_content_that_changes_within_one_call(server: FileServer, part: Path) -> None:
    server.mood.cut, server.mood.cuts = 70_000, 1

    def before(request) -> None:
        if "range" in request.headers:
            server.files["/file"], server.mood.etag = OTHER, '"two"'

    server.mood.before = before
    fetched = get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == OTHER
    assert fetched.etag == '"two"'


def test_weak_etag_is_compared_but_not_sent(server: FileServer, part: Path) -> None:
    server.mood.etag = 'W/"one"'
    size = leave_half(server, part)
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert "if-range" not in server.requests[-1].headers
    assert server.ranges()[-1] == f"bytes={size}-"


def test_without_validator_or_hash_nothing_is_appended(server: FileServer, part: Path) -> None:
    server.mood.etag = None
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
    server.mood.length = False
    get(part, server.url + "/file")
    sidecar = part.parent / "corpus.part.json"
    told = json.loads(sidecar.read_text())
    get(part, server.url + "/file")
    assert server.ranges() == [None], "it was noted where it ends"
    sidecar.write_text(json.dumps(told | {"size": None}))  # killed before that
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={len(DATA)}-"], "416 says that nothing is missing"


def test_a_whole_file_of_which_the_server_tells_nothing_is_not_fetched_twice(
    server: FileServer, part: Path
) -> None:
    server.mood.length, server.mood.etag = False, None
    get(part, server.url + "/file", sha256=None)
    assert get(part, server.url + "/file", sha256=None).size == len(DATA)
    assert server.ranges() == [None]


def test_file_that_shrank_starts_over(server: FileServer, part: Path) -> None:
    leave_half(server, part)
    server.files["/file"] = DATA[:50_000]
    get(part, server.url + "/file", sha256=None)
    assert part.read_bytes() == DATA[:50_000]


def test_busy_server_is_asked_again(server: FileServer, part: Path) -> None:
    server.mood.statuses = [(429, {"Retry-After": "3600"}), (503, {})]
    began = time.monotonic()
    get(part, server.url + "/file")
    assert part.read_bytes() == DATA
    assert 0.05 <= time.monotonic() - began < 5, "Retry-After is honoured up to a cap"


def test_waits() -> None:
    state = namedtuple("State", "attempt_number outcome")
    outcome = namedtuple("Outcome", "exception")
    wait = waiting(Patience(base=1, cap=10, asked=300))

    def after(number: int, seconds: float | None) -> float:
        return wait(state(number, outcome(lambda: Again("", seconds))))

    assert [after(n, None) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]
    assert [after(1, s) for s in (0.0, 7.0, 1e6)] == [0, 7, 300]


def test_stop_while_waiting(server: FileServer, part: Path) -> None:
    stop = Stop()
    server.mood.statuses = [(503, {"Retry-After": "60"})]
    server.mood.before = lambda request: stop.set("received SIGTERM")
    with pytest.raises(Interrupted, match="SIGTERM"):
        get(part, server.url + "/file", stop=stop, patience=Patience())


def test_next_mirror(server: FileServer, part: Path) -> None:
    fetched = get(part, server.url + "/gone", server.url + "/file")
    assert part.read_bytes() == DATA
    assert fetched.url == server.url + "/file"


def test_partial_file_outlives_a_dead_mirror(server: FileServer, part: Path) -> None:
    size = leave_half(server, part)
    server.mood.statuses = [(404, {})]
    with pytest.raises(InputError):
        get(part, server.url + "/file")
    assert part.stat().st_size == size
    get(part, server.url + "/other", server.url + "/file")
    assert part.read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={size}-", "the mirror it was begun from comes first"


def test_no_mirror_left(server: FileServer, part: Path) -> None:
    server.mood.statuses = [(503, {})] * 3
    dead = "http://127.0.0.1:9/file"
    with pytest.raises(InputError) as caught:
        get(part, server.url + "/file", server.url + "/gone", dead)
    text = str(caught.value)
    assert text.startswith(f"none of 3 sources delivers: {server.url}/file: status 503 Service")
    assert f"{server.url}/gone: status 404 Not Found" in text
    assert f"{dead}: " in text
    assert "refused" in text
    assert "\n" not in text
    assert caught.value.exit_code == 3
    assert not isinstance(caught.value, CorruptInput)


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_portal(server: FileServer, part: Path, size: int | None) -> None:
    have = leave_half(server, part)
    server.files["/file"], server.mood.kind = b"<html>Please log in</html>", "text/html; x=y"
    server.mood.ranges = False
    with pytest.raises(InputError, match=r"/file: status 200 OK, .*captive portal or an error"):
        get(part, server.url + "/file", size=size)
    assert part.stat().st_size == have, "a portal does not cost what is there"


def test_mislabelled_corpus_is_taken(server: FileServer, part: Path) -> None:
    server.mood.kind = "text/html"
    assert get(part, server.url + "/file", size=len(DATA)).sha256 == SHA


def test_encoding_is_refused(server: FileServer, part: Path) -> None:
    server.mood.encoding = "gzip"
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
    assert get(part, server.url + "/file", size=len(DATA) + 1).size == len(DATA), "a hash decides"
    part.unlink()
    with pytest.raises(CorruptInput, match="another file"):
        get(part, server.url + "/file", size=len(DATA) * 2)
    assert not part.exists(), "a far-off size is seen before anything is fetched"


def test_empty_file(server: FileServer, part: Path) -> None:
    server.files["/file"] = b""
    with pytest.raises(InputError, match="empty"):
        get(part, server.url + "/file", sha256=None)


def test_redirect(server: FileServer, part: Path) -> None:
    server.redirects["/moved"] = server.url + "/file"
    fetched = get(part, server.url + "/moved", headers={"Authorization": "Bearer x"})
    assert fetched.url == server.url + "/moved"
    assert fetched.sha256 == SHA


def test_a_signature_is_not_kept_and_a_renewed_one_goes_on(server: FileServer, part: Path) -> None:
    server.mood.lets_in = lambda request: request.query == "signature=old"
    half = leave_half(server, part, "/file?signature=old")
    assert "signature" not in part.with_name(part.name + ".json").read_text()
    server.mood.lets_in = lambda request: request.query == "signature=new"
    get(part, server.url + "/file?signature=new")
    assert part.read_bytes() == DATA
    assert server.ranges() == [None, f"bytes={half}-"]
    with pytest.raises(InputError, match=r"/other\?…: status 401") as caught:
        get(part, server.url + "/other?signature=old")
    assert "signature" not in str(caught.value)


def test_no_room(server: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "free_space", lambda folder: FreeSpace(100_000_000, None))
    with pytest.raises(UserError, match=r"has 100 MB free, 5 GB are needed"):
        http.require_free_space(part, 5_000_000_000)
    assert get(part, server.url + "/file").size == len(DATA)
    monkeypatch.setattr(partial, "free_space", lambda folder: FreeSpace(1000, None))
    part.unlink()
    with pytest.raises(UserError, match="free"):
        get(part, server.url + "/file")
    with (
        pytest.raises(UserError, match=r"is full .*run the same command again"),
        room_is_needed(part),
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
    assert seen[0] > 1_100_000, "it goes on where it stopped"
    mine.write_bytes(OTHER)
    assert get(part, mine.as_uri(), sha256=None).size == len(OTHER), "a changed file starts over"


def test_missing_local_file(tmp_path: Path, part: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        get(part, (tmp_path / "none").as_uri())


def test_probe(server: FileServer) -> None:
    remote = probe(server.url + "/file", QUICK)
    assert (remote.status, remote.size, remote.etag) == (206, len(DATA), '"one"')
    server.mood.ranges = False
    assert probe(server.url + "/file", QUICK).size == len(DATA)
    server.mood.head_only = True
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
        server.files["/portal"], server.mood.kind = b"<html>", "text/html"
        server.mood.ranges = False
    named = {"refused": "http://127.0.0.1:9/x", "gopher": "gopher://x/y"}
    with pytest.raises(InputError, match=says):
        probe(named.get(path) or server.url + path[5:], QUICK)


def test_probe_all(server: FileServer) -> None:
    urls = [server.url + "/gone", server.url + "/file"]
    assert probe_mirrors(urls, QUICK).url == urls[1]
    with pytest.raises(InputError, match=r"none of 2 sources delivers: .*/gone: status 404 .*; "):
        probe_mirrors([urls[0], "http://127.0.0.1:9/x"], QUICK)


BOUND = Bound("u", '"a"', None, 100, 40, "x")


@pytest.mark.parametrize(
    ("answer", "bound", "verdict"),
    [
        (Answer(200, 0, 100, '"a"'), None, Verdict.START),
        (Answer(206, 0, 100, '"a"'), None, Verdict.START),
        (Answer(206, 40, 100, '"a"'), None, Verdict.REFUSED),
        (Answer(200, 0, 100, '"b"'), BOUND, Verdict.START),
        (Answer(206, 40, 100, '"a"'), BOUND, Verdict.APPEND),
        (Answer(206, 40, None, None), BOUND, Verdict.APPEND),
        (Answer(206, 40, 100, '"b"'), BOUND, Verdict.DROP),
        (Answer(206, 40, 101, '"a"'), BOUND, Verdict.DROP),
        (Answer(206, 39, 100, '"a"'), BOUND, Verdict.DROP),
        (Answer(206, None, None, '"a"'), BOUND, Verdict.DROP),
        (Answer(416, None, 40, '"a"'), Bound("u", size=None), Verdict.DONE),
        (Answer(416, None, 40), BOUND, Verdict.DROP),
        (Answer(416, None, 0), None, Verdict.REFUSED),
        (Answer(429), BOUND, Verdict.AGAIN),
        (Answer(408), BOUND, Verdict.AGAIN),
        (Answer(500), BOUND, Verdict.AGAIN),
        (Answer(403), BOUND, Verdict.REFUSED),
        (Answer(200, 0, 100, encoding="br"), None, Verdict.ENCODED),
        (Answer(200, 0, None, kind="text/html"), None, Verdict.PORTAL),
        (Answer(200, 0, 0), None, Verdict.EMPTY),
    ],
)
def test_judge(answer: Answer, bound: Bound | None, verdict: Verdict) -> None:
    assert judge(answer, 40 if bound else 0, bound, None) is verdict


def test_retry_after_as_a_date() -> None:
    import httpx

    def seconds(text: str) -> float | None:
        return Answer.of(httpx.Response(429, headers={"Retry-After": text})).retry_after

    assert seconds("120") == 120
    assert seconds("Mon, 23 Nov 2020 10:00:00 GMT") == 0
    assert seconds("soon") is None
    assert (seconds("Mon, 23 Nov 2099 10:00:00 GMT") or 0) > 1e9
