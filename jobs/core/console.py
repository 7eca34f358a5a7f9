"""Printed lines that cannot end the work: a log on a full disk does not change an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print and flush a line; on a full disk it stays in the buffer and is written later."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stdout, flush=True)


def print_error(text: str) -> None:
    """Print a line to standard error."""
    print_line(text, sys.stderr)


def flush_streams() -> None:
    """Flush before the process ends; discard what cannot be written, so the exit code stays."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # a stream without a descriptor is not on disk
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
