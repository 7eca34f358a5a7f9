"""Files from plain URLs: resumable, verified, mirror after mirror.

A download is a prefix that grows. The sidecar `<part>.json` says of which content (URL, ETag or
Last-Modified, size) `<part>` is a prefix and how much of it is safely on disk, with the sha256 of
that much; whatever stands after it is dropped on resume. Each answer of a server goes through
`judge`, a pure function that says what the answer is good for; nothing else decides whether bytes
are appended. The price: the prefix is read once more on resume, to carry the hash on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import CorruptInput, InputError, UserError
from pipeline.stop import Stop

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
BLOCK = 1 << 20
SMALL = 1 << 20
AGAIN = {408, 425, 429}


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
    """A complete file: where it is, where it came from, `size` in bytes, sha256 in hex."""

    path: Path
    url: str
    size: int
    sha256: str
    etag: str | None = None
    modified: str | None = None


@dataclass(frozen=True)
class Patience:
    """How long to insist; times in seconds, `sync` in bytes between two fsyncs.

    `attempts` counts tries in a row that bring no new byte; the wait between them is
    `base * 2**n` up to `cap`, or what the server asks for (Retry-After) up to `asked`.
    """

    attempts: int = 6
    base: float = 1.0
    cap: float = 60.0
    asked: float = 300.0
    connect: float = 20.0
    read: float = 30.0
    sync: int = 32 << 20


@dataclass(frozen=True)
class Bound:
    """The content a partial file is a prefix of; `synced` bytes of it are on disk with `sha256`."""

    url: str
    etag: str | None
    modified: str | None
    size: int | None
    synced: int = 0
    sha256: str = ""

    @property
    def validator(self) -> str | None:
        """What may stand in If-Range: a strong ETag, else the date."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified

    def same(self, answer: Answer) -> bool:
        """Whether an answer speaks of this content, as far as both of them say."""
        pairs = [(self.size, answer.total), (self.etag, answer.etag)]
        if not (self.etag and answer.etag):
            pairs.append((self.modified, answer.modified))
        return all(a == b for a, b in pairs if a is not None and b is not None)


@dataclass(frozen=True)
class Answer:
    """The head of a response: what `judge` looks at; `start`, `total`, `length` in bytes."""

    status: int
    start: int | None = None
    total: int | None = None
    length: int | None = None
    etag: str | None = None
    modified: str | None = None
    encoding: str = "identity"
    kind: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        """The head of an httpx response."""
        head = response.headers
        length = _number(head.get("content-length"))
        ranged = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", head.get("content-range", "").strip())
        start, total = (_number(ranged[1]), _number(ranged[2])) if ranged else (None, None)
        if response.status_code == 200:
            start, total = 0, length
        return cls(
            status=response.status_code,
            start=start,
            total=total,
            length=length,
            etag=head.get("etag"),
            modified=head.get("last-modified"),
            encoding=head.get("content-encoding", "identity").strip().lower() or "identity",
            kind=head.get("content-type", "").partition(";")[0].strip().lower(),
            retry_after=_seconds(head.get("retry-after")),
        )


class Verdict(Enum):
    """What an answer is good for; the value tells it to people."""

    APPEND = "goes on where the partial file ends"
    START = "the whole content from its first byte"
    DONE = "nothing is missing"
    DROP = "the content changed, or the server does not keep to the range"
    AGAIN = "try again later"
    ENCODED = "sent with a Content-Encoding though identity was asked for"
    PORTAL = "a web page in place of the file: a captive portal or an error page"
    REFUSED = "refused"


def judge(answer: Answer, have: int, bound: Bound | None, size: int | None) -> Verdict:
    """What to do with an answer to a request for the bytes from `have` on.

    Args:
        answer: The head of the response.
        have: Bytes of the partial file that the request asked to go on from; 0 for all of it.
        bound: The content the partial file belongs to, None if there is none.
        size: Expected bytes of the whole, None if unknown.
    """
    if answer.status in AGAIN or answer.status >= 500:
        return Verdict.AGAIN
    if answer.status == 416 and have:
        return Verdict.DONE if bound and answer.total == have and bound.same(answer) else Verdict.DROP
    if answer.status not in (200, 206):
        return Verdict.REFUSED
    if answer.encoding != "identity":
        return Verdict.ENCODED
    if answer.kind == "text/html" and answer.total != size and (size or (answer.total or 0) < SMALL):
        return Verdict.PORTAL
    if answer.status == 200:
        return Verdict.START
    if answer.start == 0 and not have:
        return Verdict.START
    if bound and have and answer.start == have and bound.same(answer):
        return Verdict.APPEND
    return Verdict.DROP if have else Verdict.REFUSED


class Part:
    """The partial file and its sidecar. Starting over makes a new file, never truncates a link."""

    def __init__(self, path: Path, sync: int) -> None:
        self.path = path
        self.sidecar = path.with_name(path.name + ".json")
        self.sync_every = sync
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.bound = self._read_sidecar()

    def adopt(self, stop: Stop) -> None:
        """Take up what is safely there, hashing it on the way; else keep nothing."""
        bound = self.bound
        if bound is None or not bound.synced or not self.path.is_file():
            self.bound = None
            return
        with self.path.open("rb") as file:
            while self.size < bound.synced and (
                block := file.read(min(BLOCK, bound.synced - self.size))
            ):
                stop.check()
                self.sha256.update(block)
                self.size += len(block)
        if self.size != bound.synced or self.sha256.hexdigest() != bound.sha256:
            self.discard()
            return
        os.truncate(self.path, self.size)

    def begin(self, bound: Bound) -> None:
        """Start over as a prefix of other content."""
        self.discard()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(exist_ok=False)
        self.bound = bound
        self.save()

    def discard(self) -> None:
        """Forget the partial file."""
        self.sidecar.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.bound, self.size, self.sha256 = None, 0, hashlib.sha256()

    def append(self, blocks: Iterator[bytes], stop: Stop, progress: Progress) -> None:
        """Write blocks as they come; what was written is on disk however this ends."""
        assert self.bound is not None
        with self.path.open("ab") as file:
            unsynced = 0
            try:
                for block in blocks:
                    file.write(block)
                    self.sha256.update(block)
                    self.size += len(block)
                    progress(self.size, self.bound.size)
                    unsynced += len(block)
                    if unsynced >= self.sync_every:
                        self.save(file.fileno(), file.flush)
                        unsynced = 0
                    if stop.reason:
                        break
            finally:
                self.save(file.fileno(), file.flush)
        stop.check()

    def save(self, fileno: int | None = None, flush: Callable[[], None] | None = None) -> None:
        """Bring the data to disk, then the sidecar that vouches for it."""
        assert self.bound is not None
        if flush is not None and fileno is not None:
            flush()
            os.fsync(fileno)
        self.bound = replace(self.bound, synced=self.size, sha256=self.sha256.hexdigest())
        aside = self.sidecar.with_name(self.sidecar.name + ".new")
        aside.write_text(json.dumps(asdict(self.bound)), encoding="utf-8")
        os.replace(aside, self.sidecar)

    def _read_sidecar(self) -> Bound | None:
        try:
            return Bound(**json.loads(self.sidecar.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class _Again(Exception):
    """A passing fault; `after` is the wait in seconds that the server asked for."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after
