"""The one flag that asks work to end at its next safe point.

A signal handler only sets it; a deadline and the work itself are looked at when it is asked. Why a
flag and not an exception out of the handler: saving inside a handler interrupts a save.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from pipeline.core.errors import Interrupted


class Stop:
    """A request to stop, set once, with its reason.

    Args:
        deadline: Seconds on the monotonic clock after which the request stands by itself.

    Attributes:
        asked_by: The signal that asked first, if one did.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.asked_by: signal.Signals | None = None
        self._reason: str | None = None

    def set(self, reason: str, by: signal.Signals | None = None) -> None:
        """Ask for a stop; the first reason, and the signal that was it, are kept."""
        if self._reason is None:
            self._reason, self.asked_by = reason, by

    @property
    def reason(self) -> str | None:
        """Why to stop, or None to go on."""
        if self._reason is None and self.deadline is not None and time.monotonic() > self.deadline:
            self._reason = "time is up"
        return self._reason

    def check(self) -> None:
        """Raise `Interrupted` if a stop was asked for. Call it where progress is safe."""
        if self.reason:
            raise Interrupted(self.reason)

    def on_signals(self, *signals: signal.Signals) -> None:
        """Let these signals set the flag (main thread only)."""

        def handler(number: int, frame: FrameType | None) -> None:
            self.set(f"received {signal.Signals(number).name}", signal.Signals(number))

        for number in signals:
            signal.signal(number, handler)
