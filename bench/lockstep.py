"""Train several systems in lockstep: each runs in its own process and takes a step when told.

All systems are loaded at the same time and take one optimizer step each in turn, so that other load
on the machine affects them alike and each is loaded only once. A waiting process uses no CPU time;
everything that it does from one step to the next is counted.
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
SAVE_TIMEOUT_SECONDS = 900.0
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONPATH": str(ROOT),
}


class SystemFailed(Exception):
    """A system failed; the message is the last line of its log."""


class Worker:
    """The measuring side of the protocol: a system in its own process.

    Args:
        command: Starts the system, which reads "step" or "end" from standard input and answers each
            "step" with a line of JSON.
        log: File for the standard error of the system.
        core: The core to which the process is bound.
    """

    def __init__(self, command: list[str], log: Path, core: int) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                bufsize=1,
            )
        os.sched_setaffinity(self._process.pid, {core})
        self._receive()

    def step(self) -> dict[str, Any]:
        """One optimizer step: CPU seconds, real tokens, positions, loss, peak bytes so far."""
        self._send("step")
        return self._receive()

    def end(self) -> None:
        """Let the system save its adapter, and wait for its end.

        Raises:
            SystemFailed: It ended with another exit code than 0.
        """
        self._send("end")
        self._process.communicate(timeout=SAVE_TIMEOUT_SECONDS)
        if self._process.returncode:
            raise SystemFailed(self._last_log_line())

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{message}\n")
            self._process.stdin.flush()
        except OSError:
            raise SystemFailed(self._last_log_line()) from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SystemFailed(self._last_log_line())
        message: dict[str, Any] = json.loads(line)
        return message

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return (lines or ["the log is empty"])[-1][:300]


class Lockstep:
    """The system's side of the protocol: `begin` before the first step, `step` after each."""

    def __init__(self) -> None:
        # Libraries print to standard output: send that to standard error, keep stdout for answers.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._step_started = 0.0

    def begin(self) -> None:
        """Report that everything is loaded, and wait for the first step."""
        self._exchange({})

    def step(self, tokens: int, slots: int, loss: float) -> bool:
        """Report a step and wait: True for another step, False to save and end."""
        return self.report(self.measure_step(tokens, slots, loss))

    def measure_step(self, tokens: int, slots: int, loss: float) -> dict[str, Any]:
        """The cost of the current step up to now.

        Args:
            tokens: Targets that contributed to the loss.
            slots: Positions that went through the model.
            loss: Mean over the tokens, nats.
        """
        cpu = time.process_time() - self._step_started
        return {"cpu": cpu, "tokens": tokens, "slots": slots, "loss": loss, "peak": peak_bytes()}

    def report(self, cost: dict[str, Any], **more: Any) -> bool:
        """Report the cost of a step and other values, and wait as `step` does."""
        return self._exchange({**cost, **more})

    def _exchange(self, answer: dict[str, Any]) -> bool:
        print(json.dumps(answer), file=self._answers, flush=True)
        go_on = sys.stdin.readline().strip() == "step"
        self._step_started = time.process_time()
        return go_on


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024
