"""How far a run is that is not finished: what its page says in place of a verdict."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.report.history.training_curve import Curve
from pipeline.train.metrics_log import METRICS_FILE

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
    training = None
    if curve and underway.training and not trained:
        written = (underway.training / METRICS_FILE).stat().st_mtime
        training = _training(curve, written, underway.time)
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


def _training(curve: Curve, written: float, now: float) -> dict[str, Any]:
    """How far a training is; `seconds_left` is None where that cannot be told.

    Args:
        curve: Of what it has noted so far.
        written: When it noted that, in seconds since the epoch.
        now: The time, likewise.
    """
    tokens = curve.read[-1][1] if curve.read else 0
    first, began = curve.began
    gone, ahead = written - (written if began is None else began), curve.step - first
    left = None
    if curve.total and ahead > 0 and gone > 0:
        left = round(gone / ahead * (curve.total - curve.step))
    return {
        "step": curve.step,
        "of": curve.total,
        "tokens": tokens,
        "seconds": round(curve.seconds, 3),
        "tokens_per_second": round(tokens / curve.seconds, 1) if curve.seconds else None,
        "seconds_left": left,
        "silent": max(0, round(now - written)),
        "skipped": len(curve.skipped),
        "restarts": len(curve.restarts),
        "lost_seconds": round(curve.lost_seconds, 3),
        "validations": len(curve.validation),
        "best_step": curve.best[0] if curve.best else None,
        "best_loss": curve.best[1] if curve.best else None,
        "first_loss": curve.validation[0][1] if curve.validation else None,
    }
