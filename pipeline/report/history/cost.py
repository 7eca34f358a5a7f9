"""What a run cost: from the logs of its tasks, or from receipts where there are no logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.core.receipt import Receipt, load
from pipeline.core.stage import Input, Inputs
from pipeline.report.history.attempts import REPORT_STEP, Attempt, read_attempts
from pipeline.report.history.training_curve import Curve

DEFINITIONS = {
    "seconds": "of committed work, summed over its units; work shared with other runs counts in "
    "full",
    "cpu_hours": "granted CPUs times the run time of each task, including killed ones; for steps "
    "computed by another run, granted CPUs (one if not recorded) times the seconds of committed "
    "work",
    "gpu_hours": "the same for GPUs; null if not recorded for train or evaluate",
    "lost_hours": "time of training steps that were lost to an interruption or discarded by a "
    "rollback",
}


def units(finished_step: Input) -> Iterator[Receipt]:
    """The receipts of a step: of its items, and of the units they list."""
    for receipt in finished_step.receipts.values():
        yield receipt
        for name in receipt.units:
            if listed := load(finished_step.folder / name):
                yield listed


def stages(inputs: Inputs) -> dict[str, Any]:
    """By stage: seconds and number of units."""
    by_stage: dict[str, Any] = {}
    for step, finished_step in inputs.items():
        stage = by_stage.setdefault(step.partition(".")[0], {"seconds": 0.0, "units": 0})
        for receipt in units(finished_step):
            stage["seconds"] = round(stage["seconds"] + receipt.spent, 3)
            stage["units"] += 1
    return by_stage


def cost(inputs: Inputs, curve: Curve | None, logs: Path | None = None) -> dict[str, Any]:
    """CPU, GPU and lost hours, as `DEFINITIONS` says; None if unknown.

    Args:
        inputs: What is finished, by step.
        curve: Of the training.
        logs: The folder of the run's task logs.
    """
    attempts = read_attempts(logs) if logs else {}
    attempts.pop(REPORT_STEP, None)
    cpu, gpu, known = 0.0, 0.0, True
    for step in {**inputs, **attempts}:
        for hours, cpus, gpus in _granted(attempts.get(step, ()), inputs.get(step)):
            cpu += hours * (1 if cpus is None else cpus)
            gpu += hours * (gpus or 0)
            known &= gpus is not None or not step.startswith(("train.", "evaluate."))
    return {
        "cpu_hours": round(cpu, 4),
        "gpu_hours": round(gpu, 4) if known else None,
        "lost_hours": round(curve.lost_seconds / 3600, 4) if curve else None,
    }


def _granted(
    attempts: Iterable[Attempt], finished_step: Input | None
) -> Iterator[tuple[float, int | None, int | None]]:
    """Hours, CPUs and GPUs of each attempt at a step; of each unit if there are no attempts."""
    known = [(a.end - a.started, a.cpus, a.gpus) for a in attempts]
    if not known and finished_step:
        spent_facts = [(unit.spent, unit.facts) for unit in units(finished_step)]
        known = [(spent, facts.get("cpus"), facts.get("gpus")) for spent, facts in spent_facts]
    for seconds, cpus, gpus in known:
        yield seconds / 3600, cpus, gpus
