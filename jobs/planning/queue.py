"""One look at SLURM's queue, and which of the jobs there work on which step.

Jobs of plans are known by their names, work by hand by the lease that it holds. So whoever looks,
from whatever terminal, sees the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from jobs.cluster import slurm_cli as slurm
from jobs.cluster.allocation import job_of
from jobs.cluster.slurm_cli import Job
from jobs.planning.plan import ID, Plan, read_plan
from pipeline.core.errors import InputError
from pipeline.core.lease import holder
from pipeline.core.stage import lease_path
from pipeline.dag import Node

BY_HAND = "gristmill-"  # what slurm/*.sbatch are called; an interactive job is nobody's batch job


@dataclass(frozen=True)
class Live:
    """A job that has not ended, and which of how many elements of a step it is at.

    `run`: whose plan it belongs to. `folder`: where its result goes.
    """

    job: Job
    element: int = 0
    of: int = 1
    run: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Queue:
    """All jobs of the user, and by key of their step those of plans of this root.

    `fault`: why there was none to be had.
    """

    jobs: Sequence[Job] = ()
    planned: dict[str, list[Live]] = field(default_factory=dict)
    fault: str = ""

    @property
    def running(self) -> set[str]:
        """SLURM_JOB_ID of every job that has begun and not ended."""
        return {job.number for job in self.jobs if not job.pending}

    def at(self, node: Node) -> list[Live]:
        """The jobs that work on a step."""
        same = self.planned.get(node.work.key, ())
        found = [live for live in same if live.folder == str(node.work.folder)]
        known = {live.job.number for live in found}
        for item in node.missing if node.work.step.exclusive else ():
            number = job_of(holder(lease_path(node.work, item)) or "")
            for job in self.jobs:
                if job.number == number and number not in known and job.name.startswith(BY_HAND):
                    found.append(Live(job))
        return found

    def twins(self, node: Node) -> list[Live]:
        """The jobs that compute the same for another run, which this one can adopt."""
        same = self.planned.get(node.work.key, ())
        return [live for live in same if live.folder != str(node.work.folder)]

    def waiting_for(self, ids: Iterable[str], but: Set[str]) -> dict[str, list[str]]:
        """Jobs of plans, other than those in `but`, that wait for one of these, with what for."""
        wanted = set(ids)
        found = {}
        for live in (live for lives in self.planned.values() for live in lives):
            needed = live.job.needed
            if live.job.id not in but and wanted & set(needed):
                found[live.job.id] = needed
        return found


def look(root: Path, strict: bool = True) -> Queue:
    """The queue as it is now.

    Args:
        root: The folder that holds the runs whose plans name the jobs.
        strict: Whether it is an error that SLURM does not answer.

    Raises:
        InputError: It does not.
    """
    try:
        jobs = slurm.queue()
        return Queue(jobs, recognise(root, jobs))
    except InputError as error:
        if strict:
            raise
        return Queue(fault=str(error))


def recognise(root: Path, jobs: Sequence[Job]) -> dict[str, list[Live]]:
    """Which jobs are those of plans of this root, by key of their step."""
    plans: dict[str, Plan | None] = {}
    found: dict[str, list[Live]] = {}
    for job in jobs:
        named = re.fullmatch(rf"([a-z]+\.[a-z]+)-([0-9a-f]{{{ID}}})", job.name)
        if not named:
            continue
        step, plan_id = named.groups()
        if plan_id not in plans:
            plans[plan_id] = _find_plan(root, plan_id)
        plan = plans[plan_id]
        if plan is not None:
            array = plan.array(step)
            element = array.elements[job.index or 0]
            live = Live(job, element, array.of, plan.name, array.folder)
            found.setdefault(array.key, []).append(live)
    return found


def _find_plan(root: Path, plan_id: str) -> Plan | None:
    for path in root.glob(f"runs/*/plans/{plan_id}.json"):
        return read_plan(path)
    return None
