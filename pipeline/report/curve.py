"""The learning curve: the journal of a training, put in order.

After a restart some steps appear a second time; the last occurrence counts, and what the earlier
one took was lost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """What training looked like. Losses are nats a token.

    `train`, `validation`: (step, loss), by step. `restarts`: the steps at which a later attempt
    took up. `lost_seconds`: spent on steps that had to be computed again; `lost_by`: the same, by
    when the attempt began that spent them. `norms`: (step, gradient norm before clipping).
    `speeds`: (step, tokens a second). `skipped`: steps that were.
    """

    train: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    restarts: list[int]
    lost_seconds: float
    lost_by: dict[float, float] = field(default_factory=dict)
    norms: list[tuple[int, float]] = field(default_factory=list)
    speeds: list[tuple[int, float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        """The first point of lowest validation loss."""
        return min(self.validation, key=lambda point: point[1], default=None)


def read_curve(path: Path) -> Curve | None:
    """The curve in a `metrics.jsonl`, which may still be growing; None where there is none."""
    train: dict[int, dict[str, Any]] = {}
    validation: dict[int, float] = {}
    restarts: list[int] = []
    begun: dict[int, float] = {}
    lost_by: dict[float, float] = {}
    skipped: set[int] = set()
    lost, starts, start = 0.0, 0, 0.0
    for row in rows(path):
        step = row["step"]
        if row["kind"] == "step":
            if step in train:
                again = train[step].get("seconds", 0.0)
                lost += again
                lost_by[begun[step]] = lost_by.get(begun[step], 0.0) + again
            train[step], begun[step] = row, start
            skipped |= {step} if row.get("skipped") else set()
        elif row["kind"] == "validation":
            validation[step] = row["loss"]
        elif row["kind"] == "rollback":  # what lay beyond was thrown away
            for gone in [other for other in train if other > step]:
                again = train.pop(gone).get("seconds", 0.0)
                lost += again
                lost_by[begun[gone]] = lost_by.get(begun[gone], 0.0) + again
            validation = {other: loss for other, loss in validation.items() if other <= step}
        elif row["kind"] == "start":
            restarts += [step] if starts else []
            starts += 1
            start = row.get("time", 0.0)
    losses = _finite({n: row["loss"] for n, row in train.items() if not row.get("skipped")})
    judged = _finite(validation)
    if not losses and not judged:
        return None
    return Curve(
        losses,
        judged,
        restarts,
        lost,
        lost_by,
        _finite({step: row["grad_norm"] for step, row in train.items() if "grad_norm" in row}),
        _finite(
            {step: row["tokens"] / row["seconds"] for step, row in train.items() if _timed(row)}
        ),
        sorted(skipped),
    )


def _timed(row: dict[str, Any]) -> bool:
    return bool(row.get("tokens") and row.get("seconds"))


def rows(path: Path) -> Iterator[dict[str, Any]]:
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


def _finite(points: dict[int, float]) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss in sorted(points.items()) if math.isfinite(loss)]
