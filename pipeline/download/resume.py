"""A file that grows: what is safely there of it, and of which content it is a prefix.

Beside `<part>` lies `<part>.json`: URL, ETag or Last-Modified and size of the content, how many
bytes were brought to disk, and their sha256. On resume these bytes are read once more, to carry the
hash on; whatever stands after them is dropped, so neither a kill nor a power cut leaves a hole. The
URL is there without its query: no signature is kept, and a renewed one goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from pipeline.core.disk import free_space, size
from pipeline.core.error_translation import AGAIN, no_room, shown
from pipeline.core.errors import UserError
from pipeline.core.redaction import redact
from pipeline.core.stop import Stop
from pipeline.sources.spans import Fingerprint

Progress = Callable[[int, int | None], None]
BLOCK = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Bound:
    """The content a partial file is a prefix of; `synced` bytes of it are on disk with `sha256`.

    `etag`, `modified`: as the server gave them. `size`: bytes of the whole, None if unknown.
    """

    url: str
    etag: str | None = None
    modified: str | None = None
    size: int | None = None
    synced: int = 0
    sha256: str = ""


class Part:
    """The partial file and its sidecar.

    Starting over makes a new file and never truncates the old one, which may be a hard link.

    Args:
        path: The partial file.
        sync: Bytes between two fsyncs: what a power cut or a SIGKILL costs at most.
    """

    def __init__(self, path: Path, sync: int = 32 << 20) -> None:
        self.path = path
        self.sidecar = path.with_name(path.name + ".json")
        self.sync = sync
        self.seen = Fingerprint()
        self.bound: Bound | None = read_json(self.sidecar, Bound)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.seen.size

    def have(self, url: str) -> int:
        """Bytes that are there of the content at this URL."""
        return self.size if self.bound is not None and self.bound.url == redact(url) else 0

    def adopt(self, stop: Stop) -> None:
        """Take up what is safely on disk, hashing it on the way, or else nothing."""
        bound = self.bound
        if bound is None or bound.synced <= 0 or not self.path.is_file():
            self.discard()
            return
        with self.path.open("rb") as file:
            while block := file.read(min(BLOCK, bound.synced - self.size)):
                stop.check()
                self.seen.update(block)
        if (self.size, self.seen.hexdigest()) == (bound.synced, bound.sha256):
            os.truncate(self.path, self.size)
        else:
            self.discard()

    def begin(self, bound: Bound) -> None:
        """Start over as a prefix of this content."""
        self.discard()
        self.path.touch(exist_ok=False)
        self.bound = replace(bound, url=redact(bound.url))

    def finish(self) -> None:
        """Note that the content ends here, for servers that do not tell its size."""
        if self.bound is not None:  # a hard link has none
            self.bound = replace(self.bound, size=self.size)
            write_json(self.sidecar, self.bound)

    def discard(self) -> None:
        """Forget the partial file."""
        self.sidecar.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.bound, self.seen = None, Fingerprint()

    def append(self, blocks: Iterable[bytes], stop: Stop, progress: Progress) -> None:
        """Write blocks as they come; however this ends, what was written is safe.

        Raises:
            Interrupted: A stop was asked for.
            UserError: The disk or the quota is full.
        """
        assert self.bound is not None
        with room_is_needed(self.path), self.path.open("ab") as file:
            try:
                for block in blocks:
                    file.write(block)
                    self.seen.update(block)
                    progress(self.size, self.bound.size)
                    if self.size - self.bound.synced >= self.sync:
                        self._save(file)
                    stop.check()
            finally:
                self._save(file)

    def link(self, source: Path, stop: Stop, progress: Progress) -> None:
        """Be a hard link of a file and hash it; no sidecar, for it is not ours to truncate.

        Raises:
            OSError: The file system does not do that.
        """
        self.discard()
        total = source.stat().st_size
        os.link(source, self.path)
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                stop.check()
                self.seen.update(block)
                progress(self.size, total)

    def _save(self, file: IO[bytes]) -> None:
        """Bring the data to disk, then the sidecar that vouches for it."""
        assert self.bound is not None
        file.flush()
        os.fsync(file.fileno())
        self.bound = replace(self.bound, synced=self.size, sha256=self.seen.hexdigest())
        write_json(self.sidecar, self.bound)


def write_json(path: Path, value: Any) -> None:
    """Replace a small JSON file in one step, so that it is the old one or the new one."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_json(path: Path, kind: type[T]) -> T | None:
    """The content of a small JSON file as a dataclass; None where it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def require_free_space(folder: Path, needed: int | None) -> None:
    """Refuse to start what cannot end.

    Args:
        folder: Where it will be written.
        needed: Bytes still to come, None if unknown.

    Raises:
        UserError: Less than that is free.
    """
    free = free_space(folder).bytes
    if needed is not None and free is not None and needed > free:
        raise UserError(
            f"{shown(folder)} has {size(free)} free, {size(needed)} are needed",
            f"Make room, or choose another place with RUNS=…, {AGAIN}",
        )


@contextmanager
def room_is_needed(path: Path) -> Iterator[None]:
    """Tell a full disk or quota as what it is.

    Raises:
        UserError: In place of that OSError.
    """
    try:
        yield
    except OSError as error:
        if full := no_room(error, path.parent):
            raise full from error
        raise
