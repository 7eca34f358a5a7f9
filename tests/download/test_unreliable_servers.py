"""Any sequence of cuts, restarts and misbehaving servers ends in the right bytes or an error."""

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
from pipeline.download.transport import RetryPolicy
from tests.helpers.examples import examples
from tests.helpers.servers import Behavior, FileServer

SIZE = 200_000
VERSIONS = [random.Random(seed).randbytes(SIZE) for seed in range(3)]
PORTAL = b"<html>Please log in</html>" * 100
QUICK = RetryPolicy(
    attempts=2,
    base_delay=0.0005,
    max_retry_after=0.001,
    connect_timeout=2,
    read_timeout=2,
    sync_bytes=4096,
)
RIGHT = sha256(VERSIONS[0]).hexdigest()

Story = list[list[tuple[str, Any]]]
offsets = st.integers(0, SIZE + 1000)
honest_behavior = st.one_of(
    st.builds(
        lambda cut, count: {"cut_after_bytes": cut, "cut_count": count}, offsets, st.integers(1, 5)
    ),
    st.builds(
        lambda codes: {"first_statuses": [(code, {"Retry-After": "0"}) for code in codes]},
        st.lists(st.sampled_from([403, 404, 408, 416, 429, 500, 502, 503]), min_size=1, max_size=4),
    ),
    st.sampled_from(
        [{}, {"supports_ranges": False}, {"encoding": "gzip"}, {"etag": None},
         {"etag": 'W/"weak"'}, {"send_length": False}, {"refuse_ranged_get": True}]
    ),
)  # fmt: skip
events = st.one_of(
    st.tuples(st.just("behavior"), honest_behavior),
    st.tuples(st.just("version"), st.integers(0, 2)),
    st.tuples(st.just("ignore If-Range"), st.integers(0, 2)),  # a new version, too
    st.tuples(st.just("shift"), st.integers(-SIZE // 3, SIZE // 3)),
    st.tuples(st.just("stop"), offsets),
    st.tuples(st.just("killed"), offsets),
    st.tuples(st.just("portal"), st.none()),
)
dishonest_events = st.one_of(
    st.tuples(st.just("swap"), st.integers(0, 2)),  # other bytes under the same ETag
    st.tuples(
        st.just("behavior"),
        st.builds(
            lambda cut: {"cut_after_bytes": cut, "cut_count": 9, "send_length": False}, offsets
        ),
    ),
)


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with pytest.MonkeyPatch.context() as patch, FileServer() as started:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield started


class Download:
    """A server, a partial file, and the expected hash."""

    def __init__(self, server: FileServer, part: Path, expected: str | None) -> None:
        self.server, self.part, self.expected = server, part, expected
        self.reset_server()

    def reset_server(self, version: int = 0) -> None:
        """Let the server behave and serve this version."""
        self.server.files = {"/file": VERSIONS[version]}
        self.server.behavior = Behavior(etag=f'"{version}"')

    def apply(self, event: str, value: Any) -> None:
        """Apply an event before or in the next request."""
        behavior = self.server.behavior
        if event == "shift":
            behavior.range_shift = value
        elif event in ("version", "ignore If-Range"):
            behavior.ignore_if_range = event == "ignore If-Range"
            self.server.files["/file"], behavior.etag = VERSIONS[value], f'"{value}"'
        elif event == "swap":
            self.server.files["/file"] = VERSIONS[value]
        elif event == "portal":
            self.server.files["/file"] = PORTAL
            self.server.behavior = Behavior(
                etag=None, content_type="text/html", supports_ranges=False
            )
        elif event == "behavior":
            for name, setting in value.items():
                setattr(behavior, name, setting)
        elif event == "killed" and self.part.exists():
            # as after a power cut: unsynced bytes are lost, or are zeros
            with self.part.open("r+b") as file:
                file.truncate(max(value, self.part.stat().st_size - 1))
                file.truncate(max(value, 1))

    def attempt(self, stop_at: int | None = None) -> bool:
        """Whether the download completed; then its bytes are those of exactly one version."""
        stop = Stop()

        def progress(done: int, total: int | None) -> None:
            if stop_at is not None and done >= stop_at:
                stop.set("enough")

        try:
            found = fetch(
                [self.server.url + "/file"], self.part, sha256=self.expected, size=None,
                stop=stop, progress=progress, policy=QUICK,
            )  # fmt: skip
        except (Failure, Interrupted):
            return False
        data = self.part.read_bytes()
        # a file that was complete at a stop is not requested again
        assert data in (VERSIONS[:1] if self.expected else VERSIONS)
        assert found.sha256 == sha256(data).hexdigest()
        assert found.size == len(data)
        return True


def play(download: Download, story: Story) -> None:
    """Apply each chapter's events and attempt a download; then let a good server complete it."""
    # start with a part of the file
    for chapter in [[("stop", SIZE // 3)], *story]:
        for event, value in chapter:
            download.apply(event, value)
        if download.attempt(dict(chapter).get("stop")):
            return
    download.reset_server()
    assert download.attempt(), "a good server is enough, whatever came before"


quick_settings = settings(
    max_examples=examples(200),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.slow
@quick_settings
@given(
    story=st.lists(
        st.lists(st.one_of(events, dishonest_events), min_size=1, max_size=3), max_size=3
    )
)
def test_known_sha256_gives_the_right_bytes_or_an_error(
    server: FileServer, tmp_path_factory: pytest.TempPathFactory, story: Story
) -> None:
    play(Download(server, tmp_path_factory.mktemp("behavior") / "x.part", RIGHT), story)


@pytest.mark.slow
@quick_settings
@given(story=st.lists(st.lists(events, min_size=1, max_size=3), max_size=3))
def test_correct_etags_give_one_version_or_an_error(
    server: FileServer, tmp_path_factory: pytest.TempPathFactory, story: Story
) -> None:
    play(Download(server, tmp_path_factory.mktemp("behavior") / "x.part", None), story)
