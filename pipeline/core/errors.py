"""Errors that are shown to the user, each with its exit code.

A message says what happened, where, and what to type next. It is shown as one line, without a
traceback and without the secrets of a URL. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.redaction import redact


class Failure(Exception):
    """Base of the errors that are shown to the user in one line.

    Args:
        what: What happened and where.
        hint: The next command to type, or what to change.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = redact(what)
        self.hint = redact(hint)
        super().__init__(self.what)

    def __str__(self) -> str:
        end = "" if self.what.endswith("?") else "."
        return f"{self.what}{end} {self.hint}" if self.hint else self.what


class UserError(Failure):
    """The command or the configuration asks for something impossible."""

    exit_code = 2


class Busy(UserError):
    """Another live process holds the lease of the same work."""


class InputError(Failure):
    """An input is missing: a dead URL, a lost file, an upstream stage that is not finished."""

    exit_code = 3


class CorruptInput(InputError):
    """An input exists, but its content is wrong.

    Args:
        unit: The committed unit that the damaged file belongs to, if any. `run_item` sets it
            aside, so that the next run rebuilds it.
    """

    def __init__(self, what: str, hint: str = "", unit: Path | None = None) -> None:
        super().__init__(what, hint)
        self.unit = unit


class Interrupted(BaseException):
    """The work stopped with its progress saved; run it again.

    A `BaseException`, so that no `except Exception` mistakes it for a failure.
    """

    exit_code = 75
