"""The output of SLURM's commands, and what happens without them."""

from __future__ import annotations

import pytest

from jobs.cluster import slurm_cli
from jobs.cluster.slurm_cli import parse_squeue
from pipeline.core.errors import InputError


def test_squeue_is_parsed_with_any_job_name() -> None:
    when = "2026-11-24T13:00:00"
    rows = [
        ("12", "3", "15", "RUNNING", when, when[:-1] + "9", "node1", "(null)", "None", "t.s-0123"),
        ("13", "N/A", "13", "PENDING", when, "N/A", "", "afterok:5(unfulfilled)", "x, | y", "a\nb"),
    ]
    first, second = parse_squeue(
        "".join(slurm_cli.FIELD_SEPARATOR.join(row) + "\n" for row in rows)
    )
    assert (first.id, first.number, first.index, first.node) == ("12_3", "15", 3, "node1")
    assert first.started is not None
    assert first.submitted is not None
    assert first.started - first.submitted == 9
    assert (second.id, second.index, second.started) == ("13", None, None)
    assert (second.reason, second.needed) == ("x, | y", ["5"])
    assert second.pending
    assert first.needed == []


def test_missing_slurm_commands_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert slurm_cli.cluster_name() is None
    with pytest.raises(InputError, match="there is no squeue here"):
        slurm_cli.list_jobs()
