"""Cancel the jobs of a run, and stop its tasks on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import slurm_cli
from jobs.cluster.allocation import pid_of, process_gone
from jobs.cluster.slurm_cli import Job
from jobs.monitoring.progress_file import FOREGROUND_FILE, logs_folder
from jobs.planning.queue import Queue
from pipeline.config import Config
from pipeline.core.task_log import RUNNING, read_status
from pipeline.dag import survey


@dataclass(frozen=True)
class Cancelled:
    """What `cancel_run` did.

    Attributes:
        ended: Ids of cancelled jobs, and of processes that were asked to stop.
        kept: Ids of jobs that stay because other runs wait for them.
    """

    ended: list[str]
    kept: list[str]


def cancel_run(config: Config, root: Path, queue: Queue | None) -> Cancelled:
    """Cancel the jobs of a run, and stop its tasks that run on this machine."""
    ids, kept = [], []
    if queue:
        live = {
            each.job.id: each.job for node in survey(config, root) for each in queue.jobs_on(node)
        }
        needed = _needed_by_others(live, queue)
        kept = sorted(needed)
        # pending jobs first, so that none starts when the job it waits for is gone
        jobs = sorted(live.values(), key=lambda job: (not job.pending, job.id))
        ids = [job.id for job in jobs if job.id not in needed]
        slurm_cli.cancel(ids)
    return Cancelled(ids + _stop_processes(config, root), kept)


def _needed_by_others(live: Mapping[str, Job], queue: Queue) -> set[str]:
    """Which of these jobs other jobs in the queue wait for, directly or indirectly."""
    planned = [each.job for jobs in queue.planned.values() for each in jobs]
    unchecked = [job for job in planned if job.id not in live]
    needed: set[str] = set()
    while unchecked:
        names = set(unchecked.pop().needed)
        for job in live.values():
            if job.id not in needed and {job.id, job.array} & names:
                needed.add(job.id)
                unchecked.append(job)
    return needed


def _stop_processes(config: Config, root: Path) -> list[str]:
    """Stop the run's foreground process, which stops its tasks; without one, stop the tasks."""
    folder = logs_folder(root, config.name)
    pids = _live_pids([folder / FOREGROUND_FILE]) or _live_pids(folder.glob("*-*.json"))
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    return [str(pid) for pid in pids]


def _live_pids(paths: Iterable[Path]) -> list[int]:
    """Process ids in progress files of tasks that run on this machine, outside SLURM."""
    contents = [read_status(path) for path in paths]
    running = [c["label"] for c in contents if c.get("state") == RUNNING and not c.get("job")]
    return [pid_of(label) for label in running if process_gone(label) is False]
