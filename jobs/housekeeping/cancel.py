"""Ending a run's jobs and tasks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import slurm_cli as slurm
from jobs.cluster.allocation import pid_of, process_gone
from jobs.cluster.slurm_cli import Job
from jobs.monitoring import progress_file as journal
from jobs.monitoring.progress_file import FOREGROUND
from jobs.planning.queue import Queue
from pipeline.config import Config
from pipeline.core.task_log import read_status
from pipeline.dag import survey


@dataclass(frozen=True)
class Cancelled:
    """What was ended, and which jobs were `kept` because other runs wait for them."""

    ended: list[str]
    kept: list[str]


def cancel_run(config: Config, root: Path, queue: Queue | None) -> Cancelled:
    """Cancel the jobs of a run and stop what of it runs on this machine."""
    ids, kept = [], []
    if queue:
        live = {each.job.id: each.job for node in survey(config, root) for each in queue.at(node)}
        needed = _needed_by_others(live, queue)
        kept = sorted(needed)
        # those that wait go first, so that none starts when what it waits for is gone
        jobs = sorted(live.values(), key=lambda job: (not job.pending, job.id))
        ids = [job.id for job in jobs if job.id not in needed]
        slurm.cancel(ids)
    return Cancelled(ids + _stop_here(config, root), kept)


def _needed_by_others(live: Mapping[str, Job], queue: Queue) -> set[str]:
    """Which of these jobs others of the queue wait for, and what those wait for."""
    others = [each.job for lives in queue.planned.values() for each in lives]
    asked = [job for job in others if job.id not in live]
    needed: set[str] = set()
    while asked:
        named = set(asked.pop().needed)
        for job in live.values():
            if job.id not in needed and {job.id, job.array} & named:
                needed.add(job.id)
                asked.append(job)
    return needed


def _stop_here(config: Config, root: Path) -> list[str]:
    """Stop the run on this machine: what looks after its tasks, if that is there, stops them."""
    folder = journal.logs_folder(root, config.name)
    alive = _alive([folder / FOREGROUND]) or _alive(folder.glob("*-*.json"))
    for pid in alive:
        os.kill(pid, signal.SIGTERM)
    return [str(pid) for pid in alive]


def _alive(paths: Iterable[Path]) -> list[int]:
    """Process ids behind journals of tasks that run on this machine, outside of SLURM."""
    contents = [read_status(path) for path in paths]
    running = [c["label"] for c in contents if c.get("state") == "running" and not c.get("job")]
    return [pid_of(label) for label in running if process_gone(label) is False]
