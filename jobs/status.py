"""Where a run stands, read off receipts and the small files that tasks write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.task import logs_folder, process_gone
from pipeline.config import Config
from pipeline.dag import survey


def status(config: Config, root: Path) -> dict[str, Any]:
    """Every step with its items, seconds and running tasks (rate, ETA).

    A step is `done`, `running`, `interrupted`, `failed`, `to do`, or `waiting` for those before it.
    """
    folder = logs_folder(root, config.name)
    steps = []
    for node in survey(config, root):
        name = node.work.step.name
        tasks = [_task(path) for path in sorted(folder.glob(f"{name}-*.json"))]
        running = [task for task in tasks if task["state"] == "running"]
        state = "waiting" if node.items is None else "to do"
        if tasks:
            state = max(
                (t["state"] for t in tasks), key=["done", "interrupted", "failed", "running"].index
            )
        if node.complete:
            state = "done"
        elif state == "done":
            state = "to do"
        steps.append(
            {
                "stage": node.work.step.stage,
                "step": name,
                "state": state,
                "items": None if node.items is None else len(node.items),
                "items_done": len(node.done),
                "seconds": round(sum(r.seconds for r in node.done.values()), 1),
                "message": next((t["message"] for t in tasks if t.get("message")), None)
                if state in ("failed", "interrupted")
                else None,
                "tasks": running,
                "folder": str(node.work.folder),
            }
        )
    return {"name": config.name, "root": str(root), "steps": steps}


def _task(path: Path) -> dict[str, Any]:
    try:
        content = dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        content = {}
    state = content.get("state", "interrupted")
    if state == "running" and process_gone(content.get("label", "")):
        state, content["message"] = "interrupted", "its process ended without a word"
    done, total = content.get("done", 0), content.get("total")
    spent = content.get("time", 0.0) - content.get("since", 0.0)
    rate = max(0, done - content.get("first", 0)) / spent if spent > 0 else 0.0
    return {
        "state": state,
        "message": content.get("message"),
        "item": content.get("item"),
        "done": done,
        "total": total,
        "unit": content.get("unit"),
        "facts": content.get("facts", {}),
        "rate": round(rate, 1),
        "eta": round((total - done) / rate) if total and rate else None,
    }


def table(found: dict[str, Any]) -> Table:
    """The status as a table for a terminal."""
    rows = Table(title=f"{found['name']}  ·  {found['root']}", title_justify="left", box=None)
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
            f"{step['seconds']:.1f}" if step["seconds"] else "",
            step["message"] or "  ".join(_now(task) for task in step["tasks"]),
        )
    return rows


def _now(task: dict[str, Any]) -> str:
    if not task["total"]:
        return str(task["item"] or "")
    facts = " ".join(f"{k} {v}" for k, v in task["facts"].items())
    eta = f", {task['eta']} s left" if task["eta"] is not None else ""
    return f"{task['item']}: {100 * task['done'] / task['total']:.0f} %{eta} {facts}".rstrip()
