"""Detect training steps that go wrong, and skip them.

The trainers of the libraries log a non-finite loss as 0.0, take the step, and end with adapters
that are all NaN. Here such a step is skipped and counted, as is one whose loss or gradient norm is
an outlier. After too many skipped steps in a row, the trainer returns to an earlier checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from pipeline.core.errors import UserError

HISTORY_STEPS = 64
MIN_HISTORY_STEPS = 16


@dataclass
class StepHistory:
    """The steps that a guard compares with; part of a checkpoint, so a resumed run acts the same.

    `losses`, `norms`: of the newest steps taken. `in_a_row`: steps skipped in a row since then.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    in_a_row: int = 0


class SpikeGuard:
    """Decides whether a step is taken.

    Args:
        max_skipped_in_a_row: Steps that may be skipped in a row.
        spike_factor: How many times the running median a step's perplexity or gradient norm may be;
            None: no limit. The median is over the last 64 steps taken, and needs at least 16.
    """

    def __init__(self, max_skipped_in_a_row: int, spike_factor: float | None = None) -> None:
        self.max_skipped_in_a_row, self.spike_factor = max_skipped_in_a_row, spike_factor
        self.history = StepHistory()

    @property
    def exhausted(self) -> bool:
        """Whether more steps in a row were skipped than allowed."""
        return self.history.in_a_row > self.max_skipped_in_a_row

    def check(self, loss: float, norm: float, calibrating: bool = False) -> str:
        """Return why a step must be skipped, or an empty string, and update the history.

        Args:
            loss: Mean loss over the step's tokens, nats.
            norm: Gradient norm before clipping.
            calibrating: The loss scale of fp16 is not found yet; an infinite norm is expected.

        Raises:
            UserError: No trainable weight has a gradient. This was seen after a 4-bit evaluation on
                a CPU, and with gradient checkpointing that cuts the graph: the loss does not
                change, and nothing reports it.
        """
        if norm == 0 and math.isfinite(loss):
            raise UserError(
                "no trainable weight received a gradient, so nothing would be learned",
                "Try train.gradient_checkpointing=false or train.weights=int8",
            )
        if calibrating and math.isfinite(loss) and not math.isfinite(norm):
            return f"fp16 loss scale too large (gradient norm {norm}); it will be halved"
        problem = self._find_problem(loss, norm)
        if problem:
            self.history.in_a_row += 1
            return problem
        self.history.in_a_row = 0
        for values, value in ((self.history.losses, loss), (self.history.norms, norm)):
            values.append(value)
            del values[:-HISTORY_STEPS]
        return ""

    def _find_problem(self, loss: float, norm: float) -> str:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss is {loss}, gradient norm is {norm}"
        if self.spike_factor is None or len(self.history.losses) < MIN_HISTORY_STEPS:
            return ""
        # the loss is the logarithm of the perplexity
        if loss > (usual := median(self.history.losses)) + math.log(self.spike_factor):
            return f"loss is {loss:.4g}, the median is {usual:.4g}"
        if norm > (usual := median(self.history.norms)) * self.spike_factor:
            return f"gradient norm is {norm:.4g}, the median is {usual:.4g}"
        return ""
