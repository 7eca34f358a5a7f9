"""SLURM's queue, and which of its jobs work on which step.

Jobs of plans are recognized by their names, jobs submitted by hand by the lease that they hold. So
every terminal sees the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from jobs.cluster import slurm_cli
from jobs.cluster.allocation import job_of
from jobs.cluster.slurm_cli import Job
from jobs.planning.plan import ID_LENGTH, Plan, read_plan
from pipeline.core.errors import InputError
from pipeline.core.lease import holder
from pipeline.core.stage import lease_path
from pipeline.dag import Node

# the job names of slurm/*.sbatch; an interactive job must not count as one
BY_HAND_PREFIX = "gristmill-"


@dataclass(frozen=True)
class LiveJob:
    """A job that has not ended.

    Attributes:
        job: What squeue says of it.
        element: Which element of the step's array it runs.
        of: How many elements the array has.
        run: The run whose plan it belongs to; empty for a job submitted by hand.
        folder: Where its results go.
    """

    job: Job
    element: int = 0
    of: int = 1
    run: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Queue:
    """The jobs of this user.

    Attributes:
        jobs: All of them.
        planned: Those that belong to plans of this root, by the key of their step.
        error: Why SLURM did not answer; empty if it did.
    """

    jobs: Sequence[Job] = ()
    planned: dict[str, list[LiveJob]] = field(default_factory=dict)
    error: str = ""

    @property
    def running(self) -> set[str]:
        """SLURM_JOB_ID of every job that has started and not ended."""
        return {job.number for job in self.jobs if not job.pending}

    def jobs_on(self, node: Node) -> list[LiveJob]:
        """The jobs that work on a step."""
        same_key = self.planned.get(node.work.key, ())
        found = [live for live in same_key if live.folder == str(node.work.folder)]
        known = {live.job.number for live in found}
        for item in node.missing if node.work.step.leased else ():
            number = job_of(holder(lease_path(node.work, item)) or "")
            for job in self.jobs:
                by_hand = job.name.startswith(BY_HAND_PREFIX)
                if job.number == number and number not in known and by_hand:
                    found.append(LiveJob(job))
        return found

    def equivalent(self, node: Node) -> list[LiveJob]:
        """The jobs that compute the same for another run, whose result this run can adopt."""
        same_key = self.planned.get(node.work.key, ())
        return [live for live in same_key if live.folder != str(node.work.folder)]

    def dependents(self, ids: Iterable[str], exclude: Set[str]) -> dict[str, list[str]]:
        """Planned jobs that wait for one of these jobs, each with all ids it waits for.

        Args:
            ids: The jobs waited for.
            exclude: Jobs to leave out of the result.
        """
        wanted = set(ids)
        found = {}
        for live in (live for jobs in self.planned.values() for live in jobs):
            needed = live.job.needed
            if live.job.id not in exclude and wanted & set(needed):
                found[live.job.id] = needed
        return found


def read_queue(root: Path, strict: bool = True) -> Queue:
    """The queue as it is now.

    Args:
        root: The folder that holds the runs whose plans the jobs belong to.
        strict: Whether to raise if SLURM does not answer, instead of returning `Queue.error`.

    Raises:
        InputError: SLURM does not answer.
    """
    try:
        jobs = slurm_cli.list_jobs()
        return Queue(jobs, match_plans(root, jobs))
    except InputError as error:
        if strict:
            raise
        return Queue(error=str(error))


def match_plans(root: Path, jobs: Sequence[Job]) -> dict[str, list[LiveJob]]:
    """The jobs that belong to plans of this root, by the key of their step."""
    plans: dict[str, Plan | None] = {}
    found: dict[str, list[LiveJob]] = {}
    for job in jobs:
        match = re.fullmatch(rf"([a-z]+\.[a-z]+)-([0-9a-f]{{{ID_LENGTH}}})", job.name)
        if not match:
            continue
        step, plan_id = match.groups()
        if plan_id not in plans:
            plans[plan_id] = _find_plan(root, plan_id)
        plan = plans[plan_id]
        if plan is not None:
            array = plan.array(step)
            element = array.elements[job.index or 0]
            live = LiveJob(job, element, array.of, plan.name, array.folder)
            found.setdefault(array.key, []).append(live)
    return found


def _find_plan(root: Path, plan_id: str) -> Plan | None:
    for path in root.glob(f"runs/*/plans/{plan_id}.json"):
        return read_plan(path)
    return None
