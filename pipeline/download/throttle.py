"""No faster than asked for: lines and file systems that are shared with others."""

from __future__ import annotations

import time

from pipeline.core.stop import Stop
from pipeline.download.resume import Progress

NAP = 0.2


class Pace:
    """A progress callback that holds up whoever reports to it, and so the sender.

    Args:
        progress: The callback that is passed on to.
        bandwidth: Bytes a second.
        stop: Looked at while it waits.
    """

    def __init__(self, progress: Progress, bandwidth: float, stop: Stop) -> None:
        self._progress = progress
        self._bandwidth = bandwidth
        self._stop = stop
        self._begun: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        """Note that `done` bytes are there, and wait until that many may be."""
        self._progress(done, total)
        now = time.monotonic()
        since, first = self._begun or (now, done)
        due = since + (done - first) / self._bandwidth
        # what was not used while nothing came is not made up for later
        self._begun = (since, first) if due > now - 1.0 and done >= first else (now, done)
        while (left := due - time.monotonic()) > 0:
            self._stop.check()
            time.sleep(min(left, NAP))
