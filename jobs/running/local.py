"""The plan, run here in the foreground: the same arrays and the same tasks as on a cluster.

Every task is a process of its own, so that a stage's memory ends with it and a crash of one says
what happened. Stop it at any time; what was running goes on from its last safe point.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.cluster.allocation import process_gone, process_label
from jobs.cluster.profile import Profile
from jobs.core.environment import TASK_ENVIRONMENT, THREAD_VARIABLES
from jobs.monitoring import history
from jobs.monitoring import progress_file as journal
from jobs.monitoring.logs import tail
from jobs.monitoring.progress_file import FOREGROUND
from jobs.planning import snapshot
from jobs.planning.plan import Array, Plan
from jobs.planning.planner import tasks_of
from pipeline.core.errors import Busy, Failure, InputError, Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.core.task_log import read_status
from pipeline.dag import find

POLL = 0.2
SPEAK = 30.0  # seconds between two lines of a step, where there is no terminal for a bar
TOLD = "error: "
STOPPED = (-signal.SIGINT, -signal.SIGTERM)

Show = Callable[..., None]
"""Shows `completed`, a share, and a `note`."""


class TaskFailed(Failure):
    """A task ended badly; it carries the task's own exit code."""

    def __init__(self, what: str, hint: str, exit_code: int) -> None:
        super().__init__(what, hint)
        self.exit_code = exit_code


def run_plan(plan: Plan, profile: Profile, console: Console) -> None:
    """Run the arrays one after another, with a copy of the code as it is now.

    Raises:
        TaskFailed: A task failed; its message and the place of its log are in it.
        Interrupted: A signal asked for a stop and all tasks have saved.
    """
    run = Path(plan.root) / "runs" / plan.name
    _check_alone(run / "logs")
    plan = replace(plan, code=str(snapshot.take(run)))
    path, stop = plan.write(), Stop()
    history.note_plan(plan, run / "logs")
    stop.on_signals(signal.SIGINT, signal.SIGTERM)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    console.print(f"{plan.name}  ·  {run}", markup=False)
    with _noted(run / "logs" / FOREGROUND), bars:
        for array in plan.arrays:
            if stop.reason:
                raise Interrupted(stop.reason)
            bar = bars.add_task(array.step, total=1.0, note="")
            started = time.monotonic()
            show: Show = functools.partial(bars.update, bar)
            if not console.is_terminal:
                show = _speaker(array.step, console)
            _run_array(plan, path, array, profile, stop, show)
            bars.update(bar, completed=1.0, note="")
            if not console.is_terminal:
                console.print(f"{array.step:<18} done in {time.monotonic() - started:.1f} s")


def _speaker(step: str, console: Console) -> Show:
    """What says in a line, now and then, how far a step is."""
    last = time.monotonic()

    def speak(completed: float, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > SPEAK:
            last = time.monotonic()
            console.print(f"{step:<18} {completed:>4.0%}  {note}", markup=False)

    return speak


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Write down that this process looks after the run, so that it can be asked to end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = journal.Journal(path)
    note.write(label=process_label(), state="running")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _check_alone(folder: Path) -> None:
    """Refuse to start beside another foreground run of the same plan."""
    for path in folder.glob("*.json"):
        state = read_status(path)
        if state.get("state") == "running" and process_gone(state.get("label", "")) is False:
            raise Busy(f"this run is going on already: {state['label']}", "make logs")


def _run_array(
    plan: Plan,
    path: Path,
    array: Array,
    profile: Profile,
    stop: Stop,
    show: Show,
) -> None:
    root, config, step = Path(plan.root), plan.settings, array.step
    node = find(config, root, step)
    cpus = profile.granted_cpus()
    width = tasks_of(node.work.step, config, node, cpus)
    folder = journal.logs_folder(root, plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, cpus // width)
    tasks = [
        _Task(plan, path, step, element, width, threads, profile.granted_gpus(), folder)
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
        self._state = folder / f"{step}-{element}.json"
        history.keep(self._state, read_status(self._state))
        self._state.unlink(missing_ok=True)
        self.asked = False
        self._file: IO[bytes] = self.log.open("ab")
        words = ["run", step, f"--plan={path}", f"--element={element}/{of}", f"--cpus={cpus}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words, f"--gpus={gpus}"],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                **TASK_ENVIRONMENT,
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, str(cpus)),
                # without it the working folder would come before the copy of the code
                "PYTHONSAFEPATH": "1",
                "PYTHONPATH": snapshot.python_path(plan.code),
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
        return read_status(self._state)

    def _last_words(self) -> str:
        lines = tail(self.log, 50).splitlines()
        told = [line.removeprefix(TOLD) for line in lines if line.startswith(TOLD)]
        return told[-1] if told else ""

    def failure(self) -> TaskFailed:
        state = self.state()
        if state.get("state") == "failed" and state.get("exit_code") != 1:
            return TaskFailed(state["message"], f"(log: {self.log})", state["exit_code"])
        if self.code == -signal.SIGKILL:
            what = f"{self.step} was killed; was there too little memory?"
            return TaskFailed(what, f"Run the same command to go on (log: {self.log})", 1)
        if self.code in (UserError.exit_code, InputError.exit_code):
            # its journal could not be written
            said = self._last_words() or f"{self.step} ended with code {self.code}"
            return TaskFailed(said, f"(log: {self.log})", self.code)
        message = state.get("message") or f"{self.step} ended with code {self.code}"
        return TaskFailed(message, f"This is a defect; its traceback is in {self.log}", 1)


def _fraction(state: dict[str, Any]) -> float:
    """How much of its items a task has behind it, 0 to 1."""
    if state.get("state") == "done":
        return 1.0
    share = min(1.0, state.get("done", 0) / state["total"]) if state.get("total") else 0.0
    return float((state.get("number", 0) + share) / max(1, state.get("items", 1)))


def _note(states: list[dict[str, Any]]) -> str:
    facts: dict[str, Any] = next((s["facts"] for s in states if s.get("facts")), {})
    return ", ".join(journal.tell_facts(facts))
