"""The cores, GPUs and peers of a process, and the label that tells others whether it is alive."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import slurm_cli

WARNING_SECONDS = 180
FIRST_PORT = 15_000  # below the ports that operating systems assign
PORT_COUNT = 15_000
CLOCK_SKEW_SECONDS = 300  # the difference between clocks that SLURM allows
# "born": in the labels of leases that an earlier release wrote
LABEL_PATTERN = re.compile(
    r"(?:job (?P<job>\d+) of (?P<cluster>\S*), )?"
    r"process (?P<pid>\d+) of user (?P<user>\d+) on (?P<host>\S+), "
    r"(?:start tick|born) (?P<tick>\d*)"
)


@dataclass(frozen=True)
class Allocation:
    """The resources of one process, and its place among its peers.

    Attributes:
        cpus: Cores of this process.
        gpus: GPUs of this node.
        rank: Index of this process; see `pipeline.core.stage.Context`.
        local_rank: Index of this process on its node.
        world: Number of processes.
        nodes: Number of nodes that these processes run on.
        rendezvous: `host:port` of rank 0; empty for a single process.
        job: Id of the SLURM job as scancel takes it; None outside SLURM.
        attempt: How often SLURM has started this job before.
        deadline: When to stop, on the monotonic clock; None without a time limit.
        warning: Seconds before its end at which SLURM signals the job to save.
    """

    cpus: int = 1
    gpus: int = 0
    rank: int = 0
    local_rank: int = 0
    world: int = 1
    nodes: int = 1
    rendezvous: str = ""
    job: str | None = None
    attempt: int = 0
    deadline: float | None = None
    warning: int = WARNING_SECONDS

    @property
    def ends_soon(self) -> bool:
        """Whether a signal now announces the time limit, not a preemption."""
        return self.deadline is not None and self.deadline - time.monotonic() <= self.warning


def slurm_allocation(minutes: int | None = None, warning: int = WARNING_SECONDS) -> Allocation:
    """What SLURM has allocated to this process.

    Args:
        minutes: The job's time limit, for versions of SLURM that do not export it.
        warning: Seconds before its end at which SLURM signals the job to save.
    """
    array, index = _variable("SLURM_ARRAY_JOB_ID"), _variable("SLURM_ARRAY_TASK_ID")
    world = _number("SLURM_NTASKS") or 1
    return Allocation(
        cpus=_number("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0)),
        gpus=_gpu_count(),
        rank=_number("SLURM_PROCID"),
        # with --gpus-per-task each task sees only its own GPU, as device 0
        local_rank=0 if _variable("SLURM_GPUS_PER_TASK") else _number("SLURM_LOCALID"),
        world=world,
        nodes=_number("SLURM_JOB_NUM_NODES") or 1,
        rendezvous=_rendezvous() if world > 1 else "",
        job=f"{array}_{index}" if array else _variable("SLURM_JOB_ID"),
        attempt=_number("SLURM_RESTART_COUNT"),
        deadline=_deadline(minutes, warning),
        warning=warning,
    )


def _rendezvous() -> str:
    """Where the tasks meet: the first node, where srun starts, at a port derived from the job id.

    The host is an address, because not every site resolves the names of its nodes.
    """
    address = _variable("SLURM_LAUNCH_NODE_IPADDR") or _variable("SLURM_SRUN_COMM_HOST")
    return f"{address or '127.0.0.1'}:{FIRST_PORT + _number('SLURM_JOB_ID') % PORT_COUNT}"


def _deadline(minutes: int | None, warning: int) -> float | None:
    """When to stop if SLURM's signal gets lost: half the warning's time before the end."""
    end, start = _number("SLURM_JOB_END_TIME"), _number("SLURM_JOB_START_TIME")
    # these come from another host's clock; if ours does not lie between them, use their difference
    if end and (not start or start - CLOCK_SKEW_SECONDS <= time.time() <= end):
        return time.monotonic() + end - time.time() - warning / 2
    if end:
        return time.monotonic() + end - start - warning / 2
    return time.monotonic() + minutes * 60 - warning / 2 if minutes else None


def _gpu_count() -> int:
    """GPUs of this node that this job may use, of any vendor."""
    if count := _number("SLURM_GPUS_ON_NODE"):
        return count
    names = ("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    visible = next((value for name in names if (value := _variable(name))), "")
    return visible_gpus(visible)


def visible_gpus(value: str) -> int:
    """GPUs in the value of CUDA_VISIBLE_DEVICES or a variable like it."""
    return len([device for device in value.split(",") if device.strip() not in ("", "-1")])


def _variable(name: str) -> str | None:
    return os.environ.get(name) or None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 0


def process_label() -> str:
    """A label for this process that no later process will have."""
    job, pid = _variable("SLURM_JOB_ID"), os.getpid()
    inside = f"job {job} of {_variable('SLURM_CLUSTER_NAME') or ''}, " if job else ""
    return f"{inside}process {pid} of user {os.getuid()} on {host()}, start tick {_start_tick(pid)}"


def process_gone(label: str) -> bool | None:
    """Whether the process of a label has ended; None if that cannot be decided here.

    On the same host /proc decides. On another host the process has ended if its SLURM job has left
    the queue, or is our own job: that one was requeued. A live job says nothing about its
    processes, and the jobs and processes of other users may be hidden from us.
    """
    match = LABEL_PATTERN.fullmatch(label)
    if not match or int(match["user"]) != os.getuid():
        return None
    if match["host"] == host():
        return _start_tick(int(match["pid"])) != match["tick"]
    job = match["job"]
    if not job or not slurm_cli.is_installed() or match["cluster"] != slurm_cli.cluster_name():
        return None
    return True if job == _variable("SLURM_JOB_ID") or slurm_cli.has_ended(job) else None


def job_of(label: str) -> str | None:
    """SLURM_JOB_ID of the process behind a label; None outside a job."""
    match = LABEL_PATTERN.fullmatch(label)
    return match["job"] if match else None


def pid_of(label: str) -> int:
    """Process id in a label of `process_label`."""
    match = LABEL_PATTERN.fullmatch(label)
    assert match
    return int(match["pid"])


def host() -> str:
    """The name of this node. Nodes may share a host, as in the test cluster."""
    return _variable("SLURMD_NODENAME") or socket.gethostname()


def _start_tick(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
