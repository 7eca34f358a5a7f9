"""Where the time of a run went: how long each step waited, ran, and did work that was lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.receipt import load
from pipeline.core.stage import Input, Inputs
from pipeline.core.task_log import DONE, FAILED, INTERRUPTED, RUNNING, PlanStart
from pipeline.report.history.attempts import REPORT_STEP, Attempt, read_attempts, read_plans
from pipeline.report.history.training_curve import Curve

TRAIN_STEP = "train.train"
WITHOUT_PARTIAL_PROGRESS = ("decompress.", "tokenize.")  # an uncommitted unit starts over
MAX_CLOCK_SKEW_SECONDS = 60.0  # between two hosts
DEFINITIONS = {
    "wall_seconds": "wall-clock time from when the first step was submitted to the last sign of "
    "life; without this report and without steps that other runs computed",
    "running_seconds": "wall-clock time while at least one task ran; a killed task ran until its "
    "last sign of life",
    "waited_seconds": "wall-clock time while no task of the step ran although it was submitted "
    "and the steps it needs were done: in a queue or, without a queue, behind other steps. Null "
    "if unknown: a step that was started by hand has no time of submission",
    "lost_seconds": "part of running_seconds whose work had to be done again: for training, the "
    "steps computed twice; for decompress and tokenize, at most the time after an attempt’s last "
    "commit. Null if an attempt failed or was interrupted and it is unknown how much of its work "
    "was reused (partial downloads, scores, unfinished steps); the sum leaves those out",
}

TimeInterval = tuple[float, float]


def timeline(
    logs: Path | None, inputs: Inputs | None = None, curve: Curve | None = None
) -> dict[str, Any] | None:
    """Where the time of a run went, as `DEFINITIONS` says.

    Args:
        logs: The folder of the run's task logs.
        inputs: What is finished, by step.
        curve: Of the training.

    Returns:
        `begin` in seconds since the epoch; the total wall, running, waited and lost seconds; and
        `steps`. First come the steps that another run computed (only `shared`), then the others in
        the order in which they began: `state`, number of tasks and attempts, `first_start` and
        `end` in seconds since the epoch, the seconds, and `spans`: pieces of time as (from, to) in
        seconds since `begin`. None if there are no logs.
    """
    attempts = read_attempts(logs) if logs else {}
    attempts.pop(REPORT_STEP, None)
    if logs is None or not attempts:
        return None
    finished_steps, plans = inputs or {}, read_plans(logs)
    steps = [
        _step(
            step, attempts, plans, finished_steps.get(step), curve if step == TRAIN_STEP else None
        )
        for step in attempts
    ]
    steps.sort(key=lambda step: (step.running[0], step.name))
    running = union(span for step in steps for span in step.running)
    waited = union(span for step in steps for span in step.waited)
    begin = min(start for start, _ in (*running, *waited))
    shared: dict[str, Any] = {
        step: {"shared": True}
        for step in finished_steps
        if step not in attempts and step != REPORT_STEP
    }
    return {
        "begin": round(begin, 3),
        "wall_seconds": round(running[-1][1] - begin, 3),
        "running_seconds": length(running),
        "waited_seconds": length(minus(waited, running)),
        "lost_seconds": round(sum(step.lost_seconds or 0.0 for step in steps), 3),
        "steps": shared | {step.name: step.describe(begin) for step in steps},
    }


@dataclass(frozen=True)
class _Step:
    """The time of a step.

    `lost_seconds` may exceed the length of `lost`. `waits_known`: whether any waiting is known.
    """

    name: str
    attempts: list[Attempt]
    finished: bool
    running: list[TimeInterval]
    waited: list[TimeInterval]
    waits_known: bool
    lost: list[TimeInterval]
    lost_seconds: float | None

    def describe(self, begin: float) -> dict[str, Any]:
        spans = {"waited": self.waited, "running": self.running, "lost": self.lost}
        lost = self.lost_seconds
        return {
            "shared": False,
            "state": self._state(),
            "tasks": len({a.element for a in self.attempts if not a.over}),
            "attempts": len(self.attempts),
            "first_start": round(self.running[0][0], 3),
            "end": round(self.running[-1][1], 3),
            "waited_seconds": length(self.waited) if self.waits_known else None,
            "running_seconds": length(self.running),
            "lost_seconds": None if lost is None else round(lost, 3),
            "spans": {
                kind: [[round(a - begin, 3), round(b - begin, 3)] for a, b in pieces]
                for kind, pieces in spans.items()
            },
        }

    def _state(self) -> str:
        states = {a.state for a in self.attempts if not a.over}
        worst = (state for state in (RUNNING, FAILED, INTERRUPTED) if state in states)
        return DONE if self.finished else next(worst, DONE)


def _step(
    name: str,
    attempts_by_step: Mapping[str, list[Attempt]],
    plans: list[PlanStart],
    finished_step: Input | None,
    curve: Curve | None,
) -> _Step:
    attempts = attempts_by_step[name]
    running = union((a.started, a.end) for a in attempts)
    due = list(_due(name, attempts_by_step, plans))
    pairs = zip(due, attempts, strict=True)
    waited = union((since, a.started) for since, a in pairs if since is not None)
    lost, seconds = _lost(name, attempts, finished_step, curve)
    return _Step(
        name=name,
        attempts=attempts,
        finished=finished_step is not None,
        running=running,
        waited=minus(waited, running),
        waits_known=any(since is not None for since in due),
        lost=lost,
        lost_seconds=seconds,
    )


def _due(
    name: str, attempts_by_step: Mapping[str, list[Attempt]], plans: list[PlanStart]
) -> Iterator[float | None]:
    """When each attempt at a step could have begun; None if unknown.

    That is when it had been submitted and the steps it needs were done.
    """
    before: dict[int, Attempt] = {}
    for attempt in attempts_by_step[name]:
        previous, start = before.get(attempt.element), attempt.started
        before[attempt.element] = attempt
        if previous and attempt.job and previous.job == attempt.job:
            yield min(previous.end, start)
            continue
        asked = [
            p for p in plans if p.plan == attempt.plan and p.time <= start + MAX_CLOCK_SKEW_SECONDS
        ]
        if not asked:
            yield None
            continue
        needs: Iterable[str] = asked[-1].steps.get(name, ())
        if not attempt.job:  # without a queue, steps run one after the other
            needs = attempts_by_step.keys() - {name}
        earlier = [
            a for need in needs for a in attempts_by_step.get(need, ()) if a.started <= start
        ]
        ends = [a.end for a in (*earlier, *([previous] if previous else []))]
        yield min(start, max([asked[-1].time, *ends]))


def _lost(
    name: str, attempts: list[Attempt], finished_step: Input | None, curve: Curve | None
) -> tuple[list[TimeInterval], float | None]:
    """When work was done that had to be done again, and how long; None if unknown."""
    finished = finished_step is not None
    unsuccessful = [a for a in attempts if a.state != DONE and (a.over or finished)]
    if curve:
        return union(_computed_twice(attempts, curve)), curve.lost_seconds
    if not unsuccessful:
        return [], 0.0
    if not (finished and name.startswith(WITHOUT_PARTIAL_PROGRESS)):
        return [], None
    commits = _commits(finished_step)
    committed = {a: _last_commit(a, commits) for a in unsuccessful}
    good = union((a.started, committed.get(a, a.end)) for a in attempts)
    lost = minus(union((committed[a], a.end) for a in unsuccessful), good)
    return lost, length(lost)


def _computed_twice(attempts: list[Attempt], curve: Curve) -> Iterator[TimeInterval]:
    """The lost steps were the last ones of the attempt that lost them."""
    for begun, seconds in curve.lost_by.items():
        for attempt in attempts:
            if attempt.started <= begun <= attempt.end:
                yield max(begun, attempt.end - seconds), attempt.end


def _commits(finished_step: Input | None) -> list[tuple[int, float]]:
    """When each unit of a step was committed, with the index of its item."""
    commits = []
    for index, receipt in enumerate(finished_step.receipts.values() if finished_step else ()):
        listed = (
            [load(finished_step.folder / name) for name in receipt.units] if finished_step else []
        )
        commits += [(index, one.written) for one in (receipt, *listed) if one]
    return commits


def _last_commit(attempt: Attempt, commits: list[tuple[int, float]]) -> float:
    """When an attempt last committed a unit, or began its last item if that is later."""
    own = (written for index, written in commits if index % attempt.of == attempt.element)
    latest = max([attempt.started, attempt.since, *(t for t in own if t <= attempt.end)])
    return min(latest, attempt.end)


def union(spans: Iterable[TimeInterval]) -> list[TimeInterval]:
    """Merge spans into disjoint ones, in order."""
    merged: list[TimeInterval] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def minus(spans: list[TimeInterval], others: list[TimeInterval]) -> list[TimeInterval]:
    """The spans without what they share with `others`; both are results of `union`."""
    rest = []
    for start, end in spans:
        for low, high in others:
            if start < high and low < end:
                if start < low:
                    rest.append((start, low))
                start = max(start, high)
        if start < end:
            rest.append((start, end))
    return rest


def length(spans: Iterable[TimeInterval]) -> float:
    """The total length of spans in seconds, to the millisecond."""
    return round(sum((end - start for start, end in spans), 0.0), 3)
