"""Where the time went: waiting, running and lost, read off what tasks leave in their logs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.receipt import Receipt
from pipeline.core.stage import Input
from pipeline.report.history.cost import cost
from pipeline.report.history.timeline import DEFINITIONS, length, minus, timeline, union
from pipeline.report.history.training_curve import Curve, read_curve

NEEDS = {
    "decompress.chunks": ["download.corpus"],
    "tokenize.shards": ["decompress.chunks", "download.model"],
    "train.train": ["tokenize.shards"],
    "evaluate.base": ["tokenize.shards"],
    "evaluate.tuned": ["train.train", "evaluate.base"],
}


@dataclass
class Logs:
    """The folder `logs/` of a run that never was."""

    folder: Path
    plans: list[dict[str, Any]] = field(default_factory=list)

    def plan(self, name: str, time: float, *steps: str) -> None:
        row = {"plan": name, "time": time, "steps": {s: NEEDS.get(s, []) for s in steps}}
        self.plans.append(row)
        (self.folder / "plans.jsonl").write_text(as_lines(self.plans))

    def task(
        self, step: str, *attempts: Sequence[Any], element: int = 0, of: int = 1, **more: Any
    ) -> None:
        """Attempts as (state, start, end); the last is the one in the small file."""
        share = {"element": element, "of": of, "plan": "p", "job": f"{step}_{element}", **more}
        rows = [{"state": s, "started": a, "time": b, **share} for s, a, b in attempts]
        stem = self.folder / f"{step}-{element}"
        stem.with_suffix(stem.suffix + ".json").write_text(json.dumps(rows.pop()))
        if rows:
            stem.with_suffix(stem.suffix + ".history.jsonl").write_text(as_lines(rows))


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def seconds(step: dict[str, Any]) -> tuple[float | None, ...]:
    return tuple(step[f"{kind}_seconds"] for kind in ("waited", "running", "lost"))


def finished(step: str, *items: tuple[str, float]) -> dict[str, Input]:
    """A step of which each item was committed at that time."""
    receipts = {
        name: Receipt(unit=name, key="", own="", inputs={}, outputs={}, written=written)
        for name, written in items
    }
    return {step: Input(Path("nowhere"), receipts)}


def test_waiting_begins_when_a_step_is_asked_for_and_what_it_needs_is_there(logs: Logs) -> None:
    logs.plan("p", 1000, "download.corpus", "decompress.chunks", "tokenize.shards")
    logs.task("download.corpus", ("done", 1010, 1100))
    logs.task("decompress.chunks", ("done", 1130, 1200))
    found = timeline(logs.folder)
    assert found
    assert (found["begin"], found["wall_seconds"]) == (1000, 200)
    assert (found["running_seconds"], found["waited_seconds"], found["lost_seconds"]) == (
        160,
        40,
        0,
    )
    corpus, chunks = found["steps"]["download.corpus"], found["steps"]["decompress.chunks"]
    assert list(found["steps"]) == ["download.corpus", "decompress.chunks"]
    assert seconds(corpus) == (10, 90, 0)
    assert seconds(chunks) == (30, 70, 0), "while the corpus came it could not have begun"
    assert chunks["spans"] == {"waited": [[100, 130]], "running": [[130, 200]], "lost": []}
    assert (chunks["first_start"], chunks["end"]) == (1130, 1200)
    assert (chunks["attempts"], chunks["tasks"], chunks["shared"]) == (1, 1, False)
    assert chunks["state"] == "done"
    assert set(DEFINITIONS) == {f"{name}_seconds" for name in ("wall", "running", "waited", "lost")}


def test_between_attempts_of_a_job_it_waits(logs: Logs) -> None:
    logs.plan("p", 0, "train.train")
    logs.task("train.train", ("interrupted", 10, 50), ("running", 70, 90), ("done", 95, 100))
    found = timeline(logs.folder)
    assert found
    step = found["steps"]["train.train"]
    assert step["spans"]["waited"] == [[0, 10], [50, 70], [90, 95]]
    assert (step["attempts"], step["tasks"], step["running_seconds"]) == (3, 1, 65)
    assert (found["running_seconds"], found["waited_seconds"]) == (65, 35)


def test_nobody_waits_while_nothing_is_asked_for(logs: Logs) -> None:
    logs.plan("p", 0, "train.train")
    logs.plan("q", 5000, "train.train")
    logs.task("train.train", ("done", 5010, 5100), plan="q", job="9")
    (logs.folder / "train.train-0.history.jsonl").write_text(
        as_lines(
            [
                {
                    **{"state": "failed", "started": 20, "time": 100, "element": 0, "of": 1},
                    **{"plan": "p", "job": "8"},
                }
            ]
        )
    )
    found = timeline(logs.folder)
    assert found
    assert found["steps"]["train.train"]["spans"]["waited"] == [[0, 20], [5000, 5010]]
    assert (found["wall_seconds"], found["waited_seconds"], found["running_seconds"]) == (
        *(5100, 30, 170),
    )


def test_without_a_queue_steps_wait_for_their_turn_only(logs: Logs) -> None:
    logs.plan("p", 0, "tokenize.shards", "train.train", "evaluate.base")
    logs.task("tokenize.shards", ("done", 1, 10), job=None)
    logs.task("train.train", ("done", 11, 500), job=None)
    logs.task("evaluate.base", ("done", 502, 510), job=None)
    found = timeline(logs.folder)
    assert found
    assert [step["waited_seconds"] for step in found["steps"].values()] == [1, 1, 2]


def test_of_work_by_hand_it_is_not_known(logs: Logs) -> None:
    logs.plan("p", 0, "train.train")
    logs.task("train.train", ("done", 900, 1000), plan="")
    found = timeline(logs.folder)
    assert found
    assert found["steps"]["train.train"]["waited_seconds"] is None
    assert (found["begin"], found["waited_seconds"]) == (900, 0)


def test_tasks_of_an_array_run_side_by_side(logs: Logs) -> None:
    logs.plan("p", 0, "tokenize.shards")
    logs.task("tokenize.shards", ("done", 10, 50), element=0, of=3)
    logs.task("tokenize.shards", ("done", 30, 60), element=1, of=3)
    logs.task("tokenize.shards", ("done", 80, 90), element=2, of=3)
    found = timeline(logs.folder)
    assert found
    step = found["steps"]["tokenize.shards"]
    assert step["spans"]["running"] == [[10, 60], [80, 90]]
    assert step["spans"]["waited"] == [[0, 10], [60, 80]], "while none ran"
    assert (step["tasks"], step["attempts"]) == (3, 3)


def test_a_kill_loses_what_came_after_the_last_commit(logs: Logs) -> None:
    logs.plan("p", 0, "tokenize.shards")
    logs.task("tokenize.shards", ("running", 10, 60), ("done", 70, 99), element=0, of=2)
    logs.task("tokenize.shards", ("done", 10, 45), element=1, of=2)
    # the items of element 0 are the first and the third; the other one's commit is none of its own
    inputs = finished("tokenize.shards", ("a", 40.0), ("b", 45.0), ("c", 95.0))
    found = timeline(logs.folder, inputs)
    assert found
    step = found["steps"]["tokenize.shards"]
    assert step["spans"]["lost"] == [[45, 60]], "of 40 to 60, when nothing else was made"
    assert step["lost_seconds"] == found["lost_seconds"] == 15
    logs.task("tokenize.shards", ("running", 10, 60), ("done", 70, 99), of=2, since=55)
    found = timeline(logs.folder, inputs)
    assert found
    assert found["steps"]["tokenize.shards"]["lost_seconds"] == 5, "an item was taken up at 55"


def test_what_half_done_work_was_worth_is_not_made_up(logs: Logs) -> None:
    logs.task("download.corpus", ("running", 0, 60), ("done", 70, 99))
    logs.task("evaluate.base", ("done", 100, 120))
    found = timeline(logs.folder)
    assert found
    assert found["steps"]["download.corpus"]["lost_seconds"] is None
    assert found["steps"]["evaluate.base"]["lost_seconds"] == 0
    assert found["lost_seconds"] == 0


def metrics(path: Path) -> Curve:
    """Three attempts at a training: the first loses two steps of 4 s, the second none."""
    steps = [(12, 0, (1, 2, 3, 4)), (62, 2, (3, 4, 5)), (92, 5, (6, 7))]
    rows: list[dict[str, Any]] = []
    for time, first, taken in steps:
        rows.append({"kind": "start", "step": first, "time": time})
        rows += [{"kind": "step", "step": step, "loss": 1.0, "seconds": 4.0} for step in taken]
    path.write_text(as_lines(rows))
    curve = read_curve(path)
    assert curve
    return curve


def test_of_training_the_steps_computed_twice_are_lost(logs: Logs, tmp_path: Path) -> None:
    curve = metrics(tmp_path / "metrics.jsonl")
    assert (curve.lost_seconds, curve.lost_by) == (8.0, {12: 8.0})
    logs.task("train.train", ("running", 10, 50), ("interrupted", 60, 80), ("done", 90, 110))
    found = timeline(logs.folder, finished("train.train", ("best", 110.0)), curve)
    assert found
    step = found["steps"]["train.train"]
    assert (step["lost_seconds"], step["spans"]["lost"]) == (8.0, [[32, 40]])


def test_a_run_under_way_says_so(logs: Logs) -> None:
    logs.task("download.corpus", ("failed", 0, 5), ("done", 10, 20))
    logs.task("tokenize.shards", ("done", 20, 30), element=0, of=2)
    logs.task("tokenize.shards", ("running", 20, 31), element=1, of=2)
    logs.task("evaluate.base", ("failed", 31, 40), of=1)
    found = timeline(logs.folder, finished("download.corpus", ("corpus", 20.0)))
    assert found
    states = {name: step["state"] for name, step in found["steps"].items()}
    assert states == {
        "download.corpus": "done",
        "tokenize.shards": "running",
        "evaluate.base": "failed",
    }
    assert found["steps"]["tokenize.shards"]["lost_seconds"] == 0, "nothing says that it is lost"


def test_tasks_of_an_earlier_sharing_are_over(logs: Logs) -> None:
    logs.task("tokenize.shards", ("running", 0, 10), element=3, of=4)
    logs.task("tokenize.shards", ("done", 20, 30), element=0, of=2)
    found = timeline(logs.folder, finished("tokenize.shards", ("a", 30.0)))
    assert found
    step = found["steps"]["tokenize.shards"]
    assert (step["state"], step["tasks"], step["lost_seconds"]) == ("done", 1, 10)
    found = timeline(logs.folder)
    assert found
    lost = found["steps"]["tokenize.shards"]["lost_seconds"]
    assert lost is None, "of a step that is not finished it is not known what is committed"


def test_cost_is_what_was_granted_while_tasks_ran(logs: Logs) -> None:
    logs.task("train.train", ("running", 0, 3600), ("done", 4000, 7600), cpus=8, gpus=2)
    logs.task("tokenize.shards", ("done", 0, 360), element=0, of=2, cpus=1, gpus=0)
    logs.task("tokenize.shards", ("failed", 0, 360), element=1, of=2, cpus=1, gpus=0)
    logs.task("evaluate.report", ("running", 0, 9000), cpus=9)
    inputs = finished("train.train", ("best", 1.0))
    facts = {"seconds": 1800.0, "cpus": 4, "gpus": 1}
    scored = Receipt("test", "", "", {}, {}, facts=facts)
    inputs["evaluate.base"] = Input(Path("nowhere"), {"test": scored})
    found = cost(inputs, None, logs.folder)
    assert found["cpu_hours"] == pytest.approx(16 + 0.2 + 2), "the last of which another run spent"
    assert found["gpu_hours"] == pytest.approx(4 + 0.5)
    logs.task("train.train", ("done", 4000, 7600), cpus=8)
    assert cost(inputs, None, logs.folder)["gpu_hours"] is None


def test_what_another_run_has_made_has_no_time_here(logs: Logs) -> None:
    logs.task("train.train", ("done", 0, 10))
    logs.task("evaluate.report", ("running", 11, 11))
    found = timeline(logs.folder, finished("tokenize.seal", ("seal", 1.0)))
    assert found
    assert list(found["steps"]) == ["tokenize.seal", "train.train"], "and the report is not over"
    assert found["steps"]["tokenize.seal"] == {"shared": True}
    assert timeline(None) is None
    assert timeline(logs.folder / "nothing") is None


def test_what_cannot_be_read_is_passed_over(logs: Logs) -> None:
    logs.task("train.train", ("running", 0, 10), ("done", 20, 30))
    good = (logs.folder / "train.train-0.history.jsonl").read_text()
    bad = [
        '{"state": "running", "started": 1',
        "[]",
        '"text"',
        '{"state": "running"}',
        '{"state": "running", "started": "x", "time": 1, "element": 0, "of": 1}',
        '{"state": "running", "started": NaN, "time": 1, "element": 0, "of": 1}',
        '{"state": "running", "started": 1, "time": 1, "element": 0, "of": 0}',
        '{"state": "failed", "started": 1, "time": 9, "element": 0, "of": 1, "busy": true}',
        "\udcff\x00",
    ]
    text = "\n".join([*bad, good, good, bad[0]])
    (logs.folder / "train.train-0.history.jsonl").write_bytes(
        text.encode("utf-8", "surrogateescape")
    )
    (logs.folder / "plans.jsonl").write_text('{"time": "x", "steps": {}}\n{"time": 1}\ntorn{')
    (logs.folder / "foreground.json").write_text("{}")
    (logs.folder / "train.train-0.rank1").write_text("{}")
    (logs.folder / "evaluate.tuned-0.json").write_text("")
    found = timeline(logs.folder)
    assert found
    assert list(found["steps"]) == ["train.train"]
    assert found["steps"]["train.train"]["attempts"] == 2, "what stands there twice counts once"
    logs.task("train.train", ("running", 1764000000.12345, 1764000009.5))
    row = json.loads((logs.folder / "train.train-0.json").read_text())
    rounded = {**row, "started": round(row["started"], 2)}
    (logs.folder / "train.train-0.history.jsonl").write_text(as_lines([rounded]))
    found = timeline(logs.folder)
    assert found
    assert found["steps"]["train.train"]["attempts"] == 1, "killed before it had started again"


def test_wrong_clocks_give_no_negative_time(logs: Logs) -> None:
    logs.plan("p", 130, "train.train", "evaluate.tuned")
    logs.task("train.train", ("running", 100, 90), ("done", 95, 120))
    logs.task("evaluate.tuned", ("done", 110, 115))
    found = timeline(logs.folder)
    assert found
    for step in found["steps"].values():
        assert all(b >= a >= 0 for pieces in step["spans"].values() for a, b in pieces)
    assert found["waited_seconds"] >= 0


spans = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 9)).map(lambda p: (float(p[0]), float(sum(p))))
)


@given(spans, spans)
def test_pieces_of_time_add_up(some: list[tuple[float, float]], others: Any) -> None:
    def covered(pieces: list[tuple[float, float]]) -> set[int]:
        return {t for a, b in pieces for t in range(int(a), math.ceil(b))}

    one, two = union(some), union(others)
    assert covered(one) == covered(some)
    assert length(one) == len(covered(some))
    assert all(b < c for (_, b), (c, _) in pairwise(one))
    assert covered(minus(one, two)) == covered(one) - covered(two)
    assert length(minus(one, two)) == len(covered(one) - covered(two))
