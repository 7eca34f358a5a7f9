"""The format of the files in a run's folder `logs/` that say what its tasks did and when.

- `<step>-<element>.json`: the current attempt at a task, or how the last one ended (`TaskStatus`).
  Ranks other than 0 write `<step>-<element>.rank<rank>`, which has no history.
- `<step>-<element>.history.jsonl`: the earlier attempts, one a line (`HISTORY_FIELDS`).
- `plans.jsonl`: when each plan started and what its steps need (`PlanStart`), one a line.

Each file has one writer, so nothing is locked. A writer may be killed and a disk may be full, so a
reader skips what it cannot parse.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

RUNNING = "running"
DONE = "done"
INTERRUPTED = "interrupted"
FAILED = "failed"

PLANS_FILE = "plans.jsonl"
_TASK_FILE = re.compile(r"(?P<step>[a-z]+\.[a-z]+)-\d+(\.json|\.history\.jsonl)")
MAX_MESSAGE_CHARS = 200
"""Characters of a message that the history keeps."""


class TaskStatus(TypedDict, total=False):
    """What a task says about itself. Times are seconds since the epoch."""

    label: str
    """Host and process; see `jobs.cluster.allocation`."""
    plan: str
    """The plan that started it; "" where it was started by hand."""
    job: str | None
    """The SLURM job, the same after a requeue; None outside SLURM."""
    state: str
    """RUNNING, DONE, INTERRUPTED or FAILED. A killed task still says RUNNING."""
    started: float
    time: float
    """When this was written."""
    element: int
    of: int
    """The task is the `element`-th of `of` in its array."""
    cpus: int
    gpus: int
    """Granted to all ranks together."""
    host: str
    restarts: int
    """How often SLURM has restarted the job."""
    idle: int
    """How many restarts in a row committed nothing new."""
    mark: str | None
    """The progress that `idle` compares with."""
    message: str
    exit_code: int
    busy: bool
    """Another process held the lease, so this was no attempt."""
    item: str
    number: int
    items: int
    """The current item is the `number`-th of `items`."""
    since: float
    """When the current item began."""
    first: int
    done: int
    total: int | None
    unit: str
    """Of the current item: `done` of `total` units, `first` of them before this attempt."""
    facts: dict[str, Any]
    """What the step reports about the item, e.g. rows or loss."""
    adopted: int
    skipped: int
    """Items that were adopted and skipped, once the task is done."""


# About 200 bytes an attempt, so that a thousand restarts take a fifth of a megabyte.
HISTORY_FIELDS = (
    *("state", "started", "time", "since", "restarts", "plan", "job", "element", "of"),
    *("cpus", "gpus", "host", "exit_code", "message"),
)
_REQUIRED_NUMBERS = ("started", "time", "element", "of")


@dataclass(frozen=True)
class PlanStart:
    """The start of a plan: when, and for each of its steps the steps that it needs."""

    time: float
    plan: str
    steps: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        """The line that stands for it."""
        return asdict(self) | {"time": round(self.time, 2)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PlanStart | None:
        """Parse a line; None if it is not valid."""
        if not isinstance(row.get("steps"), dict) or not is_number(row.get("time")):
            return None
        return cls(row["time"], str(row.get("plan")), row["steps"])


def status_file(logs: Path, step: str, element: int, rank: int = 0) -> Path:
    """Where a task writes its status."""
    return logs / f"{step}-{element}.{f'rank{rank}' if rank else 'json'}"


def history_file(status: Path) -> Path | None:
    """Where the earlier attempts at a task are; None for ranks other than 0."""
    return status.with_suffix(".history.jsonl") if status.suffix == ".json" else None


def task_files(logs: Path) -> Iterator[tuple[str, Path]]:
    """The status and history files in a folder, each with the name of its step."""
    for path in sorted(logs.glob("*-*.json*")):
        if match := _TASK_FILE.fullmatch(path.name):
            yield match["step"], path


def read_status(path: Path) -> dict[str, Any]:
    """The status in a file; empty where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def is_attempt(row: Mapping[str, Any]) -> bool:
    """Whether a row has the fields of an attempt, and the task got to work."""
    complete = all(is_number(row.get(name)) for name in _REQUIRED_NUMBERS) and row.get("state")
    return bool(complete) and row["of"] > 0 and not row.get("busy")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def history_row(status: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a status that the history keeps, floats rounded to 0.01."""
    row = {name: status[name] for name in HISTORY_FIELDS if status.get(name) is not None}
    row = {name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()}
    if "message" in row:
        row["message"] = str(row["message"])[:MAX_MESSAGE_CHARS]
    return row


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in a file, one a line; lines that cannot be parsed are skipped."""
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


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, also after a torn one. An error of the file system is ignored."""
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with contextlib.suppress(OSError), path.open("ab+") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)
