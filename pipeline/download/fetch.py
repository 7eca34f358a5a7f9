"""Files from plain URLs: resumable, verified, mirror after mirror.

A download is a prefix that grows (`pipeline.download.resume`). Each answer of a server goes through
`pipeline.download.response.judge`; nothing else decides whether bytes are appended. A request ends with
the file whole, grown, or as it was; only the last counts as a failure, and enough of those in a row
mean the next mirror.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from pipeline.core.errors import CorruptInput, InputError
from pipeline.core.redaction import redact
from pipeline.core.stop import Stop
from pipeline.download.response import Answer, Verdict, ask, judge, status_line
from pipeline.download.resume import BLOCK, Bound, Part, Progress, require_free_space
from pipeline.download.transport import (
    LOGIN,
    PATIENCE,
    Again,
    Client,
    Patience,
    brisk,
    telling,
    waiting,
)
from pipeline.sources.spans import Span

NO_RANGED_GET = {400, 403, 405, 501}


@dataclass(frozen=True)
class Remote:
    """What a server says about a URL; `size` in bytes."""

    url: str
    status: int
    size: int | None = None
    etag: str | None = None
    modified: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A complete file: where it is and came from, `size` in bytes, sha256 in hex, its spans."""

    path: Path
    url: str
    size: int
    sha256: str
    etag: str | None = None
    modified: str | None = None
    spans: Sequence[Span] = ()


def probe(url: str, patience: Patience = PATIENCE) -> Remote:
    """Ask what a URL has, by a request for its first byte.

    Raises:
        InputError: It does not answer, refuses, or answers with a web page; one line.
    """
    if url.startswith("file:"):
        bound = _local(url)
        return Remote(url, 200, bound.size, None, bound.modified)
    headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}
    try:
        with Client(patience) as client, telling(url):
            with client.stream("GET", url, headers) as response:
                answer = Answer.of(response)
            if answer.status in NO_RANGED_GET:
                with client.stream("HEAD", url, ask(0, None)) as response:
                    answer = Answer.of(response)
    except Again as error:
        raise InputError(f"{url}: {error}") from error
    verdict = judge(answer, 0, None, None)
    if verdict is not Verdict.START:
        raise _refusal(url, answer, verdict)
    return Remote(url, answer.status, answer.total, answer.etag, answer.modified)


def probe_mirrors(urls: Sequence[str], patience: Patience = PATIENCE) -> Remote:
    """The first of several mirrors that answers.

    Raises:
        InputError: None does; each URL with its reason, in one line.
    """
    errors: list[InputError] = []
    for url in urls:
        try:
            return probe(url, patience)
        except InputError as error:
            errors.append(error)
    raise _none_left(errors)


def fetch(
    urls: Sequence[str],
    part: Path,
    *,
    sha256: str | None,
    size: int | None,
    stop: Stop,
    progress: Progress,
    headers: Mapping[str, str] | None = None,
    patience: Patience = PATIENCE,
) -> Fetched:
    """Get one content from the first mirror that delivers it, going on where `part` ends.

    Nothing is asked for where `part` is whole.

    Args:
        urls: Mirrors of one content, in order: http(s):// or file://.
        part: The file to write; beside it lies `<part>.json`. Both may be left from before.
        sha256: Expected hash in hex; it decides. None to accept what comes.
        size: Expected bytes: a hint where sha256 is given, else what the file must have.
        stop: Looked at between blocks; progress is on disk before `Interrupted` is raised.
        progress: Called with (bytes there, bytes of the whole or None).
        headers: Sent along to the hosts of `urls`; no Authorization goes to another host.
        patience: Time-outs and retries.

    Raises:
        InputError: No mirror delivers; each URL with its reason.
        CorruptInput: The same, and a mirror delivered something else than was expected.
        UserError: There is not enough room.
        Interrupted: A stop was asked for.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    store = Part(part, patience.sync)
    begun = store.bound.url if store.bound else None
    if begun in {redact(url) for url in urls}:
        store.adopt(stop)
    else:
        store.discard()
    job = _Job(store, sha256, size, stop, progress, dict(headers or {}), patience)
    errors: list[InputError] = []
    for url in sorted(urls, key=lambda u: redact(u) != begun):
        try:
            return job.run(url)
        except InputError as error:
            errors.append(error)
    raise _none_left(errors)


@dataclass(frozen=True)
class _Job:
    """One call of `fetch`: the same content from one mirror, then from another."""

    store: Part
    sha256: str | None
    size: int | None
    stop: Stop
    progress: Progress
    headers: dict[str, str]
    patience: Patience

    def run(self, url: str) -> Fetched:
        store, kept = self.store, self.store.have(url) > 0
        bound = self._copy(url) if url.startswith("file:") else self._download(url)
        found, wrong = store.seen.hexdigest(), ""
        if self.sha256 and found != self.sha256:
            wrong = f"the sha256 is {found}, expected {self.sha256}"
        elif not self.sha256 and self.size not in (None, store.size):
            wrong = f"{store.size} bytes, expected {self.size}"
        if not wrong:
            store.finish()
            told = bound.etag, bound.modified, store.seen.spans
            return Fetched(store.path, url, store.size, found, *told)
        store.discard()
        if kept:  # what was there before may be to blame: once more, from the start
            return self.run(url)
        raise CorruptInput(f"{url}: {wrong}")

    def _copy(self, url: str) -> Bound:
        bound, store = _local(url), self.store
        source = url_to_path(url).resolve()
        if store.have(url) and replace(store.bound or bound, synced=0, sha256="") != bound:
            store.discard()
        if not store.have(url):
            try:
                store.link(source, self.stop, self.progress)
                return bound
            except OSError:  # another file system, or not our file to link
                require_free_space(store.path.parent, bound.size)
                store.begin(bound)
        with source.open("rb") as file:
            file.seek(store.size)
            store.append(iter(lambda: file.read(BLOCK), b""), self.stop, self.progress)
        return bound

    def _download(self, url: str) -> Bound:
        import tenacity

        again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.patience.attempts),
            wait=waiting(self.patience),
            retry=tenacity.retry_if_exception_type(Again),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            with Client(self.patience) as client:
                while not again(self._attempt, client, url):
                    self._sleep(self.patience.base)
        except Again as error:
            why = f"{url}: {error}, {self.patience.attempts} times in a row"
            hint = "What is there is kept: run the same command again, or give FILE=/a/local/copy"
            raise InputError(why, hint) from error
        assert self.store.bound is not None
        return self.store.bound

    def _attempt(self, client: Client, url: str) -> bool:
        """One request: True when the file is whole, False when it has grown.

        Raises:
            Again: It has not, or not to speak of.
        """
        started, before = time.monotonic(), self.store.have(url)
        try:
            with telling(url):
                self._request(client, url)
            total = self.store.bound.size if self.store.bound else None
            if total not in (None, self.store.size):
                raise Again(f"the answer ended after {self.store.size} of {total} bytes")
        except Again:
            spent = self.patience.base + time.monotonic() - started
            if self.store.have(url) - before > self.patience.slowest * spent:
                return False
            raise
        return True

    def _request(self, client: Client, url: str) -> None:
        store = self.store
        bound = store.bound if store.have(url) else None
        if bound and bound.size == store.size:
            return
        if bound and not self._can_tell(bound):
            bound = None
        have = store.size if bound else 0
        headers = self.headers | ask(have, bound)
        with client.stream("GET", url, headers) as response:
            answer = Answer.of(response)
            verdict = judge(answer, have, bound, self.size)
            match verdict:
                case Verdict.DONE:
                    return
                case Verdict.AGAIN:
                    raise Again(status_line(answer.status), answer.retry_after)
                case Verdict.DROP:
                    store.discard()
                    raise Again(verdict.value)
                case Verdict.START:
                    require_free_space(store.path.parent, answer.total or self.size)
                    store.begin(Bound(url, answer.etag, answer.modified, answer.total))
                case Verdict.APPEND:
                    require_free_space(store.path.parent, answer.total and answer.total - have)
                    store.bound = bound and replace(bound, size=bound.size or answer.total)
                case _:
                    raise _refusal(url, answer, verdict)
            store.append(brisk(response.iter_raw(), self.patience), self.stop, self.progress)

    def _can_tell(self, bound: Bound) -> bool:
        """Whether it would be noticed that the content has changed under its URL."""
        return bool(bound.etag or bound.modified or self.sha256)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.stop.check()
            time.sleep(min(left, 0.2))


def _refusal(url: str, answer: Answer, verdict: Verdict) -> InputError:
    if verdict is Verdict.OTHER:
        return CorruptInput(f"{url}: {answer.total} bytes, {verdict.value}")
    login = f" ({LOGIN})" if answer.status == HTTPStatus.UNAUTHORIZED else ""
    return InputError(f"{url}: {status_line(answer.status)}, {verdict.value}{login}")


def _none_left(errors: list[InputError]) -> InputError:
    """One error for all mirrors; damage weighs more than absence."""
    kind = CorruptInput if any(isinstance(e, CorruptInput) for e in errors) else InputError
    if len(errors) == 1:
        return errors[0]
    return kind(f"none of {len(errors)} sources delivers: " + "; ".join(e.what for e in errors))


def _local(url: str) -> Bound:
    """What a file:// URL has, bound like a server's content by its time and size."""
    path = url_to_path(url)
    if not path.is_file():
        raise InputError(f"{url}: there is no such file")
    facts = path.stat()
    if not facts.st_size:
        raise InputError(f"{url}: {Verdict.EMPTY.value}", "Remove it, or put a sound copy there")
    return Bound(url, None, str(facts.st_mtime_ns), facts.st_size)


def url_to_path(url: str) -> Path:
    """The path that a URL names, on this machine for `file://`; any bytes can be in it."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))
