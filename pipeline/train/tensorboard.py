"""Optional: write the learning curves of `metrics.jsonl` for TensorBoard as well.

TensorBoard is an optional package, imported when a writer is created. It does not need TensorFlow.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

EVENTS_FOLDER = "tensorboard"
CURVES = {"step": "train", "validation": "validation"}  # kind of row → folder of the curve
SCALARS = ("loss", "grad_norm", "lr", "tokens_per_second")


def check_package() -> None:
    """Raise `UserError` if TensorBoard is not installed; imports nothing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "train.tensorboard=true needs the Python package tensorboard, which is not installed",
            f"{sys.executable} -m pip install tensorboard",
        )


class TensorBoardWriter:
    """Writes events below `folder/tensorboard`: one curve for steps and one for validations.

    Steps that are repeated after a restart or a rollback appear once. The first row whose step is
    not new starts a new file that removes everything from that step on (`purge_step`). It acts on
    a folder, so each curve has its own. Every row is flushed, or a kill would leave a gap.

    Args:
        folder: Folder of the train step.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        check_package()
        self._folder = folder / EVENTS_FOLDER
        self._writers: dict[str, Any] = {}
        self._last_step: dict[str, int] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Write a row of the metrics; only steps and validations have a curve."""
        if (curve := CURVES.get(row["kind"])) is None:
            return
        step = row["step"]
        if curve not in self._writers or step <= self._last_step[curve]:
            self._start_file(curve, step)
        writer, self._last_step[curve] = self._writers[curve], step
        if row.get("seconds"):
            row = {**row, "tokens_per_second": row["tokens"] / row["seconds"]}
        for name in SCALARS:
            if name in row:
                writer.add_scalar(name, row[name], step)
        writer.flush()

    def _start_file(self, curve: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if curve in self._writers:
            self._writers[curve].close()
        self._writers[curve] = SummaryWriter(str(self._folder / curve), purge_step=step)
