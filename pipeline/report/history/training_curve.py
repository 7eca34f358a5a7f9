"""The learning curve: the training metrics in order of steps.

After a restart some steps occur again. The last occurrence counts; the time of the earlier one was
lost.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """The course of a training, of the steps that count. Losses are nats per token.

    `train`, `validation`: (step, loss). `restarts`: steps at which a later attempt resumed.
    `lost_seconds`: time of steps that had to be computed again; `lost_by`: the same, by the start
    of the attempt that computed them. `norms`: (step, gradient norm before clipping). `speeds`:
    (step, tokens per second). `skipped`: skipped steps. `read`: (step, tokens trained on up to it).
    `seconds`: time of the steps that count. `step`, `total`: the current step, and how many there
    will be, if known. `began`: step and time (seconds since the epoch) at which the last attempt
    began.
    """

    train: Points = field(default_factory=list)
    validation: Points = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    lost_seconds: float = 0.0
    lost_by: dict[float, float] = field(default_factory=dict)
    norms: Points = field(default_factory=list)
    speeds: Points = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    read: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    total: int | None = None
    began: tuple[int, float | None] = (0, None)

    @property
    def best(self) -> tuple[int, float] | None:
        """The first point with the lowest validation loss."""
        return min(self.validation, key=lambda point: point[1], default=None)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.train or self.validation)


def read_curve(path: Path) -> Curve | None:
    """The curve in a `metrics.jsonl`, which may still be growing; None if there is none."""
    reader = _CurveReader()
    for row in _rows(path):
        reader.add(row)
    return reader.curve() if reader.rows else None


@dataclass
class _CurveReader:
    """The rows read so far: for each step the row that counts, and when its attempt began."""

    rows: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    steps: dict[int, tuple[dict[str, Any], float]] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    lost_by: dict[float, float] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Take the next row."""
        self.rows += 1
        kind, step = row["kind"], row["step"]
        if kind in ("start", "rollback"):
            self._roll_back(step)
        if kind == "start":
            self.restarts += [step] if self.start else []
            self.start = row
        elif kind == "step":
            self._discard(step)
            self.steps[step] = row, self.start.get("time", 0.0)
            self.skipped |= {step} if row.get("skipped") else set()
        elif kind == "validation":
            self.validation[step] = row["loss"]
            return
        self.step = step

    def _roll_back(self, step: int) -> None:
        """Discard all steps after `step`."""
        for later in [other for other in self.steps if other > step]:
            self._discard(later)
        self.validation = {other: loss for other, loss in self.validation.items() if other <= step}

    def _discard(self, step: int) -> None:
        if step in self.steps:
            row, began = self.steps.pop(step)
            self.lost_by[began] = self.lost_by.get(began, 0.0) + row.get("seconds", 0.0)

    def curve(self) -> Curve:
        """The curve of the rows read so far."""
        steps = {step: row for step, (row, _) in sorted(self.steps.items())}
        timed = {n: row for n, row in steps.items() if row.get("tokens") and row.get("seconds")}
        tokens = [row.get("tokens", 0) for row in steps.values()]
        return Curve(
            train=_finite({n: row["loss"] for n, row in steps.items() if not row.get("skipped")}),
            validation=_finite(self.validation),
            restarts=self.restarts,
            lost_seconds=sum(self.lost_by.values()),
            lost_by=self.lost_by,
            norms=_finite({n: row["grad_norm"] for n, row in steps.items() if "grad_norm" in row}),
            speeds=_finite({n: row["tokens"] / row["seconds"] for n, row in timed.items()}),
            skipped=sorted(self.skipped),
            read=list(zip(steps, itertools.accumulate(tokens), strict=True)),
            seconds=sum(row.get("seconds", 0.0) for row in steps.values()),
            step=self.step,
            total=self.start.get("total"),
            began=(self.start.get("step", 0), self.start.get("time")),
        )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `metrics.jsonl` that can be parsed; a kill may have torn one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and {"kind", "step"} <= row.keys():
                yield row


def _finite(points: dict[int, float]) -> Points:
    return [(step, loss) for step, loss in sorted(points.items()) if math.isfinite(loss)]
