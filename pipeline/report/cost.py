"""What a run took, as far as its receipts know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.receipt import Receipt, load
from pipeline.report.curve import Curve
from pipeline.stage import Input, Inputs

DEFINITIONS = {
    "seconds": "of committed work, summed over its units; what other runs share counts in full",
    "cpu_hours": "the seconds times the CPUs granted; a receipt that does not name them counts one",
    "gpu_hours": "the same for GPUs, of train and evaluate; null if a receipt does not name them",
    "lost_hours": "training steps that were lost to an interruption, or thrown away by a rollback",
}


def units(given: Input) -> Iterator[Receipt]:
    """The receipts of a step: of its items, and of the units that they list."""
    for receipt in given.receipts.values():
        yield receipt
        for name in receipt.units:
            if listed := load(given.folder / name):
                yield listed


def stages(inputs: Inputs) -> dict[str, Any]:
    """By stage: seconds and number of units."""
    found: dict[str, Any] = {}
    for step, given in inputs.items():
        stage = found.setdefault(step.partition(".")[0], {"seconds": 0.0, "units": 0})
        for receipt in units(given):
            stage["seconds"] = round(stage["seconds"] + seconds(receipt), 3)
            stage["units"] += 1
    return found


def cost(inputs: Inputs, curve: Curve | None) -> dict[str, Any]:
    """Hours, as `DEFINITIONS` says; null where it is not known."""
    cpu, gpu, known = 0.0, 0.0, True
    for step, given in inputs.items():
        for receipt in units(given):
            hours = seconds(receipt) / 3600
            cpu += hours * receipt.facts.get("cpus", 1)
            gpu += hours * receipt.facts.get("gpus", 0)
            known &= "gpus" in receipt.facts or not step.startswith(("train.", "evaluate."))
    return {
        "cpu_hours": round(cpu, 4),
        "gpu_hours": round(gpu, 4) if known else None,
        "lost_hours": round(curve.lost_seconds / 3600, 4) if curve else None,
    }


def seconds(receipt: Receipt) -> float:
    """The item's own account where it keeps one: a receipt times the commit alone."""
    found: float = receipt.facts.get("seconds", receipt.seconds)
    return found
