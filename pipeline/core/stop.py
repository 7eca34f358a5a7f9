"""A flag that asks work to stop at its next safe point.

A signal handler only sets the flag. It raises nothing, because an exception out of a handler could
interrupt a save.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from pipeline.core.errors import Interrupted


class Stop:
    """A request to stop, set once, with its reason.

    Args:
        deadline: Time on the monotonic clock, in seconds, from which on a stop is requested.

    Attributes:
        asked_by: The signal that asked first; None if there was none.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.asked_by: signal.Signals | None = None
        self._reason: str | None = None

    def set(self, reason: str, by: signal.Signals | None = None) -> None:
        """Ask for a stop. The first reason and its signal are kept."""
        if self._reason is None:
            self._reason, self.asked_by = reason, by

    @property
    def reason(self) -> str | None:
        """Why to stop; None: do not stop."""
        if self._reason is None and self.deadline is not None and time.monotonic() > self.deadline:
            self._reason = "time is up"
        return self._reason

    def check(self) -> None:
        """Raise `Interrupted` if a stop was requested. Call it where progress is saved."""
        if self.reason:
            raise Interrupted(self.reason)

    def on_signals(self, *signals: signal.Signals) -> None:
        """Set the flag when one of these signals arrives (main thread only)."""

        def handler(number: int, frame: FrameType | None) -> None:
            self.set(f"received {signal.Signals(number).name}", signal.Signals(number))

        for number in signals:
            signal.signal(number, handler)
