"""What is still to do, as arrays: a step, and among how many tasks its items are shared.

The number of tasks is a number of the configuration, so every array is known before the data is;
element r of n takes every n-th item. A plan is a file named by its content and never changed; code
and configuration travel with it. Jobs are named after it, so that whoever looks at the queue later,
from any terminal, knows what they are doing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import Config
from pipeline.core.atomic_io import write_text
from pipeline.core.errors import InputError
from pipeline.core.receipt import hash_json
from pipeline.core.settings import build

ID = 12


@dataclass(frozen=True)
class Array:
    """Tasks to run: the `elements` of a step whose items are shared among `of` tasks.

    `key`, `folder`: what is computed, and where it goes; runs of the same settings share the one.

    `needs`: steps of the same plan that it waits for. `after`: jobs that run already and that it
    waits for, too. `replaces`: jobs that wait for what will not come. `items`, `todo`: None while
    they are not known yet.
    """

    stage: str
    step: str
    key: str
    folder: str
    of: int
    elements: tuple[int, ...]
    needs: tuple[str, ...]
    after: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    items: int | None = None
    todo: int | None = None


@dataclass(frozen=True)
class Plan:
    """The arrays of a run in order, its configuration, and the folder of the code to run.

    `live`: jobs that are at it already, by step.
    """

    name: str
    root: str
    arrays: tuple[Array, ...]
    config: dict[str, Any]
    code: str = ""
    live: dict[str, list[str]] = field(default_factory=dict)

    @property
    def settings(self) -> Config:
        """The configuration, validated."""
        config: Config = build(Config, self.config, f"plan {self.id}")
        return config

    @property
    def id(self) -> str:
        """What names it: a hash of all of it."""
        return hash_json(asdict(self))[:ID]

    def array(self, step: str) -> Array:
        """The array of a step."""
        return next(array for array in self.arrays if array.step == step)

    def write(self) -> Path:
        """Put the plan into the run's folder."""
        path = Path(self.root) / "runs" / self.name / "plans" / f"{self.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False))
        return path


def read_plan(path: Path) -> Plan:
    """A plan that was written.

    Raises:
        InputError: It is gone or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        why = f"cannot read the plan {path}: {error}"
        raise InputError(why, "run make pipeline again") from None


def job_name(step: str, plan: Plan) -> str:
    """What a job is called in the queue: its step and its plan."""
    return f"{step}-{plan.id}"
