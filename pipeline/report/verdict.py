"""The one sentence that a report is opened for. It says no more than its interval allows."""

from __future__ import annotations

import math
from typing import Any

FEW = 10
"""Documents below which a bootstrap says little, so no verdict is built on it."""


def verdict(found: dict[str, Any] | None) -> dict[str, str]:
    """What the scores of the test split say.

    Args:
        found: `evaluation.test` of a report.

    Returns:
        outcome: better, worse, undecided (the interval holds zero, or the documents are too few) or
        open (not evaluated yet); figures: perplexity before and after; words.
    """
    if not found or "paired" not in found:
        return {"outcome": "open", "figures": "", "words": "Not evaluated yet."}
    paired, count = found["paired"], found["documents"]
    percent = paired["perplexity_change_percent"]
    low, high = paired["ci95_percent"]
    documents = f"{count:,} test document{'' if count == 1 else 's'}"
    if count < FEW:
        outcome = "undecided"
        words = (
            f"no verdict: the perplexity of {documents} changed by {signed(percent)} %, but fewer "
            f"than {FEW} documents say nothing about others."
        )
    elif low <= 0 <= high:
        outcome = "undecided"
        words = (
            f"no difference was shown: the perplexity of {documents} changed by "
            f"{signed(percent)} %, and the 95 % interval, {signed(low)} to {signed(high)} %, "
            "includes zero."
        )
    elif high < 0:
        outcome = "better"
        words = (
            f"adaptation lowered the perplexity of {documents} by {-percent:.1f} % "
            f"(95 % interval {-high:.1f} to {-low:.1f} %)."
        )
    else:
        outcome = "worse"
        words = (
            f"the adapted model is worse: the perplexity of {documents} rose by {percent:.1f} % "
            f"(95 % interval {low:.1f} to {high:.1f} %)."
        )
    before, after = (number(found[who]["perplexity"]) for who in ("base", "tuned"))
    return {"outcome": outcome, "figures": f"{before} → {after}", "words": words}


def number(value: float | None, digits: int = 4) -> str:
    """A number in so many digits, a dash for none and for infinity: 3.142, 31.42, 1,234."""
    if value is None or not math.isfinite(value):
        return "–"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, digits - whole)}f}"


def signed(value: float) -> str:
    """A percentage with its sign: +1.2, −3.4."""
    return f"{value:+.1f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}\u00a0min"
    return f"{seconds / 3600:.1f}\u00a0h"


def signed_number(value: float) -> str:
    """A number in four digits with its sign."""
    return f"{'+' * (value > 0)}{number(value)}".replace("-", "−")
