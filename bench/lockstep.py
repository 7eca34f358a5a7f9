"""Training side by side: each system in a process of its own, which takes a step when told.

All systems stand loaded next to each other and one after the other takes one optimizer step, so
what else the machine does meets all of them alike, and nothing is loaded twice. CPU time stands
still while a process waits for its turn: what is counted is all that it does from step to step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READY = 900.0
LIBRARIES = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONPATH": str(ROOT),
}


class Failed(Exception):
    """A system that did not go on, with the end of what it said."""


class Worker:
    """The measuring side: a system in its process.

    Args:
        words: The command; it gets "go" or "end" a line, and answers each "go" with a line of JSON.
        log: Where what it says goes.
        core: The one core that it may use.
    """

    def __init__(self, words: list[str], log: Path, core: int) -> None:
        self._log = log
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                words,
                cwd=log.parent,
                env={**os.environ, **LIBRARIES},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                bufsize=1,
            )
        os.sched_setaffinity(self._process.pid, {core})
        self._hear()

    def turn(self) -> dict[str, Any]:
        """One optimizer step: seconds of CPU, real tokens, slots, loss, peak bytes so far."""
        self._say("go")
        return self._hear()

    def end(self) -> None:
        """Let it save what it has learned, and wait for it.

        Raises:
            Failed: It ended badly.
        """
        self._say("end")
        self._process.communicate(timeout=READY)
        if self._process.returncode:
            raise Failed(self._said())

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _say(self, word: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except OSError:
            raise Failed(self._said()) from None

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise Failed(self._said())
        found: dict[str, Any] = json.loads(line)
        return found

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return (lines or ["it said nothing"])[-1][:300]


class Turns:
    """The system's side. `begin` before the first step, `step` after each."""

    def __init__(self) -> None:
        # libraries print to standard output as they like: that goes where errors go
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._since = 0.0

    def begin(self) -> None:
        """Say that all is loaded, and wait for the first turn."""
        self._wait({})

    def step(self, tokens: int, slots: int, loss: float) -> bool:
        """Account for a step and wait for the next turn: whether to go on, or save and end."""
        return self.next(self.account(tokens, slots, loss))

    def account(self, tokens: int, slots: int, loss: float) -> dict[str, Any]:
        """What a step cost, up to now.

        Args:
            tokens: Targets that were learned from.
            slots: Positions that went through the model.
            loss: Mean over the tokens, nats.
        """
        used = time.process_time() - self._since
        return {"cpu": used, "tokens": tokens, "slots": slots, "loss": loss, "peak": peak()}

    def next(self, row: dict[str, Any], **more: Any) -> bool:
        """Say what a step cost, and what else is to be noted; wait for the next turn."""
        return self._wait({**row, **more})

    def _wait(self, row: dict[str, Any]) -> bool:
        print(json.dumps(row), file=self._answers, flush=True)
        go = sys.stdin.readline().strip() == "go"
        self._since = time.process_time()
        return go


def peak() -> int:
    """The most memory that this process ever had, bytes (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(found) * 1024
