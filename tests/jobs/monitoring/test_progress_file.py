"""The progress of a task: in its file, in its log, and in `status`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.allocation import Allocation, process_gone, process_label
from jobs.monitoring import history, progress_file, status
from jobs.monitoring.progress_file import (
    MAX_IDLE_RESTARTS,
    ProgressFile,
    describe,
    describe_facts,
    progress_mark,
    speed,
)
from jobs.planning.planner import make_plan
from pipeline.config import Config
from pipeline.core.errors import UserError
from pipeline.core.lease import Lease
from pipeline.core.stage import Context, lease_path, run_item
from pipeline.core.task_log import PLANS_FILE, read_status
from pipeline.dag import find
from pipeline.report.history.timeline import timeline
from tests.helpers.runs import Mount, advance, refused

HERE = Path(__file__).parents[3]


class Clock:
    """Both clocks of `time`, advanced by the test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        patch.setattr(time, "time", lambda: self.now)
        patch.setattr(time, "monotonic", lambda: self.now)


def test_progress_is_logged_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), list[str]()
    note = ProgressFile(tmp_path / "x.json", lines.append)
    note.begin("corpus", 0, 1)
    note.progress(0, 4_000_000_000)
    assert lines == [], "a short item logs nothing"
    clock.now += 10
    note.progress(1_000_000_000, 4_000_000_000, documents=1234567)
    assert lines == [
        "corpus: 25 %, 1,234,567 documents, 1 GB of 4 GB, 100 MB/s, 30 s left",
    ]
    note.progress(1_000_000_001, 4_000_000_000, documents=1234568)
    assert len(lines) == 1, "it has just logged"


def test_the_log_of_twelve_hours_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), list[str]()
    note = ProgressFile(tmp_path / "x.json", lines.append)
    note.begin("train", 0, 1)
    note.write_seconds = 1e9
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


def test_status_has_rows_bytes_rate_and_time_left(
    small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    root, config = tmp_path, small()
    node = advance(config, root, "decompress.chunks")
    assert node.complete
    folder = progress_file.logs_folder(root, config.name)
    folder.mkdir(parents=True)
    note = ProgressFile(folder / "tokenize.shards-0.json", write_seconds=0.0)
    note.write(label=progress_file.process_label(), state="running", element=0, of=1)
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
    told = [str(cell) for column in status.status_table(found).columns for cell in column.cells]
    (now,) = [cell for cell in told if "100 %" in cell]
    assert f"{facts['documents']} documents, " in now


def test_each_task_has_its_own_line_in_the_status() -> None:
    task = {"item": "a", "done": 5, "total": 10, "unit": "steps", "rate": 0, "eta": None}
    step = {"message": None, "jobs": [], "requeues": 1, "tasks": [task | {"facts": {}}] * 2}
    assert (
        status.describe_step(step) == "a: 50 %, 5 of 10 steps\na: 50 %, 5 of 10 steps; requeued 1×"
    )


def test_rate_and_time_left_count_from_where_the_attempt_resumed() -> None:
    content = {"first": 600, "done": 800, "total": 1000, "since": 100.0, "time": 110.0}
    found = speed({**content, "unit": "bytes", "facts": {"lines": 7}})
    assert (found["rate"], found["eta"]) == (20.0, 10)
    assert (found["rows"], found["bytes"], found["mb_per_second"]) == (7, 800, 0.0)
    unknown = dict.fromkeys(("eta", "rows", "bytes", "mb_per_second"))
    assert speed({"since": 100.0, "time": 100.0}) == {"rate": 0.0, **unknown}
    assert speed({"first": 0, "done": 50, "since": 0.0, "time": 10.0}) == {"rate": 5.0, **unknown}
    more = {"first": 0, "done": 11, "total": 10, "since": 0.0, "time": 1.0}
    assert speed(more)["eta"] == 0, "a total may be an estimate"


def test_unknown_values_are_left_out() -> None:
    task = {"item": "a", "done": 5, "total": None, "unit": "rows", "rate": 2.0, "eta": None}
    assert describe({**task, "facts": {}}) == "a: 5 rows, 2 rows/s"
    assert describe({**task, "done": 0, "rate": 0.0, "facts": {}}) == "a"
    data = {**task, "unit": "bytes", "done": 5e9, "rate": 2.5e6}
    assert describe({**data, "facts": {"n": "x"}}) == "a: n x, 5 GB, 2.5 MB/s"
    assert describe({**data, "eta": 600, "facts": {}}).endswith(", 10 min left")
    assert describe({**data, "eta": 9000, "facts": {}}).endswith(", 2.5 h left")
    assert describe_facts({"lines": 1234567, "loss": 2.5}) == ["1,234,567 lines", "loss 2.5"]


def test_resources_are_recorded_for_all_ranks_together(tmp_path: Path) -> None:
    note = ProgressFile(tmp_path / "train.train-0.json", write_seconds=0.0)
    note.start(Allocation(cpus=4, gpus=2, world=4, nodes=2), 0, 1)
    found = read_status(note.path)
    assert (found["cpus"], found["gpus"]) == (16, 4)


def start(path: Path, attempt: int = 0, **more: Any) -> ProgressFile:
    """Start a task of a job that SLURM has started `attempt` times before."""
    note = ProgressFile(path, write_seconds=0.0)
    note.start(Allocation(4, 1, job="7_2", attempt=attempt), 2, 8, "plan")
    note.write(**more)
    return note


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a history; all lines must be valid."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_earlier_attempts_are_kept_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    path, kept = tmp_path / "train.train-2.json", tmp_path / "train.train-2.history.jsonl"
    first = start(path)
    assert not kept.exists(), "there is no earlier attempt"
    first.begin("train", 0, 1)
    clock.now += 60
    first.progress(5, 10, "steps", loss=2.7)
    clock.now += 300
    start(path, 1, state="interrupted", message="it was told to end " * 100)
    clock.now += 10
    start(path, 2)
    killed, interrupted = lines(kept)
    assert killed == {
        "state": "running",
        "started": 1e9,
        "since": 1e9,
        "time": 1e9 + 60,
        "restarts": 0,
        "plan": "plan",
        "job": "7_2",
        "element": 2,
        "of": 8,
        "cpus": 4,
        "gpus": 1,
        "host": killed["host"],
    }
    assert killed["host"]
    assert (interrupted["state"], interrupted["restarts"]) == ("interrupted", 1)
    assert interrupted["message"].startswith("it was told to end it")
    now = read_status(path)
    assert (now["state"], now["restarts"], now["started"]) == ("running", 2, 1e9 + 370)
    assert (now["cpus"], now["gpus"], now["host"]) == (4, 1, killed["host"])


@pytest.mark.slow
def test_the_history_of_a_thousand_restarts_is_small(tmp_path: Path) -> None:
    path = tmp_path / "train.train-2.json"
    facts = {f"fact{i}": i for i in range(100)}
    for attempt in range(1000):
        start(path, attempt, state="interrupted", facts=facts, message="x" * 5000)
    kept = path.with_suffix(".history.jsonl")
    assert len(lines(kept)) == 999
    assert kept.stat().st_size < 500_000


def test_only_attempts_are_kept(tmp_path: Path) -> None:
    path, other = tmp_path / "train.train-2.json", tmp_path / "train.train-2.rank1"
    start(path, state="failed", busy=True)
    start(path)
    start(other)
    start(other, 1)
    path.write_text("torn {")
    start(path)
    assert [p.name for p in tmp_path.iterdir() if "history" in p.name] == []


@pytest.mark.slow
def test_waiting_for_a_lease_is_no_attempt(
    small: Callable[..., Config], prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    config = small()
    node = find(config, tmp_path, "train.train")
    assert node.items
    node.work.folder.mkdir(parents=True)
    plan = make_plan(config, tmp_path).write()
    words = [sys.executable, "-m", "jobs", "run", "train.train", f"--plan={plan}"]
    with Lease(lease_path(node.work, node.items[0]), process_label(), process_gone):
        for _ in range(2):
            done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, timeout=120)
            assert "is being worked on by" in refused(done, 2)
    folder = progress_file.logs_folder(tmp_path, config.name)
    (only,) = folder.glob("train*")
    assert only.name == "train.train-0.json"
    assert timeline(folder) is None
    content = read_status(only)
    assert (content["state"], content["plan"], content["busy"]) == ("failed", plan.stem, True)


def test_a_torn_line_damages_no_other(tmp_path: Path) -> None:
    path = tmp_path / "train.train-2.json"
    kept = path.with_suffix(".history.jsonl")
    kept.write_text('{"state": "run')
    start(path)
    start(path, 1)
    start(path, 2)
    torn, *whole = kept.read_text().splitlines()
    assert torn == '{"state": "run'
    assert [json.loads(line)["restarts"] for line in whole] == [0, 1]


def test_a_full_disk_costs_a_line_of_history_and_no_work(tmp_path: Path, mount: Mount) -> None:
    place = mount(tmp_path / "disk", "size=64k")
    path = place / "train.train-2.json"
    start(path, state="interrupted")
    with pytest.raises(OSError, match="No space"):
        (place / "all").write_bytes(bytes(1 << 20))
    start(path, 1, state="interrupted")
    assert read_status(path)["restarts"] == 1, "it is overwritten in place"
    (place / "all").unlink()
    start(path, 2)
    assert [row["restarts"] for row in lines(path.with_suffix(".history.jsonl"))] == [1]


def test_a_cleared_file_has_room_for_an_error_on_a_full_disk(tmp_path: Path, mount: Mount) -> None:
    place = mount(tmp_path / "disk", "size=64k")
    path = place / "train.train-0.json"
    for _ in range(2):  # the first time there is no file yet
        progress_file.clear(path)
        assert read_status(path) == {}
        with pytest.raises(OSError, match="No space"):
            (place / "all").write_bytes(bytes(1 << 20))
        start(path, state="failed")
        assert read_status(path)["state"] == "failed"
        (place / "all").unlink()


def test_a_plan_is_recorded_with_the_needs_of_its_steps(
    small: Callable[..., Config], tmp_path: Path
) -> None:
    plan = make_plan(small(), tmp_path)
    before = time.time()
    for _ in range(2):
        history.record_plan(plan, tmp_path / "logs")
    first, second = lines(tmp_path / "logs" / PLANS_FILE)
    assert first["plan"] == second["plan"] == plan.id
    assert before - 0.01 <= first["time"] <= second["time"] <= time.time() + 0.01
    assert list(first["steps"]) == [array.step for array in plan.arrays]
    assert first["steps"]["tokenize.seal"] == ["decompress.chunks", "tokenize.shards"]
    assert "train.train" in first["steps"]["evaluate.tuned"]


def as_if_long(path: Path) -> None:
    """Move the start of the attempt an hour back."""
    content = read_status(path)
    path.write_text(json.dumps(content | {"started": content["started"] - 3600}))


def test_a_short_attempt_does_not_count_as_idle(tmp_path: Path) -> None:
    path = tmp_path / "train.train-0.json"
    for attempt in range(3 * MAX_IDLE_RESTARTS):
        file = ProgressFile(path)
        file.start(Allocation(job="1", attempt=attempt), 0, 1)
        file.count_idle("same")
    assert read_status(path)["idle"] == 0


def test_restarts_without_progress_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "train.train-0.json"
    for attempt in range(MAX_IDLE_RESTARTS + 1):
        file = ProgressFile(path)
        file.start(Allocation(job="1", attempt=attempt), 0, 1)
        file.count_idle("same")
        assert (read_status(path)["restarts"], read_status(path)["idle"]) == (attempt, attempt)
        as_if_long(path)
    file = ProgressFile(path)
    file.start(Allocation(job="1", attempt=attempt + 1), 0, 1)
    with pytest.raises(UserError, match="without progress"):
        file.count_idle("same")
    for job, attempt, mark in (("1", 9, "another"), ("2", 0, "same"), (None, 0, "same")):
        file = ProgressFile(path)
        file.start(Allocation(job=job, attempt=attempt), 0, 1)
        file.count_idle(mark)
        assert read_status(path)["idle"] == 0


def test_the_mark_changes_with_each_commit_and_each_byte(tmp_path: Path) -> None:
    marks = [progress_mark(tmp_path)]
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "receipt.json").write_text("{}")
    marks.append(progress_mark(tmp_path))
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / ".partial-x" / "part").write_text("a")
    marks.append(progress_mark(tmp_path))
    (tmp_path / ".partial-x" / "part").write_text("ab")
    marks.append(progress_mark(tmp_path))
    assert len(set(marks)) == 4
    assert progress_mark(tmp_path) == marks[-1]
