"""Guards against training that goes wrong without a word.

The libraries' own trainer logs a non-finite loss as 0.0, takes the step, and ends with adapters
that are all NaN. Here such a step is skipped and counted, and too many in a row end the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pipeline.errors import UserError


class Guard:
    """Judges every step before it is taken.

    Args:
        patience: Steps that may be skipped in a row.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.in_a_row = 0

    def accepts(self, step: int, loss: float, norm: float, calibrating: bool = False) -> bool:
        """Whether to take the step.

        Args:
            step: Its number, for the message.
            loss: Mean loss over the step's tokens, nats.
            norm: Gradient norm before clipping.
            calibrating: The loss scale is still being found: an infinite norm is no fault then.

        Raises:
            UserError: More than `patience` steps in a row were not finite.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        if calibrating and math.isfinite(loss):
            return False
        self.in_a_row += 1
        if self.in_a_row > self.patience:
            raise UserError(
                f"training diverged: at step {step} loss is {loss} and the gradient norm {norm}, "
                f"the {self.in_a_row}th time in a row",
                "the last good checkpoint is kept; try a lower train.lr, or train.precision=bf16",
            )
        return False


def check_gradients(parameters: Iterable[tuple[str, Any]]) -> None:
    """Raise if not one weight that should learn has a gradient.

    Seen after a 4-bit evaluation on a CPU, and with gradient checkpointing that cuts the graph: the
    loss stands still and nothing complains.

    Raises:
        UserError: Every gradient is missing or zero.
    """
    if all(p.grad is None or not p.grad.any() for _, p in parameters):
        raise UserError(
            "no trainable weight received a gradient, so nothing would be learned",
            "try train.gradient_checkpointing=false or train.weights=int8",
        )
