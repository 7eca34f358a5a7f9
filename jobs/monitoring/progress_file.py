"""How far tasks are, in small files that others read: `logs/<step>-<element>.json`.

What is done is in the receipts; nothing is decided by these, but one thing: they count how often in
a row SLURM has started a task again that brought nothing new, so that it does not do so for ever.
What they said of the attempts before goes to `jobs.monitoring.history`.
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

FOREGROUND = "foreground.json"
EVERY = 0.5
# Seconds from line to line in the log: a stall is to be seen at once where an item is young, and at
# ten seconds the log of twelve hours is of 4,300 lines, 350 kB, which a pager still takes well.
TOLD_EVERY = 5.0
TOLD_LATER = 10.0
YOUNG = 600.0
ROWS = ("documents", "lines", "rows")
EVERY_IN_JOBS = 5.0  # hundreds of them may write to one file system
IDLE_RESTARTS = 5
SHORT = 60.0


def logs_folder(root: Path, name: str) -> Path:
    """Where the logs of a run are."""
    return root / "runs" / name / "logs"


@dataclass
class Journal:
    """The file of one task, while it runs; `tell` says now and then how far it is."""

    path: Path
    tell: Callable[[str], None] = lambda text: None
    content: dict[str, Any] = field(default_factory=dict)
    every: float = EVERY
    _written: float = 0.0
    _told: float = 0.0
    _was_short: bool = False

    def start(self, allocation: Allocation, element: int, of: int, plan: str = "") -> None:
        """Note that the task starts; what its file said of the attempt before becomes history.

        Args:
            allocation: What it was given.
            element: Which element of its array it is.
            of: Of how many.
            plan: The plan that it belongs to; empty where it was started by hand.
        """
        before = read_status(self.path)
        history.keep(self.path, before)
        again = allocation.attempt and before.get("job") == allocation.job
        self.every = EVERY_IN_JOBS if allocation.job else EVERY
        self.content["restarts"] = before.get("restarts", 0) + 1 if again else 0
        self.content["idle"] = before.get("idle", 0) if again else 0
        self.content["mark"] = before.get("mark") if again else None
        self._was_short = before.get("time", 0) - before.get("started", 0) < SHORT
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
        """Note what is there now, and give up if so many starts in a row have added nothing.

        One that was over within a minute counts neither way: it was not given the time.

        Args:
            mark: Stands for all that is committed and half done; see `progress_mark`.

        Raises:
            UserError: This start is one too many.
        """
        same = self.content["mark"] == mark
        idle = self.content["idle"] + (not self._was_short) if same else 0
        self.write(idle=idle, mark=mark)
        if idle > IDLE_RESTARTS:
            raise UserError(
                f"started again {idle} times without getting any further",
                "give it more time, save more often, or see why in its log; then run make pipeline",
            )

    def progress(self, done: int, total: int | None, unit: str = "bytes", **facts: Any) -> None:
        """Note the progress of the item at hand; written every now and then."""
        self.content.setdefault("first", done)
        self.content |= {"done": done, "total": total, "unit": unit, "facts": facts}
        now = time.monotonic()
        if now - self._written > self.every:
            self.write()
        young = time.time() - self.content.get("since", 0.0) < YOUNG
        if now - self._told > (TOLD_EVERY if young else TOLD_LATER):
            self._told = now
            self.tell(told(self.content | speed(self.content | {"time": time.time()})))

    def begin(self, item: str, number: int, items: int) -> None:
        """Note that an item begins, the `number`-th of `items`."""
        for name in ("first", "facts", "unit"):
            self.content.pop(name, None)
        self._told = time.monotonic()
        self.write(item=item, number=number, items=items, since=time.time(), done=0, total=None)

    def write(self, **more: Unpack[TaskStatus]) -> None:
        """Write the file now."""
        self.content |= {**more, "time": time.time()}
        with contextlib.suppress(OSError):  # it is only news: no work ends for want of it
            _put(self.path, json.dumps(self.content))
        self._written = time.monotonic()


def _put(path: Path, text: str) -> None:
    """Replace the file; on a full disk write over it, into the room that it has already."""
    try:
        write_text(path, text, durable=False)
    except OSError:
        with path.open("r+b") as file:
            file.write(text.encode())
            file.truncate()


def speed(content: Mapping[str, Any]) -> dict[str, Any]:
    """How far the item at hand is and how fast, from where this start took it up.

    Returns:
        `rate`: units a second. `eta`: seconds that are left. `rows`: documents or lines so far.
        `bytes`: so far. `mb_per_second`: 10⁶ bytes. None where it is not known, but for `rate`.
    """
    done, total = content.get("done", 0), content.get("total")
    spent = content.get("time", 0.0) - content.get("since", 0.0)
    rate = max(0, done - content.get("first", 0)) / spent if spent > 0 else 0.0
    facts, counted = content.get("facts", {}), content.get("unit") == "bytes"
    return {
        "rate": round(rate, 1),
        "eta": round(max(0, total - done) / rate) if total and rate else None,
        "rows": next((facts[name] for name in ROWS if name in facts), None),
        "bytes": done if counted else None,
        "mb_per_second": round(rate / 1e6, 3) if counted else None,
    }


def told(task: Mapping[str, Any]) -> str:
    """How far an item is, as people read it: share, rows and facts, amount, rate, time left."""
    done, total, unit = task["done"], task["total"], task["unit"]
    words = [f"{100 * done / total:.0f} %"] if total else []
    words += tell_facts(task["facts"])
    if done and unit == "bytes":
        words.append(f"{size(done)} of {size(total)}" if total else size(done))
    elif done:
        words.append(f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}")
    if rate := task["rate"]:
        words.append(f"{size(rate)}/s" if unit == "bytes" else f"{rate:,.3g} {unit}/s")
    words += [f"{_duration(task['eta'])} left"] if task["eta"] is not None else []
    return f"{task['item']}: {', '.join(words)}" if words else str(task["item"] or "")


def tell_facts(facts: Mapping[str, Any]) -> list[str]:
    """What a stage says besides: counts as "1,234,567 documents", others as "loss 2.71"."""
    return [f"{v:,} {k}" if isinstance(v, int) else f"{k} {v}" for k, v in facts.items()]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def progress_mark(folder: Path) -> str:
    """What stands for the progress in a step's folder: each commit and each byte changes it."""
    units = sorted(path.parent.name for path in folder.glob("*/receipt.json"))
    half_done = []
    for path in sorted(folder.glob(".partial-*/**/*")):
        with contextlib.suppress(OSError):
            half_done.append(f"{path.name}:{os.stat(path).st_size}")
    return " ".join([*units[-3:], str(len(units)), *half_done[-20:]])
