"""Where the time went: by step, how long it waited, ran, and worked for nothing."""

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

TRAIN = "train.train"
ANEW = ("decompress.", "tokenize.")  # a unit that was not committed is begun anew
SKEW = 60.0  # seconds by which the clocks of two hosts may differ
DEFINITIONS = {
    "wall_seconds": "from when the first step was asked for to the last sign of life, by the "
    "clock; without this report, and without what other runs had made before",
    "running_seconds": "by the clock, while at least one task ran; one that was killed ran until "
    "its last sign of life",
    "waited_seconds": "by the clock, while no task of the step ran although it was asked for and "
    "what it needs was there: in a queue or, where there is none, for the steps before it. Null if "
    "that is not known: work by hand does not say since when it was wanted",
    "lost_seconds": "of running_seconds, those whose work was done again: of training, the steps "
    "computed twice; of decompress and tokenize, at most what came after an attempt’s last commit. "
    "Null where an attempt ended badly and it is not known how much of its work was gone on with "
    "(half-done downloads, scores, and steps that are not finished); the sum leaves those out",
}

Span = tuple[float, float]


def timeline(
    logs: Path | None, inputs: Inputs | None = None, curve: Curve | None = None
) -> dict[str, Any] | None:
    """Where the time of a run went, as `DEFINITIONS` says.

    Args:
        logs: The folder with the files of its tasks.
        inputs: What is finished of it, by step.
        curve: Of its training.

    Returns:
        `begin`: seconds of the epoch; wall, running, waited and lost seconds of the whole; `steps`,
        those that another run made (`shared`, and nothing to tell of them), then the others in the
        order in which they began: `state` as last heard of, number of tasks and attempts,
        `first_start` and `end` of the epoch, the seconds, and `spans`, the same as pieces of time:
        from and to, in seconds since the begin. None if nothing was written down at all.
    """
    attempts = read_attempts(logs) if logs else {}
    attempts.pop(REPORT_STEP, None)
    if logs is None or not attempts:
        return None
    given, plans = inputs or {}, read_plans(logs)
    found = [
        _step(step, attempts, plans, given.get(step), curve if step == TRAIN else None)
        for step in attempts
    ]
    found.sort(key=lambda step: (step.running[0], step.name))
    running = union(span for step in found for span in step.running)
    waited = union(span for step in found for span in step.waited)
    begin = min(start for start, _ in (*running, *waited))
    shared: dict[str, Any] = {
        step: {"shared": True} for step in given if step not in attempts and step != REPORT_STEP
    }
    return {
        "begin": round(begin, 3),
        "wall_seconds": round(running[-1][1] - begin, 3),
        "running_seconds": length(running),
        "waited_seconds": length(minus(waited, running)),
        "lost_seconds": round(sum(step.lost_seconds or 0.0 for step in found), 3),
        "steps": shared | {step.name: step.told(begin) for step in found},
    }


@dataclass(frozen=True)
class _Step:
    """The time of a step; `lost_seconds`, and whether waiting is known, may be more than spans."""

    name: str
    attempts: list[Attempt]
    finished: bool
    running: list[Span]
    waited: list[Span]
    waits_known: bool
    lost: list[Span]
    lost_seconds: float | None

    def told(self, begin: float) -> dict[str, Any]:
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
    every: Mapping[str, list[Attempt]],
    plans: list[PlanStart],
    given: Input | None,
    curve: Curve | None,
) -> _Step:
    attempts = every[name]
    running = union((a.started, a.end) for a in attempts)
    due = list(_due(name, every, plans))
    pairs = zip(due, attempts, strict=True)
    waited = union((since, a.started) for since, a in pairs if since is not None)
    lost, seconds = _lost(name, attempts, given, curve)
    return _Step(
        name=name,
        attempts=attempts,
        finished=given is not None,
        running=running,
        waited=minus(waited, running),
        waits_known=any(since is not None for since in due),
        lost=lost,
        lost_seconds=seconds,
    )


def _due(
    name: str, every: Mapping[str, list[Attempt]], plans: list[PlanStart]
) -> Iterator[float | None]:
    """Since when each attempt at a step was due: asked for, and able to begin; None if unknown."""
    before: dict[int, Attempt] = {}
    for attempt in every[name]:
        previous, start = before.get(attempt.element), attempt.started
        before[attempt.element] = attempt
        if previous and attempt.job and previous.job == attempt.job:
            yield min(previous.end, start)
            continue
        asked = [p for p in plans if p.plan == attempt.plan and p.time <= start + SKEW]
        if not asked:
            yield None
            continue
        needs: Iterable[str] = asked[-1].steps.get(name, ())
        if not attempt.job:  # without a queue steps go one after the other, whatever they need
            needs = every.keys() - {name}
        earlier = [a for need in needs for a in every.get(need, ()) if a.started <= start]
        ends = [a.end for a in (*earlier, *([previous] if previous else []))]
        yield min(start, max([asked[-1].time, *ends]))


def _lost(
    name: str, attempts: list[Attempt], given: Input | None, curve: Curve | None
) -> tuple[list[Span], float | None]:
    """When work was done that was done again, and how long; None if that is not known."""
    finished = given is not None
    badly = [a for a in attempts if a.state != DONE and (a.over or finished)]
    if curve:
        return union(_computed_twice(attempts, curve)), curve.lost_seconds
    if not badly:
        return [], 0.0
    if not (finished and name.startswith(ANEW)):
        return [], None
    commits = _commits(given)
    safe = {a: _last_commit(a, commits) for a in badly}
    good = union((a.started, safe.get(a, a.end)) for a in attempts)
    lost = minus(union((safe[a], a.end) for a in badly), good)
    return lost, length(lost)


def _computed_twice(attempts: list[Attempt], curve: Curve) -> Iterator[Span]:
    """Steps that had to be computed again were the last ones of the attempt that lost them."""
    for begun, seconds in curve.lost_by.items():
        for attempt in attempts:
            if attempt.started <= begun <= attempt.end:
                yield max(begun, attempt.end - seconds), attempt.end


def _commits(given: Input | None) -> list[tuple[int, float]]:
    """When the units of a step were committed, with the place of their item among the items."""
    found = []
    for index, receipt in enumerate(given.receipts.values() if given else ()):
        listed = [load(given.folder / name) for name in receipt.units] if given else []
        found += [(index, one.written) for one in (receipt, *listed) if one]
    return found


def _last_commit(attempt: Attempt, commits: list[tuple[int, float]]) -> float:
    """When an attempt last committed something, or took up its last item if that is later."""
    own = (written for index, written in commits if index % attempt.of == attempt.element)
    latest = max([attempt.started, attempt.since, *(t for t in own if t <= attempt.end)])
    return min(latest, attempt.end)


def union(spans: Iterable[Span]) -> list[Span]:
    """Pieces of time, as few as can be and in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def minus(spans: list[Span], others: list[Span]) -> list[Span]:
    """What of some pieces of time is in none of others; both as `union` gives them."""
    found = []
    for start, end in spans:
        for low, high in others:
            if start < high and low < end:
                if start < low:
                    found.append((start, low))
                start = max(start, high)
        if start < end:
            found.append((start, end))
    return found


def length(spans: Iterable[Span]) -> float:
    """How long pieces of time are together, in seconds, to the millisecond."""
    return round(sum((end - start for start, end in spans), 0.0), 3)
