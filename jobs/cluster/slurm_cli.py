"""SLURM's commands, called from here only, each with a time-out and its errors told in one line.

One `squeue` call answers what all jobs of this user are doing. Nothing polls: whoever wants to know
asks once.
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

PATIENCE = 60.0
COLUMNS = ("%F", "%K", "%A", "%T", "%V", "%S", "%N", "%E", "%r", "%j")
BETWEEN = "\x1f"
# what a user has set for SLURM's commands would hide jobs from us, or change how they are shown
THEIRS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT")
ENDING = "COMPLETING"
NEVER = "DependencyNeverSatisfied"
MAX_ARRAY = 1001


@dataclass(frozen=True)
class Job:
    """A job, or one element of an array, as `squeue` shows it.

    `id`: as scancel and dependencies take it. `array`, `index`: of an array's element; a plain
    job's own id, and None. `number`: its SLURM_JOB_ID. `submitted`, `started`: seconds since the
    epoch, None if not yet. `dependency`: what it waits for, as `afterok:5(unfulfilled)`.
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
        """Whether it has not begun."""
        return self.state == "PENDING"

    @property
    def needed(self) -> list[str]:
        """Ids of the jobs it waits for; those of whole arrays without an element."""
        found = re.findall(r":(\d+(?:_\d+)?)", self.dependency)
        return [str(name) for name in found]


def present() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def cluster_name() -> str | None:
    """The ClusterName of the cluster that this machine belongs to; None if to none.

    Raises:
        InputError: There should be one, but it does not answer.
    """
    if not present():
        return None
    if inside := os.environ.get("SLURM_CLUSTER_NAME"):
        return inside
    path = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    try:
        said = re.search(r"(?mi)^\s*ClusterName\s*=\s*(\S+)", path.read_text(errors="replace"))
    except OSError:
        said = None
    return said[1] if said else configuration().get("ClusterName")


def configuration() -> dict[str, str]:
    """What `scontrol show config` says."""
    lines = (line.partition("=") for line in _ask("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}


def longest_array() -> int:
    """How many elements an array may have here; where there are no arrays, 1."""
    said = configuration().get("MaxArraySize", "")
    return max(1, int(said)) if said.isdigit() else MAX_ARRAY


def queue() -> list[Job]:
    """All jobs of this user that have not ended, elements of arrays one by one."""
    words = ("--noheader", "--array", "--all", f"--user={os.getuid()}")
    return parse(_ask("squeue", *words, f"--format={BETWEEN.join(COLUMNS)}"))


def parse(text: str) -> list[Job]:
    """The lines of `squeue --array --format=…`. Names may hold anything, also line ends."""
    jobs = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(BETWEEN, len(COLUMNS) - 1)]
        if len(fields) < len(COLUMNS):
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
                submitted=_moment(submitted),
                started=_moment(started),
                node=node,
                dependency=dependency,
                reason=reason,
            )
        )
    return jobs


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def ended(number: str, patience: float = PATIENCE) -> bool:
    """Whether one of this user's jobs is known to have left the queue.

    A job that is just ending is waited for: it may be saving.

    Args:
        number: SLURM_JOB_ID of the job or the array's element.
        patience: Seconds to wait.
    """
    end = time.monotonic() + patience
    while True:
        try:
            found = [job for job in queue() if job.number == number]
        except InputError:
            return False
        if not found or found[0].state != ENDING or time.monotonic() > end:
            return not found
        time.sleep(2.0)


def cancel(ids: Sequence[str]) -> None:
    """Take jobs out of the queue, or stop them."""
    if ids:
        _ask("scancel", *ids)


def accounting(ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """What `sacct` has kept of jobs: state, exit code, elapsed time, by id.

    Raises:
        InputError: The site keeps no accounts.
    """
    if not ids:
        return {}
    columns = ("JobID", "State", "ExitCode", "Elapsed")
    words = ("--noheader", "--parsable2", "--allocations", f"--format={','.join(columns)}")
    said = _ask("sacct", *words, f"--jobs={','.join(ids)}")
    rows = (line.split("|") for line in said.splitlines())
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


def wait_for_others(job: str, ids: Sequence[str]) -> None:
    """Let a job that waits already wait for these jobs instead."""
    _ask("scontrol", "update", f"JobId={job}", f"Dependency=afterok:{':'.join(ids)}")


@contextmanager
def outside_of_a_job() -> Iterator[None]:
    """Take away what an interactive job has set: `sbatch` would take its memory and cores for ours.

    What the user set for `sbatch` (`SBATCH_…`), the way to the cluster and its token stay. So does
    not another signal for submitit, which our jobs would not listen to.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    inside = "SLURM_JOB_ID" in os.environ
    ours = {
        name: value
        for name, value in os.environ.items()
        if (inside and name.startswith("SLURM_") and name not in kept)
        or name == "SUBMITIT_PREEMPT_SIGNAL"
    }
    for name in ours:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(ours)


def _ask(*words: str) -> str:
    """Run a command of SLURM's and give back what it prints.

    Raises:
        InputError: It is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith(THEIRS)},
        )
    except FileNotFoundError:
        raise InputError(f"there is no {words[0]} here", "run this on a login node") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{words[0]} does not answer", "try again in a minute") from None
    if done.returncode:
        *_, said = ["", *filter(None, map(str.strip, done.stderr.splitlines()))]
        what = said.removeprefix(f"{words[0]}: ") or f"it ended with {done.returncode}"
        hint = "Is a cluster configured here? PROFILE=local does without"
        raise InputError(f"{words[0]} says: {what.rstrip('.')}", hint)
    return done.stdout
