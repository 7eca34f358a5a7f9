"""How far a task is, in its file, in its log, and in `status`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import advance

from jobs import journal, status
from jobs.journal import Journal, speed, tell_facts, told
from pipeline.config import Config
from pipeline.dag import find
from pipeline.stage import Context, run_item


class Clock:
    """Both clocks, which a test puts forward."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        patch.setattr(time, "time", lambda: self.now)
        patch.setattr(time, "monotonic", lambda: self.now)


def test_the_log_says_every_few_seconds_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), list[str]()
    note = Journal(tmp_path / "x.json", lines.append)
    note.begin("corpus", 0, 1)
    note.progress(0, 4_000_000_000)
    assert lines == [], "what is over soon says nothing"
    clock.now += 10
    note.progress(1_000_000_000, 4_000_000_000, documents=1234567)
    assert lines == [
        "corpus: 25 %, 1,234,567 documents, 1 GB of 4 GB, 100 MB/s, 30 s left",
    ]
    note.progress(1_000_000_001, 4_000_000_000, documents=1234568)
    assert len(lines) == 1, "it was told just now"


def test_the_log_of_twelve_hours_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), list[str]()
    note = Journal(tmp_path / "x.json", lines.append)
    note.begin("train", 0, 1)
    note.every = 1e9
    for second in range(60):
        clock.now += 1
        note.progress(second, 43_200, "steps")
    assert len(lines) == 10
    for second in range(60, 43_200):
        clock.now += 1
        note.progress(second, 43_200, "steps", loss=2.7182)
    assert 3_000 < len(lines) < 4_400
    assert sum(map(len, lines)) < 500_000
    assert lines[-1].startswith("train: 100 %, loss 2.7182, 43,1")
    assert " of 43,200 steps, 1 steps/s, " in lines[-1]


def test_status_says_rows_bytes_rate_and_time_left(
    small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    root, config = tmp_path, small()
    node = advance(config, root, "decompress.chunks")
    assert node.complete
    folder = journal.logs_folder(root, config.name)
    folder.mkdir(parents=True)
    note = Journal(folder / "tokenize.shards-0.json", every=0.0)
    note.write(label=journal.process_label(), state="running", element=0, of=1)
    step = find(config, root, "tokenize.shards")
    assert step.items
    seen = []

    def progress(done: int, total: int, **facts: int) -> None:
        note.progress(done, total, **facts)
        seen.append((done, total, facts))

    note.begin(step.items[0].name, 0, len(step.items))
    run_item(step.work, step.items[0], Context(progress=progress, log=lambda text: None))
    done, total, facts = seen[-1]
    assert done == total, "bytes of text"
    assert facts["documents"] > 10
    found = status.survey_run(config, root)
    (task,) = next(s for s in found["steps"] if s["step"] == "tokenize.shards")["tasks"]
    assert (task["rows"], task["bytes"], task["total"]) == (facts["documents"], done, total)
    assert task["mb_per_second"] >= 0
    json.dumps(found)
    told = [str(cell) for column in status.table(found).columns for cell in column.cells]
    (now,) = [cell for cell in told if "100 %" in cell]
    assert f"{facts['documents']} documents, " in now


def test_a_task_has_a_line_of_its_own_in_the_status() -> None:
    task = {"item": "a", "done": 5, "total": 10, "unit": "steps", "rate": 0, "eta": None}
    step = {"message": None, "jobs": [], "requeues": 1, "tasks": [task | {"facts": {}}] * 2}
    assert status.now(step) == "a: 50 %, 5 of 10 steps\na: 50 %, 5 of 10 steps; requeued 1×"


def test_rate_and_time_left_count_from_where_it_went_on() -> None:
    content = {"first": 600, "done": 800, "total": 1000, "since": 100.0, "time": 110.0}
    found = speed({**content, "unit": "bytes", "facts": {"lines": 7}})
    assert (found["rate"], found["eta"]) == (20.0, 10)
    assert (found["rows"], found["bytes"], found["mb_per_second"]) == (7, 800, 0.0)
    unknown = dict.fromkeys(("eta", "rows", "bytes", "mb_per_second"))
    assert speed({"since": 100.0, "time": 100.0}) == {"rate": 0.0, **unknown}
    assert speed({"first": 0, "done": 50, "since": 0.0, "time": 10.0}) == {"rate": 5.0, **unknown}
    more = {"first": 0, "done": 11, "total": 10, "since": 0.0, "time": 1.0}
    assert speed(more)["eta"] == 0, "a total may have been a guess"


def test_what_is_not_known_is_not_said() -> None:
    task = {"item": "a", "done": 5, "total": None, "unit": "rows", "rate": 2.0, "eta": None}
    assert told({**task, "facts": {}}) == "a: 5 rows, 2 rows/s"
    assert told({**task, "done": 0, "rate": 0.0, "facts": {}}) == "a"
    data = {**task, "unit": "bytes", "done": 5e9, "rate": 2.5e6}
    assert told({**data, "facts": {"n": "x"}}) == "a: n x, 5 GB, 2.5 MB/s"
    assert told({**data, "eta": 600, "facts": {}}).endswith(", 10 min left")
    assert told({**data, "eta": 9000, "facts": {}}).endswith(", 2.5 h left")
    assert tell_facts({"lines": 1234567, "loss": 2.5}) == ["1,234,567 lines", "loss 2.5"]
