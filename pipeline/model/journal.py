"""What a training writes down as it goes: `metrics.jsonl` and `samples.jsonl`, an object a line."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.model.board import Board

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Journal:
    """Appends to both files; every row carries the attempt it belongs to.

    Args:
        folder: Where they stand.
        step: The step this attempt starts from.
        attempt: Its number, from 1.
        board: Whether TensorBoard is to show it, too.

    Raises:
        UserError: It is, and is not installed.
    """

    def __init__(self, folder: Path, step: int, attempt: int, board: bool = False) -> None:
        self._folder, self._attempt = folder, attempt
        self._board = Board(folder) if board else None
        for name in (METRICS, SAMPLES):
            path = folder / name
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                # a kill tore the last line; what follows must not be glued to it
                with path.open("a") as file:
                    file.write("\n")
        self.add({"kind": "start", "step": step, "time": time.time(), "host": socket.gethostname()})

    def add(self, row: dict[str, Any]) -> None:
        """Note a step, a validation or a start."""
        self._append(METRICS, {**row, "attempt": self._attempt})
        if self._board:
            self._board.add(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Note what the model writes on after a prompt."""
        self._append(SAMPLES, {"step": step, "prompt": prompt, "text": text})

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
