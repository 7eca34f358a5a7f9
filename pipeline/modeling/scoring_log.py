"""A log of scored batches on disk, from which an interrupted scoring resumes."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.modeling.scoring import ScoredBatch

BATCHES_FILE = "batches.jsonl"


class ScoringLog:
    """Stores scored batches as numbered JSON lines. Use as a context manager.

    The first line says how the batches were scored. After entering, `batches` holds those of an
    interrupted attempt, if it scored in the same way, and `seconds` the time that it took for them.

    Args:
        folder: Where the file is.
        settings: What the scores depend on, besides what the folder stands for.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / BATCHES_FILE
        self._header = json.dumps(settings).encode() + b"\n"
        self.batches: list[ScoredBatch] = []
        self.seconds = 0.0

    def __enter__(self) -> ScoringLog:
        self._read()
        self._file = self._path.open("ab", buffering=0)
        self._number, self._started = len(self.batches), time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add(self, batch: ScoredBatch) -> None:
        """Append a batch.

        Raises:
            OSError: The disk is full; the error names the file.
        """
        row: dict[str, Any] = {name: array.tolist() for name, array in batch._asdict().items()}
        now = time.monotonic()
        row |= {"batch": self._number, "seconds": round(now - self._started, 3)}
        self._number, self._started = self._number + 1, now
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):  # an almost full disk takes part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _read(self) -> None:
        """Read the batches of an earlier attempt, or start a new file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if lines[:1] != [self._header]:
            self._path.write_bytes(self._header)
            return
        size = len(self._header)
        # a kill may have truncated a line; from there on everything is scored again
        for line in lines[1:]:
            if not self._read_line(line):
                break
            size += len(line)
        os.truncate(self._path, size)

    def _read_line(self, line: bytes) -> bool:
        """Read a batch, if it is complete and the next one."""
        try:
            row = json.loads(line) if line.endswith(b"\n") else {}
            if row["batch"] != len(self.batches):
                return False
            batch = ScoredBatch(*(np.array(row[name]) for name in ScoredBatch._fields))
            self.seconds += row["seconds"]
        except (ValueError, TypeError, KeyError):
            return False
        self.batches.append(batch)
        return True
