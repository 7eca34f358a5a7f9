"""What a training writes down as it goes: `metrics.jsonl`, an object a line, and `samples.txt`.

The one is for programs; the other, what the model wrote at each validation, for people.
"""

from __future__ import annotations

import json
import os
import socket
import textwrap
import time
from pathlib import Path
from typing import Any

from pipeline.train.checkpoint import State
from pipeline.train.tensorboard import Board

METRICS, SAMPLES = "metrics.jsonl", "samples.txt"
WIDTH = 96


class Journal:
    """Appends to both files; every row carries the attempt it belongs to.

    Args:
        folder: Where they stand.
        state: From which this attempt starts.
        board: Whether TensorBoard is to show it, too.

    Raises:
        UserError: It is, and is not installed.
    """

    def __init__(self, folder: Path, state: State, board: bool = False) -> None:
        self._folder, self._attempt = folder, state.attempts
        self._board = Board(folder) if board else None
        for name in (METRICS, SAMPLES):
            path = folder / name
            if path.exists() and _torn(path):
                # a kill tore the last line; what follows must not be glued to it
                with path.open("a") as file:
                    file.write("\n")
        start = {"kind": "start", "step": state.step, "total": state.total, "time": time.time()}
        self.add(start | {"host": socket.gethostname()})

    def add(self, row: dict[str, Any]) -> None:
        """Note a step, a validation, a start, or what a guard did."""
        row = {**row, "attempt": self._attempt}
        self._append(METRICS, json.dumps(row, ensure_ascii=False) + "\n")
        if self._board:
            self._board.add(row)

    def sample(self, step: int, loss: float, prompt: str, text: str) -> None:
        """Note what the model writes on after a prompt, and its validation loss, nats a token."""
        told = f"=== step {step}, validation loss {loss:.4f}"
        self._append(SAMPLES, f"{told}\n{_folded(prompt)}\n  ▶\n{_folded(text)}\n\n")

    def _append(self, name: str, text: str) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(text)


def _torn(path: Path) -> bool:
    """Whether a file ends within a line; only its last byte is read, for it may be long."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _folded(text: str) -> str:
    """Text as a page shows it: lines of 96 characters at most, without what moves a cursor."""
    visible = "".join(c if c == "\n" or c.isprintable() else "·" for c in text)
    lines = (textwrap.wrap(line, WIDTH) or [""] for line in visible.strip().split("\n"))
    return textwrap.indent("\n".join(part for line in lines for part in line), "    ")
