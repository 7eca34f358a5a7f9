"""Learning rates as pure functions of the step, so a resumed run is on the same curve."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant", "cyclic"]


def learning_rate(
    step: int,
    total_steps: int,
    peak: float,
    min_ratio: float,
    warmup_steps: int,
    name: ScheduleName,
    cycles: int = 1,
) -> float:
    """The learning rate of an optimizer step.

    Args:
        step: Counted from 0; steps beyond the end have the rate of the end.
        total_steps: Length of the schedule.
        peak: Rate at the end of the warm-up.
        min_ratio: Rate at the end, as a ratio to the peak.
        warmup_steps: Steps of linear increase, from peak / warmup_steps.
        name: Shape of the decay. cosine: arXiv 1608.03983, without restarts. cyclic: the triangles
            of arXiv 1506.01186 (torch's CyclicLR). The warm-up is the first rise; then the rate
            falls to the minimum and rises to the peak in lines of equal length, and ends at the
            minimum.
        cycles: How often a cyclic rate falls; 1 is the same as linear.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    if name == "constant":
        return peak
    if name == "cosine":
        ratio = (1 + math.cos(math.pi * progress)) / 2
    elif name == "cyclic":
        ratio = abs(1 - progress * (2 * cycles - 1) % 2)
    else:
        ratio = 1 - progress
    return peak * (min_ratio + (1 - min_ratio) * ratio)
