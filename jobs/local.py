"""The plan, run here in the foreground: the same arrays and the same tasks as on a cluster.

Every task is a process of its own, so that a stage's memory ends with it and a crash of one says
what happened. Stop it at any time; what was running goes on from its last safe point.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.plan import Plan, tasks_of
from jobs.profile import Profile
from jobs.task import logs_folder, process_gone
from pipeline.config import Config
from pipeline.dag import find
from pipeline.errors import Busy, Failure, Interrupted
from pipeline.stop import Stop

POLL = 0.2
STOPPED = (-signal.SIGINT, -signal.SIGTERM)


class TaskFailed(Failure):
    """A task ended badly; it carries the task's own exit code."""

    def __init__(self, what: str, hint: str, exit_code: int) -> None:
        super().__init__(what, hint)
        self.exit_code = exit_code


def run_plan(config: Config, plan: Plan, path: Path, profile: Profile, console: Console) -> None:
    """Run the arrays one after another.

    Raises:
        TaskFailed: A task failed; its message and the place of its log are in it.
        Interrupted: A signal asked for a stop and all tasks have saved.
    """
    _alone(logs_folder(Path(plan.root), plan.name))
    stop = Stop()
    stop.on_signals(signal.SIGINT, signal.SIGTERM)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for array in plan.arrays:
            if stop.reason:
                raise Interrupted(stop.reason)
            bar = bars.add_task(array.step, total=1.0, note="")
            started = time.monotonic()
            show = functools.partial(bars.update, bar)
            _run_array(config, plan, path, array.step, profile, stop, show)
            bars.update(bar, completed=1.0, note="")
            if not console.is_terminal:
                console.print(f"{array.step:<18} done in {time.monotonic() - started:.1f} s")


def _alone(folder: Path) -> None:
    """Refuse to start beside another foreground run of the same plan."""
    for path in folder.glob("*.json"):
        state = _read(path)
        if state.get("state") == "running" and process_gone(state.get("label", "")) is False:
            raise Busy(f"this run is going on already, in process {state['label']}", "make logs")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _run_array(
    config: Config,
    plan: Plan,
    path: Path,
    step: str,
    profile: Profile,
    stop: Stop,
    show: Callable[..., None],
) -> None:
    root = Path(plan.root)
    node = find(config, root, step)
    cpus = profile.granted_cpus()
    width = 1
    if node.work.step.many:
        width = min(cpus, tasks_of(node.work.step, config, len(node.items or []) or None))
    folder = logs_folder(root, plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, cpus // width)
    tasks = [
        _Task(path, step, element, width, threads, profile.granted_gpus(), folder)
        for element in range(width)
    ]
    try:
        while any(task.running() for task in tasks):
            if stop.reason or any(task.code for task in tasks):
                for task in tasks:
                    task.ask_to_stop()
            time.sleep(POLL)
            states = [task.state() for task in tasks]
            done = sum(_fraction(state) for state in states) / width
            show(completed=done, note=_note(states))
    finally:
        for task in tasks:
            task.end()
    for task in tasks:
        if task.code not in (0, 75) and not (task.code in STOPPED and (task.asked or stop.reason)):
            raise task.failure()
    if any(task.code for task in tasks):
        raise Interrupted(stop.reason or "a task was asked to stop")


class _Task:
    """A child process that runs one element."""

    def __init__(
        self, plan: Path, step: str, element: int, of: int, cpus: int, gpus: int, folder: Path
    ) -> None:
        self.step = step
        self.log = folder / f"{step}-{element}.log"
        self._state = folder / f"{step}-{element}.json"
        self._state.unlink(missing_ok=True)
        self.asked = False
        self._file: IO[bytes] = self.log.open("ab")
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        words = ["run", step, f"--plan={plan}", f"--element={element}/{of}", f"--cpus={cpus}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words, f"--gpus={gpus}"],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                **dict.fromkeys(threads, str(cpus)),
                # threads that spin while they wait make a shared machine many times slower
                "OMP_WAIT_POLICY": "PASSIVE",
                "PYTHONPATH": _code(),
            },
        )

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def running(self) -> bool:
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        if not self.asked and self.running():
            self._process.send_signal(signal.SIGTERM)
            self.asked = True

    def end(self) -> None:
        """Wait for the process; leave none behind."""
        self.ask_to_stop()
        self._process.wait()
        self._file.close()

    def state(self) -> dict[str, Any]:
        return _read(self._state)

    def failure(self) -> TaskFailed:
        state = self.state()
        if state.get("state") == "failed" and state.get("exit_code") != 1:
            return TaskFailed(state["message"], f"(log: {self.log})", state["exit_code"])
        if self.code == -signal.SIGKILL:
            what = f"{self.step} was killed; was there too little memory?"
            return TaskFailed(what, f"Run the same command to go on (log: {self.log})", 1)
        message = state.get("message") or f"{self.step} ended with code {self.code}"
        return TaskFailed(message, f"This is a defect; its traceback is in {self.log}", 1)


def _code() -> str:
    """PYTHONPATH with this code first, so that a task runs what planned it."""
    here = str(Path(__file__).parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def _fraction(state: dict[str, Any]) -> float:
    """How much of its items a task has behind it, 0 to 1."""
    if state.get("state") == "done":
        return 1.0
    share = min(1.0, state.get("done", 0) / state["total"]) if state.get("total") else 0.0
    return float((state.get("number", 0) + share) / max(1, state.get("items", 1)))


def _note(states: list[dict[str, Any]]) -> str:
    facts: dict[str, Any] = next((s["facts"] for s in states if s.get("facts")), {})
    return " ".join(f"{name} {value}" for name, value in facts.items())
