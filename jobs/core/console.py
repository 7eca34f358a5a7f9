"""Saying something where the words may have no place to go: a log on a full disk.

What is said there is news. No work ends for want of it, and an exit code says the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line now, or else, should there be room, with the next one."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stdout, flush=True)


def complain(text: str) -> None:
    """Print a line to the standard error output."""
    say(text, sys.stderr)


def settle() -> None:
    """Before the process ends: what still could not be written must not change its exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # where it has no descriptor it has no disk
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
