"""How far an unfinished run is: what its page shows instead of a verdict."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.report.history.training_curve import Curve
from pipeline.train.metrics_log import METRICS_FILE

_STATE_PHRASES = {
    "running": "is running",
    "queued": "is queued",
    "failed": "failed",
    "interrupted": "was interrupted",
    "to do": "is next",
}
"""What the headline says of the step that the run is at, by state, the most important first."""


@dataclass(frozen=True)
class StepProgress:
    """The state of a step.

    `state`: done, a key of `_STATE_PHRASES`, or waiting. `items` is None while they are not known.
    `now`: what the step is doing, in words.
    """

    step: str
    state: str
    done: int
    items: int | None
    now: str = ""


@dataclass(frozen=True)
class RunProgress:
    """The state of a run that receipts do not tell.

    `steps`: all, in order. `training`: the folder of its training, if there is one. `time`: when
    this was read, in seconds since the epoch.
    """

    steps: tuple[StepProgress, ...] = ()
    training: Path | None = None
    time: float = 0.0


def describe_progress(
    run_progress: RunProgress, curve: Curve | None, trained: bool
) -> dict[str, Any]:
    """How far the run is, for `report.json`.

    Args:
        run_progress: The state of the run.
        curve: Of its training, finished or not.
        trained: Whether the training is finished.
    """
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run_progress.time))
    training = None
    if curve and run_progress.training and not trained:
        written = (run_progress.training / METRICS_FILE).stat().st_mtime
        training = _training(curve, written, run_progress.time)
    steps = [asdict(step) for step in run_progress.steps]
    for step in steps:
        if training and step["step"].startswith("train.") and step["state"] == "running":
            step["now"] = ""  # `training` says it better
    return {"at": at, "steps": steps, "training": training}


def headline(progress: dict[str, Any]) -> dict[str, str]:
    """What the page shows instead of a verdict; `progress` is the result of `describe_progress`."""
    steps, training = progress["steps"], progress["training"]
    done = sum(step["state"] == "done" for step in steps)
    sentence = f"Not finished: {done} of {len(steps)} steps are done"
    current = next((s for state in _STATE_PHRASES for s in steps if s["state"] == state), None)
    if current:
        step, state = current["step"], current["state"]
        in_training = training and step.startswith("train.")
        phrase = "was started" if in_training and state == "to do" else _STATE_PHRASES[state]
        sentence += f", and {step} {phrase}"
        if in_training:
            of = f" of {training['of']:,}" if training["of"] else ""
            sentence += f", at step {training['step']:,}{of}"
    return {"outcome": "open", "figures": "", "words": sentence + "."}


def _training(curve: Curve, written: float, now: float) -> dict[str, Any]:
    """How far a training is; `seconds_left` is None if unknown.

    Args:
        curve: What its metrics say so far.
        written: When the metrics were last written, in seconds since the epoch.
        now: The current time, likewise.
    """
    tokens = curve.read[-1][1] if curve.read else 0
    first, began = curve.began
    elapsed, steps = written - (written if began is None else began), curve.step - first
    left = None
    if curve.total and steps > 0 and elapsed > 0:
        left = round(elapsed / steps * (curve.total - curve.step))
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
