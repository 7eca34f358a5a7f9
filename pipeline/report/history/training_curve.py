"""The learning curve: the journal of a training, put in order.

After a restart some steps appear a second time; the last occurrence counts, and what the earlier
one took was lost.
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
    """What training looked like, of the steps that count. Losses are nats a token.

    `train`, `validation`: (step, loss), by step. `restarts`: the steps at which a later attempt
    took up. `lost_seconds`: spent on steps that had to be computed again; `lost_by`: the same, by
    when the attempt began that spent them. `norms`: (step, gradient norm before clipping).
    `speeds`: (step, tokens a second). `skipped`: steps that were. `read`: (step, tokens that were
    learned from until then). `seconds`: spent on steps that count. `step`, `total`: how far it is,
    and of how many steps, if that is said. `began`: step and time (seconds since the epoch) at
    which the last attempt did.
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
        """The first point of lowest validation loss."""
        return min(self.validation, key=lambda point: point[1], default=None)

    @property
    def blank(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.train or self.validation)


def read_curve(path: Path) -> Curve | None:
    """The curve in a `metrics.jsonl`, which may still be growing; None where there is none."""
    journal = _Journal()
    for row in _rows(path):
        journal.take(row)
    return journal.curve() if journal.rows else None


@dataclass
class _Journal:
    """A journal, read so far: of each step the row that counts, and when its attempt began."""

    rows: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    steps: dict[int, tuple[dict[str, Any], float]] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    lost_by: dict[float, float] = field(default_factory=dict)

    def take(self, row: dict[str, Any]) -> None:
        """The next row."""
        self.rows += 1
        kind, step = row["kind"], row["step"]
        if kind in ("start", "rollback"):
            self._back_to(step)
        if kind == "start":
            self.restarts += [step] if self.start else []
            self.start = row
        elif kind == "step":
            self._lose(step)
            self.steps[step] = row, self.start.get("time", 0.0)
            self.skipped |= {step} if row.get("skipped") else set()
        elif kind == "validation":
            self.validation[step] = row["loss"]
            return
        self.step = step

    def _back_to(self, step: int) -> None:
        """What lay beyond is thrown away."""
        for gone in [other for other in self.steps if other > step]:
            self._lose(gone)
        self.validation = {other: loss for other, loss in self.validation.items() if other <= step}

    def _lose(self, step: int) -> None:
        if step in self.steps:
            row, began = self.steps.pop(step)
            self.lost_by[began] = self.lost_by.get(began, 0.0) + row.get("seconds", 0.0)

    def curve(self) -> Curve:
        """What it says."""
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
    """The rows of a `metrics.jsonl` that can be read; a kill may have torn one."""
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
