"""The log of training: `metrics.jsonl` for programs, and `samples.txt` for people.

`metrics.jsonl` has one JSON object per line; `samples.txt` has the text that the model generates at
each validation.
"""

from __future__ import annotations

import json
import os
import socket
import textwrap
import time
from pathlib import Path
from typing import Any

from pipeline.train.checkpoint import TrainState
from pipeline.train.tensorboard import TensorBoardWriter

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.txt"
SAMPLE_LINE_CHARACTERS = 96


class MetricsLog:
    """Appends to both files; every row contains the number of the attempt.

    Args:
        folder: Folder of the files.
        state: State in which this attempt starts.
        tensorboard: Whether to write events for TensorBoard, too.

    Raises:
        UserError: TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path, state: TrainState, tensorboard: bool = False) -> None:
        self._folder, self._attempt = folder, state.attempts
        self._tensorboard = TensorBoardWriter(folder) if tensorboard else None
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = folder / name
            if path.exists() and _ends_within_line(path):
                # a kill truncated the last line; the next one must not be appended to it
                with path.open("a") as file:
                    file.write("\n")
        start = {"kind": "start", "step": state.step, "total": state.total, "time": time.time()}
        self.add(start | {"host": socket.gethostname()})

    def add(self, row: dict[str, Any]) -> None:
        """Append a step, a validation, a start, a rollback or a lack of memory."""
        row = {**row, "attempt": self._attempt}
        self._append(METRICS_FILE, json.dumps(row, ensure_ascii=False) + "\n")
        if self._tensorboard:
            self._tensorboard.add(row)

    def add_sample(self, step: int, loss: float, prompt: str, text: str) -> None:
        """Append a prompt and its continuation; `loss` is the validation loss, nats per token."""
        title = f"=== step {step}, validation loss {loss:.4f}"
        self._append(SAMPLES_FILE, f"{title}\n{_wrap(prompt)}\n  ▶\n{_wrap(text)}\n\n")

    def _append(self, name: str, text: str) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(text)


def _ends_within_line(path: Path) -> bool:
    """Whether the last line of a file is incomplete; reads one byte, since the file may be long."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _wrap(text: str) -> str:
    """Wrap and indent a text; control characters are replaced."""
    visible = "".join(c if c == "\n" or c.isprintable() else "·" for c in text)
    lines = visible.strip().split("\n")
    wrapped = [
        part for line in lines for part in textwrap.wrap(line, SAMPLE_LINE_CHARACTERS) or [""]
    ]
    return textwrap.indent("\n".join(wrapped), "    ")
