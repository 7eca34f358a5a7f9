"""Keep each attempt at a task and the start of each plan, so that reports can say where time went.

The format is in `pipeline.core.task_log`. A write that fails is ignored: no work depends on it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.task_log import PLANS_FILE, PlanStart, append_row, history_file, history_row
from pipeline.dag import STEPS

if TYPE_CHECKING:
    from jobs.planning.plan import Plan


def keep(path: Path, status: Mapping[str, Any]) -> None:
    """Add an attempt that is over to the history of its task.

    A task that another process kept from its work (`busy`) made no attempt.

    Args:
        path: The status file of the task; ranks other than 0 have no history.
        status: Its last content.
    """
    history = history_file(path)
    if history and status.get("started") and not status.get("busy"):
        append_row(history, history_row(status))


def note_plan(plan: Plan, folder: Path) -> None:
    """Note in the folder of a run's logs that a plan starts now, and what its steps need."""
    needs = {step.name: list(step.needs) for step in STEPS}
    steps = {array.step: needs.get(array.step, []) for array in plan.arrays}
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    append_row(folder / PLANS_FILE, PlanStart(time.time(), plan.id, steps).to_json())
