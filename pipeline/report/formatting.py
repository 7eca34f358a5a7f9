"""Numbers, durations and lists of names as the pages show them."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits: 3.142, 31.42, 1,235; a dash if not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, digits - whole)}f}"


def count(value: float | None) -> str:
    """A whole number with thousands separators; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def signed(value: float) -> str:
    """A percentage with its sign: +1.2, −3.4."""
    return f"{value:+.1f}".replace("-", "−")


def signed_number(value: float) -> str:
    """A number with four significant digits and its sign."""
    return f"{'+' * (value > 0)}{number(value)}".replace("-", "−")


def nats(value: float) -> str:
    """A difference of losses with its sign: −0.213."""
    return f"{value:+.3f}".replace("-", "−")


def percent(share: float) -> str:
    """A share between 0 and 1 as a percentage."""
    digits = 1 if 0 < share < 0.1 else 0
    return f"{100 * share:.{digits}f}\u00a0%"


def duration(seconds: float | None) -> str:
    """A time in seconds, minutes or hours; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}\u00a0min"
    return f"{seconds / 3600:.1f}\u00a0h"


def join_names(names: list[str], limit: int = 20) -> str:
    """Names separated by commas; beyond `limit`, how many more there are."""
    listed = ", ".join(names[:limit])
    return f"{listed} and {len(names) - limit:,} more" if len(names) > limit else listed
