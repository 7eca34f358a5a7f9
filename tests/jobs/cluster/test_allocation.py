"""The allocation of a process, and whether other processes are alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cluster import allocation, slurm_cli
from jobs.cluster.allocation import (
    Allocation,
    job_of,
    pid_of,
    process_gone,
    process_label,
    slurm_allocation,
)
from jobs.monitoring.progress_file import MAX_IDLE_RESTARTS, ProgressFile, progress_mark
from jobs.planning.snapshot import record_changes, source_folder, take
from pipeline.core.errors import UserError
from pipeline.core.task_log import read_status

HERE = Path(__file__).parents[3]
JOB = {
    "SLURM_JOB_ID": "107",
    "SLURM_ARRAY_JOB_ID": "100",
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_CPUS_PER_TASK": "3",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_RESTART_COUNT": "4",
    "CUDA_VISIBLE_DEVICES": "0,1",
}


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("in_a_job")
def test_the_allocation_is_read_from_slurms_variables() -> None:
    given = slurm_allocation()
    assert (given.job, given.cpus, given.gpus, given.attempt) == ("100_7", 3, 2, 4)
    assert (given.rank, given.local_rank, given.world) == (1, 1, 2)
    assert given.deadline is None
    assert given.rendezvous == "127.0.0.1:15107"


@pytest.mark.usefixtures("in_a_job")
def test_rendezvous_is_on_the_first_node_and_each_task_has_its_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.1.2.3")
    monkeypatch.setenv("SLURM_JOB_ID", "65000003")
    assert slurm_allocation().rendezvous == "10.1.2.3:20003"
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert (slurm_allocation().rank, slurm_allocation().local_rank) == (1, 0), (
        "it sees one, the first"
    )
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert slurm_allocation().rendezvous == ""


def test_the_deadline_comes_from_slurm_or_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    assert slurm_allocation(10).deadline == pytest.approx(
        now + 600 - allocation.WARNING_SECONDS / 2, abs=5
    )
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 300))
    assert slurm_allocation(10).deadline == pytest.approx(
        now + 300 - allocation.WARNING_SECONDS / 2, abs=5
    )


def test_process_gone_knows_live_and_ended_processes() -> None:
    assert process_gone(process_label()) is False
    assert pid_of(process_label()) == os.getpid()
    code = "from jobs.cluster.allocation import process_label as p; print(p())"
    label = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source_folder(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert process_gone(label) is True
    assert process_gone("what is this?") is None


@pytest.mark.usefixtures("in_a_job")
def test_a_process_on_another_host_is_judged_by_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_of(process_label()) == "107"
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setattr(slurm_cli, "is_installed", lambda: True)
    user = f"process 5 of user {os.getuid()} on elsewhere, born 9"
    for ended, known in ((True, True), (False, None)):
        monkeypatch.setattr(slurm_cli, "has_ended", lambda job, answer=ended: answer)
        assert process_gone(f"job 106 of c, {user}") is known
        assert process_gone(f"job 107 of c, {user}") is True, (
            "our own job: that process is from an earlier attempt"
        )
        assert process_gone(f"job 106 of other, {user}") is None
        assert process_gone("job 106 of c, process 5 of user 77 on elsewhere, born 9") is None
        assert process_gone(user) is None


def test_gpus_of_any_vendor_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, count in (
        ("ROCR_VISIBLE_DEVICES", "0,1", 2),
        ("CUDA_VISIBLE_DEVICES", "-1", 0),
        ("SLURM_JOB_GPUS", "3", 1),
        ("SLURM_GPUS_ON_NODE", "4", 4),
    ):
        monkeypatch.setenv(name, value)
        assert slurm_allocation().gpus == count


def test_a_signal_near_the_end_announces_the_time_limit() -> None:
    assert slurm_allocation(4, warning=180).ends_soon
    assert not slurm_allocation(20, warning=180).ends_soon
    assert not slurm_allocation().ends_soon


def as_if_long(path: Path) -> None:
    """Move the start of the attempt an hour back."""
    content = read_status(path)
    path.write_text(json.dumps(content | {"started": content["started"] - 3600}))


def test_a_signal_during_exit_is_ignored() -> None:
    """At exit Python restores the default signal handlers."""
    program = """
import os, signal
from jobs.running.stage_job import install_stop

class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGUSR2):
        kill(me, number)

late = Late()
{install_stop}
"""
    ends = {}
    for line in ("signal.signal(signal.SIGUSR2, print)", "install_stop(None)"):
        words = [sys.executable, "-c", program.format(install_stop=line)]
        ends[line] = subprocess.run(words, cwd=HERE, timeout=60).returncode
    assert list(ends.values()) == [-signal.SIGUSR2, 0]


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


def test_a_snapshot_is_the_code_and_reports_its_version(tmp_path: Path) -> None:
    from pipeline.core import provenance

    folder = take(tmp_path)
    assert take(tmp_path) == folder
    assert [path.name for path in (tmp_path / "code").iterdir()] == [folder.name]
    code = (
        "import jobs.running.task, pipeline\n"
        "from pipeline.core.provenance import code_version\n"
        "print(jobs.running.task.__file__, pipeline.__file__, code_version())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source_folder(),
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    version = provenance.code_version()
    assert told == [f"{folder}/jobs/running/task.py", f"{folder}/pipeline/__init__.py", version]


def test_uncommitted_changes_are_recorded_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.core import provenance

    monkeypatch.setattr(provenance, "TOP", tmp_path / "tree")
    assert record_changes(tmp_path / "run") == provenance.code_version()
    assert not (tmp_path / "run" / "code").exists()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("one\n")
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    clean = record_changes(tmp_path / "run")
    assert len(clean) == 12
    (tree / "a.py").write_text("two\n")
    version = record_changes(tmp_path / "run")
    assert version.startswith(clean + "+")
    diff = (tmp_path / "run" / "code" / f"{version}.diff").read_text()
    assert "-one\n+two\n" in diff
    (tree / "mine.yaml").write_text("urls: [https://x/a.csv?token=s3cret]\n")
    diff = (tmp_path / "run" / "code" / f"{record_changes(tmp_path / 'run')}.diff").read_text()
    assert "https://x/a.csv?…]" in diff
    assert "s3cret" not in diff
