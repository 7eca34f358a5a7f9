"""Guards against training that goes wrong without a word.

The libraries' own trainer logs a non-finite loss as 0.0, takes the step, and ends with adapters
that are all NaN. Here such a step is skipped and counted, and so is one that leaps out of those
before it. The loop goes back to an earlier checkpoint when that happens too often in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from pipeline.core.errors import UserError

REMEMBERED = 64
ENOUGH = 16


@dataclass
class Memory:
    """What a guard goes by; part of a checkpoint, so that a resumed training is judged alike.

    `losses`, `norms`: of the newest steps taken. `in_a_row`: steps skipped since the last one.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    in_a_row: int = 0


class Guard:
    """Judges every step before it is taken.

    Args:
        patience: Steps that may be skipped in a row.
        spike: How many times its running median a step's perplexity or gradient norm may be; None:
            any. The median is over the last 64 steps taken, and there have to be 16.
    """

    def __init__(self, patience: int, spike: float | None = None) -> None:
        self.patience, self.spike = patience, spike
        self.memory = Memory()

    @property
    def exhausted(self) -> bool:
        """Whether more steps in a row were skipped than may be."""
        return self.memory.in_a_row > self.patience

    def judge(self, loss: float, norm: float, calibrating: bool = False) -> str:
        """Why not to take a step; empty if it is to be taken.

        Args:
            loss: Mean loss over the step's tokens, nats.
            norm: Gradient norm before clipping.
            calibrating: The loss scale is still being found: an infinite norm is no fault then.

        Raises:
            UserError: Not one weight that should learn has a gradient. Seen after a 4-bit
                evaluation on a CPU, and with gradient checkpointing that cuts the graph: the loss
                stands still and nothing complains.
        """
        if norm == 0 and math.isfinite(loss):
            raise UserError(
                "no trainable weight received a gradient, so nothing would be learned",
                "try train.gradient_checkpointing=false or train.weights=int8",
            )
        if calibrating and math.isfinite(loss) and not math.isfinite(norm):
            return f"the gradient norm is {norm}, under a loss scale that is still too large"
        why = self._fault(loss, norm)
        if why:
            self.memory.in_a_row += 1
            return why
        self.memory.in_a_row = 0
        for values, value in ((self.memory.losses, loss), (self.memory.norms, norm)):
            values.append(value)
            del values[:-REMEMBERED]
        return ""

    def _fault(self, loss: float, norm: float) -> str:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss is {loss} and the gradient norm {norm}"
        if self.spike is None or len(self.memory.losses) < ENOUGH:
            return ""
        # a loss is the logarithm of a perplexity
        if loss > (usual := median(self.memory.losses)) + math.log(self.spike):
            return f"loss is {loss:.4g}, and {usual:.4g} was usual"
        if norm > (usual := median(self.memory.norms)) * self.spike:
            return f"the gradient norm is {norm:.4g}, and {usual:.4g} was usual"
        return ""
