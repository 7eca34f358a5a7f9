"""The only module that runs SLURM's commands, each with a time-out and one-line errors.

One `squeue` call shows what all jobs of this user are doing. Nothing polls the controller.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.core.errors import InputError

COMMAND_TIMEOUT_SECONDS = 60.0
COMPLETING_POLL_SECONDS = 2.0
SQUEUE_COLUMNS = ("%F", "%K", "%A", "%T", "%V", "%S", "%N", "%E", "%r", "%j")
FIELD_SEPARATOR = "\x1f"
# users' settings for SLURM's commands, which could hide jobs from us or change the output format
USER_VARIABLE_PREFIXES = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT")
COMPLETING = "COMPLETING"
DEPENDENCY_NEVER_SATISFIED = "DependencyNeverSatisfied"
DEFAULT_MAX_ARRAY_SIZE = 1001


@dataclass(frozen=True)
class Job:
    """A job, or one element of an array, as `squeue` shows it.

    Attributes:
        id: The id that scancel and dependencies take, as `12_3` for an element.
        array: The id of the array; of a plain job its own id.
        index: The index in the array; None for a plain job.
        number: Its SLURM_JOB_ID.
        state: As SLURM writes it, such as `PENDING`.
        name: The job's name.
        submitted: Seconds since the epoch.
        started: Seconds since the epoch; None before it starts.
        node: The nodes it runs on.
        dependency: The jobs it waits for, such as `afterok:5(unfulfilled)`.
        reason: Why it is pending.
    """

    id: str
    array: str
    index: int | None
    number: str
    state: str
    name: str
    submitted: float | None
    started: float | None
    node: str
    dependency: str
    reason: str

    @property
    def pending(self) -> bool:
        """Whether it has not started."""
        return self.state == "PENDING"

    @property
    def needed(self) -> list[str]:
        """Ids of the jobs it waits for; an array as a whole is named without an element."""
        return [str(name) for name in re.findall(r":(\d+(?:_\d+)?)", self.dependency)]


def is_installed() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def cluster_name() -> str | None:
    """The ClusterName of the cluster that this machine belongs to; None without a cluster.

    Raises:
        InputError: SLURM is installed but does not answer.
    """
    if not is_installed():
        return None
    if inside := os.environ.get("SLURM_CLUSTER_NAME"):
        return inside
    path = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    try:
        name = re.search(r"(?mi)^\s*ClusterName\s*=\s*(\S+)", path.read_text(errors="replace"))
    except OSError:
        name = None
    return name[1] if name else read_configuration().get("ClusterName")


def read_configuration() -> dict[str, str]:
    """The values of `scontrol show config`."""
    lines = (line.partition("=") for line in _run("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}


def max_array_size() -> int:
    """How many elements an array may have here; 1 where arrays are disabled."""
    value = read_configuration().get("MaxArraySize", "")
    return max(1, int(value)) if value.isdigit() else DEFAULT_MAX_ARRAY_SIZE


def list_jobs() -> list[Job]:
    """All jobs of this user that have not ended, one entry for each array element."""
    options = ("--noheader", "--array", "--all", f"--user={os.getuid()}")
    columns = FIELD_SEPARATOR.join(SQUEUE_COLUMNS)
    return parse_squeue(_run("squeue", *options, f"--format={columns}"))


def parse_squeue(text: str) -> list[Job]:
    """Parse the output of `list_jobs`' command. Job names may hold anything, even line breaks."""
    jobs = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(FIELD_SEPARATOR, len(SQUEUE_COLUMNS) - 1)]
        if len(fields) < len(SQUEUE_COLUMNS):
            continue
        array, index, number, state, submitted, started, node, dependency, reason, name = fields
        element = int(index) if index.isdigit() else None
        jobs.append(
            Job(
                id=array if element is None else f"{array}_{element}",
                array=array,
                index=element,
                number=number,
                state=state,
                name=name,
                submitted=_timestamp(submitted),
                started=_timestamp(started),
                node=node,
                dependency=dependency,
                reason=reason,
            )
        )
    return jobs


def _timestamp(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def has_ended(number: str, timeout: float = COMMAND_TIMEOUT_SECONDS) -> bool:
    """Whether one of this user's jobs has left the queue; False if SLURM does not answer.

    Waits for a job that is completing, since it may still be saving.

    Args:
        number: SLURM_JOB_ID of the job or array element.
        timeout: Seconds to wait.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            found = [job for job in list_jobs() if job.number == number]
        except InputError:
            return False
        if not found or found[0].state != COMPLETING or time.monotonic() > end:
            return not found
        time.sleep(COMPLETING_POLL_SECONDS)


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs, whether they are pending or running."""
    if ids:
        _run("scancel", *ids)


def read_accounting(ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """What `sacct` says of jobs: state, exit code and elapsed time by job id.

    Raises:
        InputError: The site has no accounting.
    """
    if not ids:
        return {}
    columns = ("JobID", "State", "ExitCode", "Elapsed")
    options = ("--noheader", "--parsable2", "--allocations", f"--format={','.join(columns)}")
    output = _run("sacct", *options, f"--jobs={','.join(ids)}")
    rows = (line.split("|") for line in output.splitlines())
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


def set_dependency(job: str, ids: Sequence[str]) -> None:
    """Let a pending job wait for these jobs instead of those that it waits for now."""
    _run("scontrol", "update", f"JobId={job}", f"Dependency=afterok:{':'.join(ids)}")


@contextmanager
def without_job_variables() -> Iterator[None]:
    """Hide the variables of an interactive job, whose memory and cores `sbatch` would inherit.

    The user's settings for `sbatch` (`SBATCH_…`), the cluster's address and its token stay. Removes
    SUBMITIT_PREEMPT_SIGNAL as well: our jobs do not handle another signal.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: value
        for name, value in os.environ.items()
        if (inside and name.startswith("SLURM_") and name not in kept)
        or name == "SUBMITIT_PREEMPT_SIGNAL"
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run(*command: str) -> str:
    """Run one of SLURM's commands; returns what it prints.

    Raises:
        InputError: The command is missing, does not answer, or fails.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith(USER_VARIABLE_PREFIXES)},
        )
    except FileNotFoundError:
        raise InputError(f"there is no {command[0]} here", "run this on a login node") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} does not answer", "try again in a minute") from None
    if done.returncode:
        *_, message = ["", *filter(None, map(str.strip, done.stderr.splitlines()))]
        reason = message.removeprefix(f"{command[0]}: ") or f"exit code {done.returncode}"
        hint = "Is a cluster configured here? PROFILE=local runs without one"
        raise InputError(f"{command[0]} failed: {reason.rstrip('.')}", hint)
    return done.stdout
