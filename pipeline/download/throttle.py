"""Limit the bandwidth of downloads, for networks and file systems that are shared."""

from __future__ import annotations

import time

from pipeline.core.stop import Stop
from pipeline.download.resume import ProgressCallback

POLL_SECONDS = 0.2


class Throttle:
    """A progress callback that blocks its caller, and so the sender, to keep to a bandwidth.

    Args:
        progress: The callback to forward to.
        bandwidth: Bytes per second.
        stop: Checked while it waits.
    """

    def __init__(self, progress: ProgressCallback, bandwidth: float, stop: Stop) -> None:
        self._progress = progress
        self._bandwidth = bandwidth
        self._stop = stop
        self._start: tuple[float, int] | None = None  # time and bytes

    def __call__(self, done: int, total: int | None) -> None:
        """Forward progress, then wait until `done` bytes are within the bandwidth."""
        self._progress(done, total)
        now = time.monotonic()
        since, first = self._start or (now, done)
        due = since + (done - first) / self._bandwidth
        # after a pause, the unused bandwidth is not made up for
        self._start = (since, first) if due > now - 1.0 and done >= first else (now, done)
        while (left := due - time.monotonic()) > 0:
            self._stop.check()
            time.sleep(min(left, POLL_SECONDS))
