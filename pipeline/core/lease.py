"""A lease: at most one live writer for a long item, without file locks.

`flock` is unreliable on Lustre and GPFS. A lease is a hard link to a private file: `link()` has one
winner. The holder rewrites a counter in it. A lease is taken over, by renaming it away, when its
content has not changed for `patience` seconds on the observer's own clock, or when the process of
its label is known to have ended. The holder reads it again before every commit, so a holder that
was believed dead and wakes up commits nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import Busy

HasEnded = Callable[[str], bool | None]
"""Whether the process of a label has ended: True, False, or None if that is unknown."""


class Lease:
    """The right to work on one item. Use as a context manager.

    Args:
        path: The lease file; its folder must exist.
        label: Opaque name of the holder, shown to other processes and passed to their `has_ended`.
        has_ended: Whether the process behind a label has ended.
        patience: Seconds without a heartbeat after which a holder is considered dead.
        beat: Seconds between heartbeats.
        check: Called while waiting; may raise to give up.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        has_ended: HasEnded,
        patience: float = 300.0,
        beat: float = 20.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.label, self.has_ended, self.check = path, label, has_ended, check
        self.patience, self.beat = patience, beat
        self.owner = uuid.uuid4().hex
        self._private = self._private_of(self.owner)
        self._ended = threading.Event()
        self._beats = 0

    def __enter__(self) -> Lease:
        try:
            self._write(os.O_CREAT)
            while not self._link():
                self._wait_until_free(self._read())
        except BaseException:
            self._private.unlink(missing_ok=True)
            raise
        threading.Thread(target=self._heartbeat_loop, daemon=True, name="lease").start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if (self._read() or {}).get("owner") == self.owner:
            self.path.unlink(missing_ok=True)
        self._private.unlink(missing_ok=True)

    def confirm(self) -> None:
        """Raise `Busy` if the lease is no longer ours."""
        holder = self._read() or {}
        if holder.get("owner") != self.owner:
            raise Busy(f"{self.path.parent.name} was taken over by {holder.get('label', 'nobody')}")

    def _link(self) -> bool:
        try:
            os.link(self._private, self.path)
        except FileExistsError:
            return False
        except FileNotFoundError:  # removed by a host whose clock is wrong
            self._write(os.O_CREAT)
            return self._link()
        return True

    def _wait_until_free(self, holder: dict[str, str] | None) -> None:
        """Return when this holder has ended; raise `Busy` if it is alive."""
        if holder is None:
            return
        has_ended = self.has_ended(holder["label"])
        if has_ended is False:
            raise Busy(
                f"{self.path.parent.name} is being worked on by {holder['label']}",
                "Follow it with: make logs",
            )
        since = time.monotonic()
        while not has_ended and time.monotonic() - since < self.patience:
            self.check()
            time.sleep(min(1.0, self.beat / 4, self.patience / 4))
            if (now := self._read()) != holder:
                if now is None or now["owner"] != holder["owner"]:
                    return
                raise Busy(f"{self.path.parent.name} is being worked on by {holder['label']}")
        self._take_over(holder)

    def _take_over(self, holder: dict[str, str]) -> None:
        stale = self.path.with_name(f"{self.path.name}.stale-{self.owner}")
        try:
            self.path.rename(stale)
        except FileNotFoundError:
            return
        taken = _parse(stale)
        if taken and taken["owner"] != holder["owner"]:
            # another process was faster, and this is the lease of the new holder: give it back
            with contextlib.suppress(FileExistsError):
                os.link(stale, self.path)
        else:
            self._private_of(holder["owner"]).unlink(missing_ok=True)
        stale.unlink(missing_ok=True)

    def _heartbeat_loop(self) -> None:
        while not self._ended.wait(self.beat):
            with contextlib.suppress(OSError, Busy):
                self._beat()

    def _beat(self) -> None:
        try:
            self._write()
        except FileNotFoundError:  # our private file was removed: the lease is another link to it
            self.confirm()
            os.link(self.path, self._private)
            self._write()

    def _write(self, flags: int = 0) -> None:
        """Rewrite the private file in place: the lease is another name of the same inode."""
        self._beats += 1
        text = json.dumps(
            {"owner": self.owner, "label": self.label, "beats": f"{self._beats:012d}"}
        )
        descriptor = os.open(self._private, os.O_WRONLY | flags, 0o666)
        try:
            os.pwrite(descriptor, text.encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, str] | None:
        return _parse(self.path)

    def _private_of(self, owner: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{owner}")


def holder(path: Path) -> str | None:
    """The label of the holder of the lease at that path; None if nobody holds it."""
    return (_parse(path) or {}).get("label")


def _parse(path: Path) -> dict[str, str] | None:
    """The content of a lease file; None if there is none. The holder of a torn file is unknown."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        content = json.loads(text)
        return {"owner": content["owner"], "label": content["label"], "beats": content["beats"]}
    except (ValueError, KeyError, TypeError):
        return {"owner": "", "label": "an unknown process", "beats": text}
