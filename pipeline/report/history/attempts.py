"""The attempts at a run's tasks, as the small files tell that tasks leave in the folder `logs/`.

`<step>-<element>.json` says how the newest attempt is doing, or how it ended, and
`<step>-<element>.history.jsonl` the same of those before it; `plans.jsonl` says when which steps
were asked for. Whoever writes them may be killed, and a disk may be full: what cannot be read is
passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLANS = "plans.jsonl"
OWN = "evaluate.report"
"""The step that writes what is told of the others, so that it is not over meanwhile."""
FILE = re.compile(r"(?P<step>[a-z]+\.[a-z]+)-\d+(\.json|\.history\.jsonl)")
NUMBERS = ("started", "time", "element", "of")


@dataclass(frozen=True)
class Attempt:
    """One start of a task, `element` of `of`, as it was last heard of; times are of the epoch.

    `since`: when it took up its last item. `state`: running, done, interrupted or failed; `over`:
    whether another came in its place, so that one that says it is running was killed. `plan`: by
    which it was asked for, "" by none. `job`: equal in attempts of which the later goes on for the
    earlier, and was asked for no more than once; None where there is no queue. `cpus`, `gpus`:
    granted to it, all ranks together; None if that is not known.
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


@dataclass(frozen=True)
class Asked:
    """That a plan began: when, and by step that it holds, which ones that step waits for."""

    plan: str
    time: float
    steps: dict[str, list[str]]


def read_attempts(logs: Path) -> dict[str, list[Attempt]]:
    """The attempts at the tasks of each step, in the order in which they began."""
    found: dict[str, dict[tuple[int, float], dict[str, Any]]] = defaultdict(dict)
    for path in sorted(logs.glob("*-*.json*")):
        if named := FILE.fullmatch(path.name):
            for row in filter(_tells, _rows(path)):
                # one may stand in both files, if its successor was killed as it began; they round
                found[named["step"]][row["element"], round(row["started"], 2)] = row
    return {step: _in_order(list(rows.values())) for step, rows in found.items() if rows}


def read_plans(logs: Path) -> list[Asked]:
    """When plans began, in order."""
    rows = [row for row in _rows(logs / PLANS) if isinstance(row.get("steps"), dict)]
    found = [
        Asked(str(row.get("plan")), row["time"], row["steps"])
        for row in rows
        if _is_number(row.get("time"))
    ]
    return sorted(found, key=lambda asked: asked.time)


def _in_order(rows: list[dict[str, Any]]) -> list[Attempt]:
    rows.sort(key=lambda row: (row["started"], row["element"]))
    latest = {row["element"]: row["started"] for row in rows}
    shared = rows[-1]["of"]  # among so many now; tasks of an earlier sharing do not come again
    return [
        Attempt(
            started=row["started"],
            end=max(row["started"], row["time"]),
            since=row["since"] if _is_number(row.get("since")) else row["started"],
            state=str(row["state"]),
            element=row["element"],
            of=row["of"],
            plan=str(row.get("plan") or ""),
            job=row.get("job"),
            over=row["of"] != shared or row["started"] < latest[row["element"]],
            cpus=row["cpus"] if _is_number(row.get("cpus")) else None,
            gpus=row["gpus"] if _is_number(row.get("gpus")) else None,
        )
        for row in rows
    ]


def _tells(row: dict[str, Any]) -> bool:
    """Whether it says enough; one that another process kept from its work was no attempt."""
    known = all(_is_number(row.get(name)) for name in NUMBERS) and bool(row.get("state"))
    return known and row["of"] > 0 and not row.get("busy")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file, one a line, that can be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
