"""Any sequence of cuts, restarts and server moods ends in the right bytes or in a clear error."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import Failure, Interrupted
from pipeline.core.stop import Stop
from pipeline.download.fetch import fetch
from pipeline.download.transport import Patience
from tests.helpers.servers import FileServer, Mood

SIZE = 200_000
VERSIONS = [random.Random(seed).randbytes(SIZE) for seed in range(3)]
PORTAL = b"<html>Please log in</html>" * 100
QUICK = Patience(attempts=2, base=0.0005, asked=0.001, connect=2, read=2, sync=4096)
RIGHT = sha256(VERSIONS[0]).hexdigest()

Story = list[list[tuple[str, Any]]]
places = st.integers(0, SIZE + 1000)
honest = st.one_of(
    st.builds(lambda cut, cuts: {"cut": cut, "cuts": cuts}, places, st.integers(1, 5)),
    st.builds(
        lambda codes: {"statuses": [(code, {"Retry-After": "0"}) for code in codes]},
        st.lists(st.sampled_from([403, 404, 408, 416, 429, 500, 502, 503]), min_size=1, max_size=4),
    ),
    st.sampled_from(
        [{}, {"ranges": False}, {"encoding": "gzip"}, {"etag": None},
         {"etag": 'W/"weak"'}, {"length": False}, {"head_only": True}]
    ),
)  # fmt: skip
events = st.one_of(
    st.tuples(st.just("mood"), honest),
    st.tuples(st.just("version"), st.integers(0, 2)),
    st.tuples(st.just("careless"), st.integers(0, 2)),  # and ranges without a look at If-Range
    st.tuples(st.just("shift"), st.integers(-SIZE // 3, SIZE // 3)),
    st.tuples(st.just("stop"), places),
    st.tuples(st.just("killed"), places),
    st.tuples(st.just("portal"), st.none()),
)
lies = st.one_of(
    st.tuples(st.just("swap"), st.integers(0, 2)),  # other bytes under the same ETag
    st.tuples(
        st.just("mood"), st.builds(lambda cut: {"cut": cut, "cuts": 9, "length": False}, places)
    ),
)


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with pytest.MonkeyPatch.context() as patch, FileServer() as started:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield started


class Download:
    """A server, a partial file, and what is known of both."""

    def __init__(self, server: FileServer, part: Path, expected: str | None) -> None:
        self.server, self.part, self.expected = server, part, expected
        self.be_well()

    def be_well(self, version: int = 0) -> None:
        """Let the server serve a version as it should."""
        self.server.files = {"/file": VERSIONS[version]}
        self.server.mood = Mood(etag=f'"{version}"')

    def meets(self, kind: str, value: Any) -> None:
        """Let something happen before, or in, the next request."""
        mood = self.server.mood
        if kind == "shift":
            mood.shift = value
        elif kind in ("version", "careless"):
            mood.careless = kind == "careless"
            self.server.files["/file"], mood.etag = VERSIONS[value], f'"{value}"'
        elif kind == "swap":
            self.server.files["/file"] = VERSIONS[value]
        elif kind == "portal":
            self.server.files["/file"] = PORTAL
            self.server.mood = Mood(etag=None, kind="text/html", ranges=False)
        elif kind == "mood":
            for name, setting in value.items():
                setattr(mood, name, setting)
        elif kind == "killed" and self.part.exists():
            # as after a power cut: what was not synced is cut off, or is there as zeros
            with self.part.open("r+b") as file:
                file.truncate(max(value, self.part.stat().st_size - 1))
                file.truncate(max(value, 1))

    def tries(self, stop_at: int | None = None) -> bool:
        """Whether it came to its end, in the bytes of one version and no other."""
        stop = Stop()

        def progress(done: int, total: int | None) -> None:
            if stop_at is not None and done >= stop_at:
                stop.set("enough")

        try:
            found = fetch(
                [self.server.url + "/file"], self.part, sha256=self.expected, size=None,
                stop=stop, progress=progress, patience=QUICK,
            )  # fmt: skip
        except (Failure, Interrupted):
            return False
        data = self.part.read_bytes()
        # one that was whole when a stop came is not asked for again
        assert data in (VERSIONS[:1] if self.expected else VERSIONS)
        assert found.sha256 == sha256(data).hexdigest()
        assert found.size == len(data)
        return True


def plays(download: Download, story: Story) -> None:
    """Let each chapter happen, with a try after it; then all is well, and the download ends."""
    # there is a part of the file, of whatever version, before anything else happens
    for chapter in [[("stop", SIZE // 3)], *story]:
        for kind, value in chapter:
            download.meets(kind, value)
        if download.tries(dict(chapter).get("stop")):
            return
    download.be_well()
    assert download.tries(), "a server that behaves is enough, whatever was before"


quickly = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.slow
@quickly
@given(story=st.lists(st.lists(st.one_of(events, lies), min_size=1, max_size=3), max_size=3))
def test_with_a_hash_no_lie_gets_through(
    server: FileServer, tmp_path_factory: pytest.TempPathFactory, story: Story
) -> None:
    plays(Download(server, tmp_path_factory.mktemp("moods") / "x.part", RIGHT), story)


@pytest.mark.slow
@quickly
@given(story=st.lists(st.lists(events, min_size=1, max_size=3), max_size=3))
def test_without_one_an_honest_server_is_enough(
    server: FileServer, tmp_path_factory: pytest.TempPathFactory, story: Story
) -> None:
    plays(Download(server, tmp_path_factory.mktemp("moods") / "x.part", None), story)
