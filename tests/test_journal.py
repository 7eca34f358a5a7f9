"""How far a task is, in its file and in its log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs import journal
from jobs.journal import Journal, pace, told


def test_the_log_says_now_and_then_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    note = Journal(tmp_path / "x.json", lines.append)
    note.begin("corpus", 0, 1)
    note.progress(0, 4_000_000_000)
    assert lines == [], "what is over soon says nothing"
    monkeypatch.setattr(journal, "TOLD_EVERY", 0.0)
    note.content["since"] = time.time() - 10
    note.progress(1_000_000_000, 4_000_000_000, documents=7)
    (line,) = lines
    assert line.startswith("corpus: 25 %, ")
    assert "MB/s, " in line
    assert line.endswith(" s left, documents 7")


def test_rate_and_time_left_count_from_where_it_went_on() -> None:
    content = {"first": 600, "done": 800, "total": 1000, "since": 100.0, "time": 110.0}
    assert pace(content) == (20.0, 10)
    assert pace({"since": 100.0, "time": 100.0}) == (0.0, None)
    assert pace({"first": 0, "done": 50, "since": 0.0, "time": 10.0}) == (5.0, None)


def test_what_is_not_known_is_not_said() -> None:
    task = {"item": "a", "done": 5, "total": None, "unit": "rows", "rate": 2.0, "eta": None}
    assert told({**task, "facts": {}}) == "a: 2 rows/s"
    assert told({**task, "rate": 0.0, "facts": {}}) == "a"
    assert told({**task, "unit": "bytes", "rate": 2.5e6, "facts": {"n": 1}}) == "a: 2.5 MB/s, n 1"
