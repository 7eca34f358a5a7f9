"""Partial files: the bytes that are safely on disk, and which remote file they belong to.

Beside `<part>` is `<part>.json` with the identity of that file, the number of bytes synced to disk
and their sha256. Resuming reads these bytes once to continue the hash and cuts off what follows
them, so neither a kill nor a power cut leaves a gap. URLs are stored without their query:
signatures are not kept, and a refreshed URL resumes the download.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from pipeline.core.atomic_io import write_text
from pipeline.core.disk import free_space, size
from pipeline.core.error_translation import RESUME_HINT, disk_full_error, shown
from pipeline.core.errors import UserError
from pipeline.core.redaction import redact
from pipeline.core.stop import Stop
from pipeline.sources.spans import Fingerprint

ProgressCallback = Callable[[int, int | None], None]  # bytes so far, bytes of the whole or None
COPY_BYTES = 1 << 20
SYNC_BYTES = 32 << 20


@dataclass(frozen=True)
class RemoteContent:
    """The remote file that a partial file belongs to, and how much of it is on disk.

    `etag`, `modified`: as the server sent them. `size`: bytes of the whole; None if unknown.
    `synced`: bytes on disk; `sha256`: their hash. `state`: where to continue a file that is
    generated.
    """

    url: str
    etag: str | None = None
    modified: str | None = None
    size: int | None = None
    synced: int = 0
    sha256: str = ""
    state: dict[str, Any] = field(default_factory=dict)


class PartFile:
    """A partial file and its sidecar.

    Starting over creates a new file. The old one is never truncated: it may be a hard link.

    Args:
        path: The partial file.
        sync_bytes: Bytes between two syncs to disk: the most that a power cut or SIGKILL costs.

    Attributes:
        identity: The remote file; None if there is no partial file.
        fingerprint: Hash and spans of the bytes so far.
    """

    def __init__(self, path: Path, sync_bytes: int = SYNC_BYTES) -> None:
        self.path = path
        self.sidecar = path.with_name(path.name + ".json")
        self.sync_bytes = sync_bytes
        self.fingerprint = Fingerprint()
        self.identity = _read_identity(self.sidecar)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.fingerprint.size

    @property
    def complete(self) -> bool:
        """Whether all bytes of the content are there, as far as its size is known."""
        return self.identity is not None and self.identity.size == self.size

    def size_of(self, url: str) -> int:
        """Bytes so far of the content at this URL."""
        return self.size if self.identity and self.identity.url == redact(url) else 0

    def resume(self, stop: Stop) -> None:
        """Hash what is safely on disk and continue after it; start over if it is damaged."""
        identity = self.identity
        if identity is None or identity.synced <= 0 or not self.path.is_file():
            self.discard()
            return
        with self.path.open("rb") as file:
            while block := file.read(min(COPY_BYTES, identity.synced - self.size)):
                stop.check()
                self.fingerprint.update(block)
        if (self.size, self.fingerprint.hexdigest()) == (identity.synced, identity.sha256):
            os.truncate(self.path, self.size)
        else:
            self.discard()

    def start(self, identity: RemoteContent) -> None:
        """Start over with this content."""
        self.discard()
        self.path.touch(exist_ok=False)
        self.identity = replace(identity, url=redact(identity.url))

    def finish(self) -> None:
        """Record that the content ends here, for servers that do not send its size."""
        if self.identity is not None:  # a hard link has none
            self.identity = replace(self.identity, size=self.size)
            self._write_sidecar()

    def discard(self) -> None:
        """Remove the partial file and its sidecar."""
        self.sidecar.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.identity, self.fingerprint = None, Fingerprint()

    def append(
        self,
        blocks: Iterable[bytes],
        stop: Stop,
        progress: ProgressCallback,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Write blocks as they arrive; they are synced to disk however this ends.

        Args:
            blocks: The next bytes of the content.
            stop: Checked after each block.
            progress: Called with the bytes so far and the size of the content.
            state: Called after each block: where to continue after it.

        Raises:
            Interrupted: A stop was requested.
            UserError: The disk or the quota is full.
        """
        assert self.identity is not None
        with translate_disk_full(self.path), self.path.open("ab") as file:
            try:
                for block in blocks:
                    file.write(block)
                    self.fingerprint.update(block)
                    self.identity = replace(self.identity, state=state())
                    progress(self.size, self.identity.size)
                    if self.size - self.identity.synced >= self.sync_bytes:
                        self._sync(file)
                    stop.check()
            finally:
                self._sync(file)

    def link(self, source: Path, stop: Stop, progress: ProgressCallback) -> None:
        """Replace the partial file by a hard link to `source`, without a sidecar, and hash it.

        Raises:
            OSError: The file system does not support it.
        """
        self.discard()
        total = source.stat().st_size
        os.link(source, self.path)
        with self.path.open("rb") as file:
            while block := file.read(COPY_BYTES):
                stop.check()
                self.fingerprint.update(block)
                progress(self.size, total)

    def _sync(self, file: IO[bytes]) -> None:
        """Sync the data to disk, then write the sidecar that describes it."""
        assert self.identity is not None
        file.flush()
        os.fsync(file.fileno())
        sha256 = self.fingerprint.hexdigest()
        self.identity = replace(self.identity, synced=self.size, sha256=sha256)
        self._write_sidecar()

    def _write_sidecar(self) -> None:
        write_text(self.sidecar, msgspec.json.encode(self.identity).decode())


def _read_identity(sidecar: Path) -> RemoteContent | None:
    """The content of a sidecar; None if it is missing or damaged."""
    try:
        return msgspec.json.decode(sidecar.read_bytes(), type=RemoteContent)
    except (OSError, msgspec.DecodeError):
        return None


def require_free_space(folder: Path, needed: int | None) -> None:
    """Fail before anything is written if it does not fit.

    Args:
        folder: Where it will be written.
        needed: Bytes to write; None if unknown.

    Raises:
        UserError: Less than that is free.
    """
    free = free_space(folder).bytes
    if needed is not None and free is not None and needed > free:
        raise UserError(
            f"{shown(folder)} has {size(free)} free, {size(needed)} are needed",
            f"Make room, or choose another folder with RUNS=…, {RESUME_HINT}",
        )


@contextmanager
def translate_disk_full(path: Path) -> Iterator[None]:
    """Turn the error of a full disk or quota into a `UserError`."""
    try:
        yield
    except OSError as error:
        if full := disk_full_error(error, path.parent):
            raise full from error
        raise
