"""Keep each attempt at a task and the start of each plan, for reports about time.

The format is in `pipeline.core.task_log`. Failed writes are ignored: no work depends on them.
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


def keep_attempt(path: Path, status: Mapping[str, Any]) -> None:
    """Append an attempt that has ended to the history of its task.

    An attempt that only found another process at work (`busy`) is left out.

    Args:
        path: The status file of the task; ranks other than 0 have no history.
        status: Its last content.
    """
    history = history_file(path)
    if history and status.get("started") and not status.get("busy"):
        append_row(history, history_row(status))


def record_plan(plan: Plan, folder: Path) -> None:
    """Record in a run's log folder that a plan starts now, and which steps each step needs."""
    needs = {step.name: list(step.needs) for step in STEPS}
    steps = {array.step: needs.get(array.step, []) for array in plan.arrays}
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    append_row(folder / PLANS_FILE, PlanStart(time.time(), plan.id, steps).to_json())
