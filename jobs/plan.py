"""What is still to do, as arrays: a step, and among how many tasks its items are shared.

The number of tasks is a number of the configuration, so every array is known before the data is;
element r of n takes every n-th item. A plan is a file named by its content and never changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.dag import Node, survey
from pipeline.files import write_text
from pipeline.receipt import hash_json
from pipeline.stage import Step


@dataclass(frozen=True)
class Array:
    """A step to run. `todo` is None while its items are not known yet."""

    stage: str
    step: str
    tasks: int
    items: int | None
    todo: int | None


@dataclass(frozen=True)
class Plan:
    """The arrays of a run in order; each needs all before it."""

    name: str
    root: str
    arrays: list[Array]

    def write(self) -> Path:
        """Put the plan into the run's folder."""
        content = asdict(self)
        path = Path(self.root) / "runs" / self.name / "plans" / f"{hash_json(content)[:12]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
        return path


def make_plan(config: Config, root: Path) -> Plan:
    """What of a run is not done yet."""
    arrays = [_array(config, node) for node in survey(config, root) if not node.complete]
    return Plan(config.name, str(root), arrays)


def _array(config: Config, node: Node) -> Array:
    step = node.work.step
    known = None if node.items is None else len(node.items)
    todo = None if node.items is None else len(node.missing)
    return Array(step.stage, step.name, tasks_of(step, config, known), known, todo)


def tasks_of(step: Step, config: Config, items: int | None) -> int:
    """Among how many tasks a step's items are shared."""
    if not step.many:
        return 1
    tasks = config.tokenize.tasks
    return tasks if items is None else max(1, min(tasks, items))
