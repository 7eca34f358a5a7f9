"""Learning rates as pure functions of the step: a resumed run cannot be on another curve."""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal["cosine", "linear", "constant", "cyclic"]


def rate(
    step: int, total: int, peak: float, floor: float, warmup: int, kind: Kind, cycles: int = 1
) -> float:
    """The learning rate of an optimizer step.

    Args:
        step: Counted from 0; clamped to the schedule's length.
        total: Steps of the schedule.
        peak: Rate at the end of the warm-up.
        floor: Rate at the end, as a share of the peak.
        warmup: Steps of linear rise from peak / warmup.
        kind: Shape of the decay. cosine: arXiv 1608.03983, without restarts. cyclic: the triangles
            of arXiv 1506.01186 (torch's CyclicLR), of which the warm-up is the first rise: then the
            rate falls to the floor and rises to the peak in lines of equal length, and ends low.
        cycles: How often a cyclic rate falls; once is linear.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    if kind == "constant":
        return peak
    if kind == "cosine":
        share = (1 + math.cos(math.pi * done)) / 2
    elif kind == "cyclic":
        share = abs(1 - done * (2 * cycles - 1) % 2)
    else:
        share = 1 - done
    return peak * (floor + (1 - floor) * share)
