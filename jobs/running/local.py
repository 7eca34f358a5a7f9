"""Run a plan here, in the foreground: the same arrays and tasks as on a cluster.

Each task is a process of its own, so its memory is freed when it ends and a crash says what
happened. A run can be stopped at any time and resumes from its last checkpoint.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.cluster.allocation import process_gone, process_label
from jobs.cluster.profile import Profile
from jobs.monitoring import history, progress_file
from jobs.monitoring.progress_file import FOREGROUND_FILE, ProgressFile
from jobs.planning import snapshot
from jobs.planning.plan import Array, Plan
from jobs.planning.planner import task_count
from jobs.running.task_process import TaskProcess
from pipeline.core.errors import Busy, Interrupted
from pipeline.core.stop import Stop
from pipeline.core.task_log import DONE, RUNNING, read_status
from pipeline.dag import find

POLL_SECONDS = 0.2
PROGRESS_LINE_SECONDS = 30.0  # between two lines about a step, where there is no progress bar
STOP_CODES = (-signal.SIGINT, -signal.SIGTERM)

ShowProgress = Callable[..., None]
"""Shows `completed`, a share of 1, and a `note`."""


def run_plan(plan: Plan, profile: Profile, console: Console) -> None:
    """Run the arrays one after another, from a snapshot of the code.

    Raises:
        TaskFailed: A task failed; the error carries its message and the path of its log.
        Interrupted: A signal asked for a stop and all tasks have saved.
        Busy: This run is running already.
    """
    run = Path(plan.root) / "runs" / plan.name
    _check_not_running(run / "logs")
    plan = replace(plan, code=str(snapshot.take(run)))
    path, stop = plan.write(), Stop()
    history.record_plan(plan, run / "logs")
    stop.on_signals(signal.SIGINT, signal.SIGTERM)
    bars = _progress_bars(console)
    console.print(f"{plan.name}  ·  {run}", markup=False)
    with _foreground_file(run / "logs" / FOREGROUND_FILE), bars:
        for array in plan.arrays:
            if stop.reason:
                raise Interrupted(stop.reason)
            bar = bars.add_task(array.step, total=1.0, note="")
            started = time.monotonic()
            show: ShowProgress = functools.partial(bars.update, bar)
            if not console.is_terminal:
                show = _line_printer(array.step, console)
            _run_array(plan, path, array, profile, stop, show)
            bars.update(bar, completed=1.0, note="")
            if not console.is_terminal:
                console.print(f"{array.step:<18} done in {time.monotonic() - started:.1f} s")


def _progress_bars(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _line_printer(step: str, console: Console) -> ShowProgress:
    """A function that prints a line about the progress of a step every half minute."""
    last = time.monotonic()

    def show(completed: float, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_LINE_SECONDS:
            last = time.monotonic()
            console.print(f"{step:<18} {completed:>4.0%}  {note}", markup=False)

    return show


@contextmanager
def _foreground_file(path: Path) -> Iterator[None]:
    """Record that this process runs the plan, so that `cancel` can stop it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ProgressFile(path).write(label=process_label(), state=RUNNING)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _check_not_running(folder: Path) -> None:
    """Raise `Busy` if another foreground process runs this run."""
    for path in folder.glob("*.json"):
        state = read_status(path)
        if state.get("state") == RUNNING and process_gone(state.get("label", "")) is False:
            raise Busy(f"this run is already running: {state['label']}", "make logs")


def _run_array(
    plan: Plan, path: Path, array: Array, profile: Profile, stop: Stop, show: ShowProgress
) -> None:
    """Run the tasks of an array at the same time; if one fails, stop the others."""
    root, config, step = Path(plan.root), plan.settings, array.step
    node = find(config, root, step)
    cpus = profile.granted_cpus()
    count = task_count(node.work.step, config, node, cpus)
    folder = progress_file.logs_folder(root, plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    cpus_per_task, gpus = max(1, cpus // count), profile.granted_gpus()
    tasks = [
        TaskProcess(plan, path, step, element, count, cpus_per_task, gpus, folder)
        for element in range(count)
    ]
    try:
        while any(task.running() for task in tasks):
            if stop.reason or any(task.code for task in tasks):
                for task in tasks:
                    task.request_stop()
            time.sleep(POLL_SECONDS)
            states = [task.state() for task in tasks]
            show(completed=sum(map(_completed, states)) / count, note=_note(states))
    finally:
        for task in tasks:
            task.end()
    for task in tasks:
        stopped = task.code in STOP_CODES and (task.stop_requested or stop.reason)
        if task.code not in (0, Interrupted.exit_code) and not stopped:
            raise task.failure()
    if any(task.code for task in tasks):
        raise Interrupted(stop.reason or "a task was asked to stop")


def _completed(state: dict[str, Any]) -> float:
    """The share of its items that a task has completed, from 0 to 1."""
    if state.get("state") == DONE:
        return 1.0
    share = min(1.0, state.get("done", 0) / state["total"]) if state.get("total") else 0.0
    return float((state.get("number", 0) + share) / max(1, state.get("items", 1)))


def _note(states: list[dict[str, Any]]) -> str:
    facts: dict[str, Any] = next((s["facts"] for s in states if s.get("facts")), {})
    return ", ".join(progress_file.describe_facts(facts))
