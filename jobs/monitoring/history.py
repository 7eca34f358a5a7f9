"""What has been: each attempt at a task, and when plans began, for whoever asks where time went.

Beside the small file of a task, `logs/<step>-<element>.json`, which says how the attempt at hand is
doing, `logs/<step>-<element>.history.jsonl` keeps those before it, a line each; `logs/plans.jsonl`
says when which steps were asked for. One process writes a file, so nothing is locked. It is only
news: no work ends for want of it, and a line that a kill or a full disk tore is passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dag import STEPS
from pipeline.report.history.attempts import PLANS

if TYPE_CHECKING:
    from jobs.planning.plan import Plan

# What is kept of an attempt: some 200 bytes, so that a thousand restarts are a fifth of a megabyte.
KEPT = (
    *("state", "started", "time", "since", "restarts", "plan", "job", "element", "of"),
    *("cpus", "gpus", "host", "exit_code", "message"),
)
LONGEST = 200  # characters of a message


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Add an attempt that is over to the history of its task.

    One that another process kept from its work (`busy`) was none.

    Args:
        path: The task's own file; those of other ranks than 0 have no history.
        content: What it said last.
    """
    if path.suffix != ".json" or not content.get("started") or content.get("busy"):
        return
    kept = {name: content[name] for name in KEPT if content.get(name) is not None}
    for name, value in kept.items():
        if isinstance(value, float):
            kept[name] = round(value, 2)
    if "message" in kept:
        kept["message"] = str(kept["message"])[:LONGEST]
    add(path.with_suffix(".history.jsonl"), kept)


def note_plan(plan: Plan, folder: Path) -> None:
    """Note in the folder of a run's logs that a plan begins now, and what its steps wait for."""
    needs = {step.name: list(step.needs) for step in STEPS}
    steps = {array.step: needs.get(array.step, []) for array in plan.arrays}
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    add(folder / PLANS, {"time": round(time.time(), 2), "plan": plan.id, "steps": steps})


def add(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, whatever state the one before was left in."""
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with contextlib.suppress(OSError), path.open("ab+") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)
