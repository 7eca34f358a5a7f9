"""How far a run is that is not finished: what its page says in place of a verdict."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.model.journal import METRICS
from pipeline.report.curve import Curve, rows

_SAID = {
    "running": "is running",
    "queued": "is queued",
    "failed": "failed",
    "interrupted": "was interrupted",
    "to do": "is next",
}
"""States in which a step is what the run is at, the most telling first."""


@dataclass(frozen=True)
class Standing:
    """A step as it stands.

    `state`: done, one of those above, or waiting. `items` is None while they are not known. `now`:
    what is going on in it, in words.
    """

    step: str
    state: str
    done: int
    items: int | None
    now: str = ""


@dataclass(frozen=True)
class Underway:
    """What is known of a run besides what is finished of it.

    `steps`: all, in order. `training`: the folder of its training, if there is one. `time`: when
    that was looked at, seconds since the epoch.
    """

    steps: tuple[Standing, ...] = ()
    training: Path | None = None
    time: float = 0.0


def progress(underway: Underway, curve: Curve | None, trained: bool) -> dict[str, Any]:
    """How far the run is, as it stands in `report.json`.

    Args:
        underway: What is known of it.
        curve: Of its training, finished or not.
        trained: Whether that is finished.
    """
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(underway.time))
    journal = underway.training / METRICS if underway.training and not trained else None
    begun = journal is not None and journal.exists()
    training = _training(journal, curve, underway.time) if journal and begun else None
    steps = [asdict(step) for step in underway.steps]
    for step in steps:
        if training and step["step"].startswith("train.") and step["state"] == "running":
            step["now"] = ""  # it is said better below
    return {"at": at, "steps": steps, "training": training}


def headline(found: dict[str, Any]) -> dict[str, str]:
    """What stands in place of a verdict; `found` is what `progress` gave."""
    steps, training = found["steps"], found["training"]
    done = sum(step["state"] == "done" for step in steps)
    words = f"Not finished: {done} of {len(steps)} steps are done"
    at = next((s for state in _SAID for s in steps if s["state"] == state), None)
    if at:
        begun = training and at["step"].startswith("train.")
        said = "was begun" if begun and at["state"] == "to do" else _SAID[at["state"]]
        words += f", and {at['step']} {said}"
        if begun:
            of = f" of {training['of']:,}" if training["of"] else ""
            words += f", at step {training['step']:,}{of}"
    return {"outcome": "open", "figures": "", "words": words + "."}


def _training(journal: Path, curve: Curve | None, now: float) -> dict[str, Any]:
    """How far a training is, by its journal; `seconds_left` is None where that cannot be told."""
    curve = curve or Curve([], [], [], 0.0)
    start: dict[str, Any] = {}
    kept: dict[int, dict[str, Any]] = {}
    step = 0
    for row in rows(journal):
        if row["kind"] == "start":
            start, step = row, row["step"]
        elif row["kind"] == "step":
            kept[row["step"]] = row
            step = row["step"]
        elif row["kind"] == "rollback":
            step = row["step"]
    kept = {number: row for number, row in kept.items() if number <= step}
    seconds = sum(row.get("seconds", 0.0) for row in kept.values())
    tokens = sum(row.get("tokens", 0) for row in kept.values())
    of, written = start.get("total"), journal.stat().st_mtime
    gone = written - start.get("time", written)
    ahead = step - start.get("step", step)
    left = gone / ahead * (of - step) if of and ahead > 0 and gone > 0 else None
    return {
        "step": step,
        "of": of,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "seconds_left": round(left) if left is not None else None,
        "silent": max(0, round(now - written)),
        "skipped": sum(bool(row.get("skipped")) for row in kept.values()),
        "restarts": len(curve.restarts),
        "lost_seconds": round(curve.lost_seconds, 3),
        "validations": len(curve.validation),
        "best_step": curve.best[0] if curve.best else None,
        "best_loss": curve.best[1] if curve.best else None,
        "first_loss": curve.validation[0][1] if curve.validation else None,
    }
