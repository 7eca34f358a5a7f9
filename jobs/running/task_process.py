"""A task of a plan as a child process of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from jobs.core.environment import TASK_ENVIRONMENT, THREAD_VARIABLES
from jobs.monitoring import history, progress_file
from jobs.monitoring.logs import tail
from jobs.planning import snapshot
from jobs.planning.plan import Plan
from pipeline.core.errors import Failure, InputError, UserError
from pipeline.core.task_log import FAILED, read_status, status_file

ERROR_PREFIX = "error: "
LOG_TAIL_LINES = 50


class TaskFailed(Failure):
    """A task failed; the error carries the task's own exit code."""

    def __init__(self, what: str, hint: str, exit_code: int) -> None:
        super().__init__(what, hint)
        self.exit_code = exit_code


class TaskProcess:
    """A child process that runs one element of a step.

    Args:
        plan: The plan, with the folder of the code to run.
        path: The plan's file.
        step: The step's name.
        element: Which element it runs.
        of: How many elements there are.
        cpus: Cores to use.
        gpus: GPUs to use.
        folder: The folder for its log and its progress file.
    """

    def __init__(
        self,
        plan: Plan,
        path: Path,
        step: str,
        element: int,
        of: int,
        cpus: int,
        gpus: int,
        folder: Path,
    ) -> None:
        self.step = step
        self.log = folder / f"{step}-{element}.log"
        self.stop_requested = False
        self._progress = status_file(folder, step, element)
        history.keep_attempt(self._progress, read_status(self._progress))
        progress_file.clear(self._progress)
        self._output: IO[bytes] = self.log.open("ab")
        words = ["run", step, f"--plan={path}", f"--element={element}/{of}", f"--cpus={cpus}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words, f"--gpus={gpus}"],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                **TASK_ENVIRONMENT,
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, str(cpus)),
                # without it the working folder would come before the snapshot of the code
                "PYTHONSAFEPATH": "1",
                "PYTHONPATH": snapshot.python_path(plan.code),
            },
        )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.returncode

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def request_stop(self) -> None:
        """Ask it once to save and stop."""
        if not self.stop_requested and self.running():
            self._process.send_signal(signal.SIGTERM)
            self.stop_requested = True

    def end(self) -> None:
        """Ask it to stop and wait until it has."""
        self.request_stop()
        self._process.wait()
        self._output.close()

    def state(self) -> dict[str, Any]:
        """The content of its progress file."""
        return read_status(self._progress)

    def failure(self) -> TaskFailed:
        """Why it failed, from its progress file, else from its log, else from its exit code."""
        state = self.state()
        if state.get("state") == FAILED and state.get("exit_code") != 1:
            return TaskFailed(state["message"], f"(log: {self.log})", state["exit_code"])
        if self.code == -signal.SIGKILL:
            what = f"{self.step} was killed; was there too little memory?"
            return TaskFailed(what, f"Run the same command to resume (log: {self.log})", 1)
        ended = f"{self.step} ended with code {self.code}"
        if self.code in (UserError.exit_code, InputError.exit_code):
            # its progress file could not be written
            return TaskFailed(self._last_error() or ended, f"(log: {self.log})", self.code)
        message = state.get("message") or ended
        return TaskFailed(message, f"This is a bug; its traceback is in {self.log}", 1)

    def _last_error(self) -> str:
        lines = tail(self.log, LOG_TAIL_LINES).splitlines()
        errors = [
            line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)
        ]
        return errors[-1] if errors else ""
