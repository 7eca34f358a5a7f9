"""Where a run stands: receipts, the small files that tasks write, and one look at the queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from jobs.cluster.allocation import job_of, process_gone
from jobs.cluster.slurm_cli import NEVER, Job, accounting
from jobs.monitoring import progress_file as journal
from jobs.monitoring.logs import find_logs
from jobs.planning.queue import Queue
from pipeline.config import Config
from pipeline.core.task_log import read_status
from pipeline.dag import Node, survey

HELD = "it is held: see why, then scontrol release"
ADVICE = {NEVER: "what it waits for failed: run make pipeline again"}


def survey_run(
    config: Config,
    root: Path,
    queue: Queue | None = None,
) -> dict[str, Any]:
    """Every step with its items, units, seconds, tasks that run (rows, bytes, MB/s, ETA), and jobs.

    A step is `done`, `running`, `queued`, `interrupted`, `failed`, `to do`, or `waiting` for those
    before it.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        queue: A look at SLURM's queue; None where plans do not go there.
    """
    folder = journal.logs_folder(root, config.name)
    known = queue is not None and not queue.fault
    numbers = queue.running if queue and known else None
    steps = []
    for node in survey(config, root):
        paths = sorted(folder.glob(f"{node.work.step.name}-*.json"))
        tasks = [_task(read_status(path), numbers) for path in paths]
        jobs = [live.job for live in queue.at(node)] if queue else []
        steps.append(_step(node, tasks, jobs))
    return {"name": config.name, "root": str(root), "steps": steps}


def accounted(config: Config, root: Path) -> dict[str, dict[str, str]]:
    """What SLURM's accounting has of the jobs that wrote this run's logs, by id.

    Raises:
        InputError: The site keeps no accounts.
    """
    found = (path.name.rsplit("_", 2)[0] for path in find_logs(root, config.name))
    return accounting(sorted({name for name in found if name[0].isdigit()}))


def _step(node: Node, tasks: list[dict[str, Any]], jobs: list[Job]) -> dict[str, Any]:
    running = [task for task in tasks if task["state"] == "running"]
    state = _state(node, tasks, jobs)
    said = [task["message"] for task in tasks if task["message"]]
    ended_badly = state in ("failed", "interrupted")
    return {
        "stage": node.work.step.stage,
        "step": node.work.step.name,
        "state": state,
        "items": None if node.items is None else len(node.items),
        "items_done": len(node.done),
        "units": sum(1 for _ in node.work.folder.glob("*/receipt.json")),
        "seconds": round(sum(r.facts.get("seconds", r.seconds) for r in node.done.values()), 1),
        "requeues": sum(task["restarts"] for task in tasks),
        "message": said[0] if said and ended_badly else None,
        "tasks": running,
        "jobs": [_job(job) for job in jobs],
        "folder": str(node.work.folder),
    }


def _state(node: Node, tasks: list[dict[str, Any]], jobs: list[Job]) -> str:
    if node.complete:
        return "done"
    states = {task["state"] for task in tasks}
    if "running" in states or any(not job.pending for job in jobs):
        return "running"
    if jobs:
        return "queued"
    for state in ("failed", "interrupted"):
        if state in states:
            return state
    return "waiting" if node.items is None else "to do"


def _job(job: Job) -> dict[str, Any]:
    began = job.started if not job.pending else None
    waited = max(0.0, (began or time.time()) - job.submitted) if job.submitted else None
    return {
        "id": job.id,
        "state": job.state,
        "reason": job.reason if job.pending else None,
        "advice": _advice(job.reason) if job.pending else None,
        "queue_seconds": round(waited) if waited is not None else None,
        "run_seconds": max(0, round(time.time() - began)) if began else 0,
        "node": job.node or None,
    }


def _advice(reason: str) -> str | None:
    return HELD if "held" in reason.lower() else ADVICE.get(reason)


def _task(content: dict[str, Any], numbers: set[str] | None) -> dict[str, Any]:
    """A task as its journal says; one whose process is gone without a word was interrupted."""
    state, message = content.get("state", "interrupted"), content.get("message")
    if state == "running" and _gone(content.get("label", ""), numbers):
        state, message = "interrupted", "its process ended without a word"
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
        **journal.speed(content),
    }


def _gone(label: str, numbers: set[str] | None) -> bool:
    """Whether the process of a label has ended, by the look at the queue that was had already."""
    job = job_of(label)
    if job is None:
        return bool(process_gone(label))
    return numbers is not None and job not in numbers


def table(found: dict[str, Any]) -> Table:
    """The status as a table for a terminal."""
    title = escape(f"{found['name']}  ·  {found['root']}")
    rows = Table(title=title, title_justify="left", box=None)
    for column in ("stage", "step", "state", "items", "seconds", "now"):
        rows.add_column(column, justify="right" if column in ("items", "seconds") else "left")
    colours = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}
    for step in found["steps"]:
        items = "?" if step["items"] is None else f"{step['items_done']}/{step['items']}"
        colour = colours.get(step["state"], "dim")
        rows.add_row(
            step["stage"],
            step["step"].split(".")[1],
            f"[{colour}]{step['state']}[/]",
            items,
            f"{step['seconds']:.1f}" if step["items_done"] else "",
            escape(now(step)),
        )
    return rows


def now(step: dict[str, Any]) -> str:
    """What is going on in a step, in a few words."""
    tasks = "\n".join(filter(None, map(journal.told, step["tasks"])))  # a line each
    words = [step["message"] or tasks]
    pending = [job for job in step["jobs"] if job["state"] == "PENDING"]
    if step["jobs"]:
        first = step["jobs"][0]["id"].partition("_")[0]
        more = f" ({len(pending)} of {len(step['jobs'])} pending)" if len(step["jobs"]) > 1 else ""
        words.append(f"job {first}{more}")
    if pending:
        words.append(pending[0]["advice"] or pending[0]["reason"])
    if step["requeues"]:
        words.append(f"requeued {step['requeues']}×")
    return "; ".join(word for word in words if word)
