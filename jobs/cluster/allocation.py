"""What a process was given to work with, and the name by which others know whether it lives."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import slurm_cli as slurm

WARNING = 180
PORTS = 15000
SKEW = 300  # seconds by which SLURM lets clocks differ
LABEL = re.compile(
    r"(?:job (?P<job>\d+) of (?P<cluster>\S*), )?"
    r"process (?P<pid>\d+) of user (?P<user>\d+) on (?P<host>\S+), born (?P<born>\d*)"
)


@dataclass(frozen=True)
class Allocation:
    """Cores, GPUs and place among its peers of one process; see `pipeline.core.stage.Context`.

    `nodes`: on which its peers are. `rendezvous`: host:port where rank 0 is met; empty where there
    is one process. `job`: id of the SLURM job as scancel takes it, None outside. `attempt`: how
    often SLURM has started it before. `deadline`: on the monotonic clock, None if there is none.
    `warning`: seconds before its end at which SLURM tells the job to save.
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
    warning: int = WARNING

    @property
    def ends_soon(self) -> bool:
        """Whether a warning now is of the time limit, not of a preemption."""
        return self.deadline is not None and self.deadline - time.monotonic() <= self.warning


def of_slurm(minutes: int | None = None, warning: int = WARNING) -> Allocation:
    """What SLURM has given to this process.

    Args:
        minutes: The job's time limit, for versions of SLURM that do not tell.
        warning: How many seconds before its end SLURM tells the job to save.
    """
    array, index = _said("SLURM_ARRAY_JOB_ID"), _said("SLURM_ARRAY_TASK_ID")
    world = _number("SLURM_NTASKS") or 1
    return Allocation(
        cpus=_number("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0)),
        gpus=_gpus(),
        rank=_number("SLURM_PROCID"),
        # with --gpus-per-task each task sees its own GPU only, as the first
        local_rank=0 if _said("SLURM_GPUS_PER_TASK") else _number("SLURM_LOCALID"),
        world=world,
        nodes=_number("SLURM_JOB_NUM_NODES") or 1,
        rendezvous=_rendezvous() if world > 1 else "",
        job=f"{array}_{index}" if array else _said("SLURM_JOB_ID"),
        attempt=_number("SLURM_RESTART_COUNT"),
        deadline=_deadline(minutes, warning),
        warning=warning,
    )


def _rendezvous() -> str:
    """Where the tasks meet: on the node of the first, where srun starts, at a port of this job.

    The address and not the name, which is not known everywhere; a port below those that systems
    give out.
    """
    host = _said("SLURM_LAUNCH_NODE_IPADDR") or _said("SLURM_SRUN_COMM_HOST") or "127.0.0.1"
    return f"{host}:{PORTS + _number('SLURM_JOB_ID') % PORTS}"


def _deadline(minutes: int | None, warning: int) -> float | None:
    """Half the warning's time before the end, should the signal be lost."""
    end, start = _number("SLURM_JOB_END_TIME"), _number("SLURM_JOB_START_TIME")
    # those are of another host's clock: where ours is not between them, only their distance counts
    if end and (not start or start - SKEW <= time.time() <= end):
        return time.monotonic() + end - time.time() - warning / 2
    if end:
        return time.monotonic() + end - start - warning / 2
    return time.monotonic() + minutes * 60 - warning / 2 if minutes else None


def _gpus() -> int:
    """GPUs of this node that are ours, whoever made them."""
    if told := _number("SLURM_GPUS_ON_NODE"):
        return told
    names = ("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    visible = next((value for name in names if (value := _said(name))), "")
    return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])


def _said(name: str) -> str | None:
    return os.environ.get(name) or None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 0


def process_label() -> str:
    """A name for this process that no later one will have."""
    job, pid = _said("SLURM_JOB_ID"), os.getpid()
    inside = f"job {job} of {_said('SLURM_CLUSTER_NAME') or ''}, " if job else ""
    return f"{inside}process {pid} of user {os.getuid()} on {host()}, born {_born(pid)}"


def process_gone(label: str) -> bool | None:
    """Whether the process of a label has ended; None if that cannot be known from here.

    On its host /proc tells. Elsewhere it has ended if its SLURM job has left the queue, or is the
    one that we are: a job that SLURM starts again ran before. That a job lives says nothing of its
    processes; other users' jobs and processes may be hidden from us.
    """
    found = LABEL.fullmatch(label)
    if not found or int(found["user"]) != os.getuid():
        return None
    if found["host"] == host():
        return _born(int(found["pid"])) != found["born"]
    job = found["job"]
    if not job or not slurm.present() or found["cluster"] != slurm.cluster_name():
        return None
    return True if job == _said("SLURM_JOB_ID") or slurm.ended(job) else None


def job_of(label: str) -> str | None:
    """SLURM_JOB_ID of the process behind a label; None if it is not one of a job."""
    found = LABEL.fullmatch(label)
    return found["job"] if found else None


def pid_of(label: str) -> int:
    """Process id behind a label of `process_label`."""
    found = LABEL.fullmatch(label)
    assert found
    return int(found["pid"])


def host() -> str:
    """This node's name: several may share a host's, as those of the test cluster do."""
    return _said("SLURMD_NODENAME") or socket.gethostname()


def _born(pid: int) -> str:
    """Start time of a process, in clock ticks since boot; empty if there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
