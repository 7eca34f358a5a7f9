"""The status files of tasks while they run: `logs/<step>-<element>.json`.

Receipts decide what is done; these files are only for display, with one exception: they count how
often in a row SLURM has restarted a task that made no progress, so that this ends at some point.
Their format is in `pipeline.core.task_log`; earlier attempts go to `jobs.monitoring.history`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from jobs.cluster.allocation import Allocation, host, process_label
from jobs.monitoring import history
from pipeline.core.atomic_io import write_text
from pipeline.core.disk import size
from pipeline.core.errors import UserError
from pipeline.core.task_log import RUNNING, TaskStatus, read_status

FOREGROUND_FILE = "foreground.json"
WRITE_SECONDS = 0.5
JOB_WRITE_SECONDS = 5.0  # hundreds of jobs may write to one file system
# Seconds between lines in the log. A stall should be visible at once while an item is young; later
# a line every ten seconds keeps the log of twelve hours at 4,300 lines, 350 kB.
YOUNG_LOG_SECONDS = 5.0
LOG_SECONDS = 10.0
YOUNG_ITEM_SECONDS = 600.0
ROW_FACTS = ("documents", "lines", "rows")
MAX_IDLE_RESTARTS = 5
SHORT_ATTEMPT_SECONDS = 60.0


def logs_folder(root: Path, name: str) -> Path:
    """The folder of a run's logs."""
    return root / "runs" / name / "logs"


@dataclass
class ProgressFile:
    """The file of one running task.

    Attributes:
        path: The file.
        log: Receives a line about the progress every few seconds.
        content: What the file says.
        write_seconds: How often progress is written.
    """

    path: Path
    log: Callable[[str], None] = lambda text: None
    content: dict[str, Any] = field(default_factory=dict)
    write_seconds: float = WRITE_SECONDS
    _written: float = 0.0
    _logged: float = 0.0
    _was_short: bool = False

    def start(self, allocation: Allocation, element: int, of: int, plan: str = "") -> None:
        """Record that the task starts; the attempt before it moves to the history.

        Args:
            allocation: Its resources.
            element: Which element of its array it is.
            of: How many elements the array has.
            plan: The id of its plan; empty for a task that was started by hand.
        """
        before = read_status(self.path)
        history.keep_attempt(self.path, before)
        restarted = allocation.attempt and before.get("job") == allocation.job
        self.write_seconds = JOB_WRITE_SECONDS if allocation.job else WRITE_SECONDS
        self.content["restarts"] = before.get("restarts", 0) + 1 if restarted else 0
        self.content["idle"] = before.get("idle", 0) if restarted else 0
        self.content["mark"] = before.get("mark") if restarted else None
        seconds = before.get("time", 0) - before.get("started", 0)
        self._was_short = seconds < SHORT_ATTEMPT_SECONDS
        self.write(
            label=process_label(),
            plan=plan,
            job=allocation.job,
            started=time.time(),
            element=element,
            of=of,
            cpus=allocation.cpus * allocation.world,
            gpus=allocation.gpus * allocation.nodes,
            host=host(),
            state=RUNNING,
        )

    def count_idle(self, mark: str) -> None:
        """Count restarts in a row without progress, and give up after too many.

        An attempt of less than a minute does not count: it had no time to make progress.

        Args:
            mark: Identifies all committed and partial work; see `progress_mark`.

        Raises:
            UserError: There were too many.
        """
        same = self.content["mark"] == mark
        idle = self.content["idle"] + (not self._was_short) if same else 0
        self.write(idle=idle, mark=mark)
        if idle > MAX_IDLE_RESTARTS:
            raise UserError(
                f"restarted {idle} times without progress",
                "Give it more time, save more often, or look into its log; then run make pipeline",
            )

    def progress(self, done: int, total: int | None, unit: str = "bytes", **facts: Any) -> None:
        """Record the progress of the current item; writes and logs only every few seconds."""
        self.content.setdefault("first", done)
        self.content |= {"done": done, "total": total, "unit": unit, "facts": facts}
        now = time.monotonic()
        if now - self._written > self.write_seconds:
            self.write()
        young = time.time() - self.content.get("since", 0.0) < YOUNG_ITEM_SECONDS
        if now - self._logged > (YOUNG_LOG_SECONDS if young else LOG_SECONDS):
            self._logged = now
            self.log(describe(self.content | speed(self.content | {"time": time.time()})))

    def begin(self, item: str, number: int, items: int) -> None:
        """Record that an item begins, the `number`-th of `items`."""
        for name in ("first", "facts", "unit"):
            self.content.pop(name, None)
        self._logged = time.monotonic()
        self.write(item=item, number=number, items=items, since=time.time(), done=0, total=None)

    def write(self, **changes: Unpack[TaskStatus]) -> None:
        """Write the file now. Errors are ignored: no work fails because of it."""
        self.content |= {**changes, "time": time.time()}
        with contextlib.suppress(OSError):
            _replace(self.path, json.dumps(self.content))
        self._written = time.monotonic()


def clear(path: Path) -> None:
    """Empty a progress file. It keeps its space, so that a task can write to it on a full disk."""
    try:
        _replace(path, "{}")
    except OSError:
        path.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    """Replace the file; on a full disk overwrite it in place, in the space it already has."""
    try:
        write_text(path, text, durable=False)
    except OSError:
        with path.open("r+b") as file:
            file.write(text.encode())
            file.truncate()


def speed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The speed of the current item since this attempt resumed it, and the time left.

    Returns:
        `rate`: units a second. The others are None if unknown: `eta`: seconds left. `rows`:
        documents or lines so far. `bytes`: bytes so far. `mb_per_second`: in 10⁶ bytes.
    """
    done, total = content.get("done", 0), content.get("total")
    seconds = content.get("time", 0.0) - content.get("since", 0.0)
    rate = max(0, done - content.get("first", 0)) / seconds if seconds > 0 else 0.0
    facts, in_bytes = content.get("facts", {}), content.get("unit") == "bytes"
    return {
        "rate": round(rate, 1),
        "eta": round(max(0, total - done) / rate) if total and rate else None,
        "rows": next((facts[name] for name in ROW_FACTS if name in facts), None),
        "bytes": done if in_bytes else None,
        "mb_per_second": round(rate / 1e6, 3) if in_bytes else None,
    }


def describe(task: Mapping[str, Any]) -> str:
    """The progress of an item as text: share, facts, amount, rate, time left.

    Args:
        task: The content of a progress file with the values of `speed`.
    """
    done, total, unit = task["done"], task["total"], task["unit"]
    parts = [f"{100 * done / total:.0f} %"] if total else []
    parts += describe_facts(task["facts"])
    if done and unit == "bytes":
        parts.append(f"{size(done)} of {size(total)}" if total else size(done))
    elif done:
        parts.append(f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}")
    if rate := task["rate"]:
        parts.append(f"{size(rate)}/s" if unit == "bytes" else f"{rate:,.3g} {unit}/s")
    parts += [f"{_duration(task['eta'])} left"] if task["eta"] is not None else []
    return f"{task['item']}: {', '.join(parts)}" if parts else str(task["item"] or "")


def describe_facts(facts: Mapping[str, Any]) -> list[str]:
    """The facts a stage reports: counts as "1,234,567 documents", others as "loss 2.71"."""
    return [f"{v:,} {k}" if isinstance(v, int) else f"{k} {v}" for k, v in facts.items()]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def progress_mark(folder: Path) -> str:
    """A string that changes with each commit and each byte of progress in a step's folder."""
    units = sorted(path.parent.name for path in folder.glob("*/receipt.json"))
    partial = []
    for path in sorted(folder.glob(".partial-*/**/*")):
        with contextlib.suppress(OSError):
            partial.append(f"{path.name}:{os.stat(path).st_size}")
    return " ".join([*units[-3:], str(len(units)), *partial[-20:]])
