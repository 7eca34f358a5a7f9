"""The status of a run, from receipts, progress files and one look at the queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from jobs.cluster.allocation import job_of, process_gone
from jobs.cluster.slurm_cli import DEPENDENCY_NEVER_SATISFIED, Job, read_accounting
from jobs.monitoring import progress_file
from jobs.monitoring.logs import find_logs
from jobs.planning.queue import Queue
from pipeline.config import Config
from pipeline.core.task_log import FAILED, INTERRUPTED, RUNNING, read_status
from pipeline.dag import Node, survey

HELD_ADVICE = "it is held: find out why, then run scontrol release"
ADVICE = {DEPENDENCY_NEVER_SATISFIED: "what it waits for has failed: run make pipeline again"}
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


def survey_run(config: Config, root: Path, queue: Queue | None = None) -> dict[str, Any]:
    """Describe every step: state, items, units, seconds, running tasks with their speed, jobs.

    A step is `done`, `running`, `queued`, `interrupted`, `failed`, `to do`, or `waiting` for the
    steps before it.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        queue: SLURM's queue; None if plans do not go there.
    """
    folder = progress_file.logs_folder(root, config.name)
    known = queue is not None and not queue.error
    running = queue.running if queue and known else None
    steps = []
    for node in survey(config, root):
        paths = sorted(folder.glob(f"{node.work.step.name}-*.json"))
        tasks = [_task(read_status(path), running) for path in paths]
        jobs = [live.job for live in queue.jobs_on(node)] if queue else []
        steps.append(_step(node, tasks, jobs))
    return {"name": config.name, "root": str(root), "steps": steps}


def run_accounting(config: Config, root: Path) -> dict[str, dict[str, str]]:
    """What SLURM's accounting says of the jobs that wrote this run's logs, by job id.

    Raises:
        InputError: The site has no accounting.
    """
    names = (path.name.rsplit("_", 2)[0] for path in find_logs(root, config.name))
    return read_accounting(sorted({name for name in names if name[0].isdigit()}))


def _step(node: Node, tasks: list[dict[str, Any]], jobs: list[Job]) -> dict[str, Any]:
    running = [task for task in tasks if task["state"] == RUNNING]
    state = _state(node, tasks, jobs)
    messages = [task["message"] for task in tasks if task["message"]]
    ended_badly = state in (FAILED, INTERRUPTED)
    return {
        "stage": node.work.step.stage,
        "step": node.work.step.name,
        "state": state,
        "items": None if node.items is None else len(node.items),
        "items_done": len(node.done),
        "units": sum(1 for _ in node.work.folder.glob("*/receipt.json")),
        "seconds": round(sum(r.facts.get("seconds", r.seconds) for r in node.done.values()), 1),
        "requeues": sum(task["restarts"] for task in tasks),
        "message": messages[0] if messages and ended_badly else None,
        "tasks": running,
        "jobs": [_job(job) for job in jobs],
        "folder": str(node.work.folder),
    }


def _state(node: Node, tasks: list[dict[str, Any]], jobs: list[Job]) -> str:
    if node.complete:
        return "done"
    states = {task["state"] for task in tasks}
    if RUNNING in states or any(not job.pending for job in jobs):
        return RUNNING
    if jobs:
        return "queued"
    for state in (FAILED, INTERRUPTED):
        if state in states:
            return state
    return "waiting" if node.items is None else "to do"


def _job(job: Job) -> dict[str, Any]:
    started = job.started if not job.pending else None
    waited = max(0.0, (started or time.time()) - job.submitted) if job.submitted else None
    return {
        "id": job.id,
        "state": job.state,
        "reason": job.reason if job.pending else None,
        "advice": _advice(job.reason) if job.pending else None,
        "queue_seconds": round(waited) if waited is not None else None,
        "run_seconds": max(0, round(time.time() - started)) if started else 0,
        "node": job.node or None,
    }


def _advice(reason: str) -> str | None:
    return HELD_ADVICE if "held" in reason.lower() else ADVICE.get(reason)


def _task(content: dict[str, Any], running: set[str] | None) -> dict[str, Any]:
    """A task as its progress file describes it; interrupted if its process has vanished."""
    state, message = content.get("state", INTERRUPTED), content.get("message")
    if state == RUNNING and _has_ended(content.get("label", ""), running):
        state, message = INTERRUPTED, "its process ended without a message"
    return {
        "state": state,
        "message": message,
        "element": content.get("element"),
        "job": content.get("job"),
        "restarts": content.get("restarts", 0),
        "item": content.get("item"),
        "done": content.get("done", 0),
        "total": content.get("total"),
        "unit": content.get("unit"),
        "facts": content.get("facts", {}),
        **progress_file.speed(content),
    }


def _has_ended(label: str, running: set[str] | None) -> bool:
    """Whether the process of a label has ended, according to the queue that was read already."""
    job = job_of(label)
    if job is None:
        return bool(process_gone(label))
    return running is not None and job not in running


def status_table(status: dict[str, Any]) -> Table:
    """The result of `survey_run` as a table for a terminal."""
    title = escape(f"{status['name']}  ·  {status['root']}")
    table = Table(title=title, title_justify="left", box=None)
    for column in ("stage", "step", "state", "items", "seconds", "now"):
        table.add_column(column, justify="right" if column in ("items", "seconds") else "left")
    for step in status["steps"]:
        items = "?" if step["items"] is None else f"{step['items_done']}/{step['items']}"
        colour = COLOURS.get(step["state"], "dim")
        table.add_row(
            step["stage"],
            step["step"].split(".")[1],
            f"[{colour}]{step['state']}[/]",
            items,
            f"{step['seconds']:.1f}" if step["items_done"] else "",
            escape(describe_step(step)),
        )
    return table


def describe_step(step: dict[str, Any]) -> str:
    """What a step is doing, in a few words; each running task has a line of its own."""
    tasks = "\n".join(filter(None, map(progress_file.describe, step["tasks"])))
    parts = [step["message"] or tasks]
    pending = [job for job in step["jobs"] if job["state"] == "PENDING"]
    if step["jobs"]:
        first = step["jobs"][0]["id"].partition("_")[0]
        count = f" ({len(pending)} of {len(step['jobs'])} pending)" if len(step["jobs"]) > 1 else ""
        parts.append(f"job {first}{count}")
    if pending:
        parts.append(pending[0]["advice"] or pending[0]["reason"])
    if step["requeues"]:
        parts.append(f"requeued {step['requeues']}×")
    return "; ".join(part for part in parts if part)
