"""The learning curves of a training for TensorBoard: a view of `metrics.jsonl`, where wanted.

TensorBoard is an optional package, imported when a board is made. It does not need TensorFlow.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

FOLDER = "tensorboard"
CURVES = {"step": "train", "validation": "validation"}  # kind of row → the curve's folder
SHOWN = ("loss", "grad_norm", "lr", "tokens_per_second")


def check_package() -> None:
    """Raise `UserError` if TensorBoard is not installed; imports nothing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "train.tensorboard=true needs the Python package tensorboard, which is not installed",
            f"{sys.executable} -m pip install tensorboard",
        )


class Board:
    """Writes events below `folder/tensorboard`, those of a step and of a validation apart.

    What is repeated after a restart, or after going back to a checkpoint, is shown once: the first
    row whose step has been there before begins a file that takes back all from that step on. So
    each kind has a folder of its own, which TensorBoard draws as a curve of its own. Every row is
    out before the next one is made, or a kill would leave a gap.

    Args:
        folder: Of the training.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        check_package()
        self._folder = folder / FOLDER
        self._writers: dict[str, Any] = {}
        self._last: dict[str, int] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Show a row of the metrics; those that are no step and no validation are passed over."""
        if (curve := CURVES.get(row["kind"])) is None:
            return
        step = row["step"]
        if curve not in self._writers or step <= self._last[curve]:
            self._begin(curve, step)
        writer, self._last[curve] = self._writers[curve], step
        if row.get("seconds"):
            row = {**row, "tokens_per_second": row["tokens"] / row["seconds"]}
        for name in SHOWN:
            if name in row:
                writer.add_scalar(name, row[name], step)
        writer.flush()

    def _begin(self, curve: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if curve in self._writers:
            self._writers[curve].close()
        self._writers[curve] = SummaryWriter(str(self._folder / curve), purge_step=step)
