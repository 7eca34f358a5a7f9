"""The allocation of a process, and whether other processes are alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cluster import allocation, slurm_cli
from jobs.cluster.allocation import (
    job_of,
    pid_of,
    process_gone,
    process_label,
    slurm_allocation,
)
from jobs.planning.snapshot import source_folder

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
