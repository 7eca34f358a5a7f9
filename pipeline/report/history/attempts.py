"""The attempts at the tasks of a run, read from its folder `logs/`.

`pipeline.core.task_log` defines the files.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.task_log import (
    PLANS_FILE,
    PlanStart,
    is_attempt,
    is_number,
    read_rows,
    task_files,
)

REPORT_STEP = "evaluate.report"
"""The step that writes the report; it is still running then, so the report leaves it out."""


@dataclass(frozen=True)
class Attempt:
    """One start of a task, element `element` of `of`. Times are seconds since the epoch.

    `end`: when it last wrote its status. `since`: when it began its last item. `state`: as in
    `task_log`. `over`: whether a later attempt has replaced it; if it still says "running", it was
    killed. `plan`: the plan that started it, "" if none did. `job`: the SLURM job, the same for
    attempts between which SLURM restarted it; None outside SLURM. `cpus`, `gpus`: granted to all
    its ranks together; None if unknown.
    """

    started: float
    end: float
    since: float
    state: str
    element: int
    of: int
    plan: str = ""
    job: str | None = None
    over: bool = False
    cpus: int | None = None
    gpus: int | None = None


def read_attempts(logs: Path) -> dict[str, list[Attempt]]:
    """The attempts at the tasks of each step, in order of their start."""
    rows_by_step: dict[str, dict[tuple[int, float], dict[str, Any]]] = defaultdict(dict)
    for step, path in task_files(logs):
        for row in filter(is_attempt, read_rows(path)):
            # An attempt is in both files if its successor was killed early; the history rounds.
            rows_by_step[step][row["element"], round(row["started"], 2)] = row
    return {step: _in_order(list(rows.values())) for step, rows in rows_by_step.items() if rows}


def read_plans(logs: Path) -> list[PlanStart]:
    """The starts of plans, in order."""
    found = (PlanStart.from_json(row) for row in read_rows(logs / PLANS_FILE))
    return sorted((plan for plan in found if plan), key=lambda plan: plan.time)


def _in_order(rows: list[dict[str, Any]]) -> list[Attempt]:
    rows.sort(key=lambda row: (row["started"], row["element"]))
    latest = {row["element"]: row["started"] for row in rows}
    tasks = rows[-1]["of"]  # attempts in an array of another size will not be continued
    return [
        Attempt(
            started=row["started"],
            end=max(row["started"], row["time"]),
            since=row["since"] if is_number(row.get("since")) else row["started"],
            state=str(row["state"]),
            element=row["element"],
            of=row["of"],
            plan=str(row.get("plan") or ""),
            job=row.get("job"),
            over=row["of"] != tasks or row["started"] < latest[row["element"]],
            cpus=row["cpus"] if is_number(row.get("cpus")) else None,
            gpus=row["gpus"] if is_number(row.get("gpus")) else None,
        )
        for row in rows
    ]
