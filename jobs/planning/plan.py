"""A plan: the arrays of tasks that a run still needs.

The number of tasks comes from the configuration, so every array is known before the data exists;
element r of n takes every n-th item, starting with item r. A plan is a file that is named after its
content and never changes. It includes the configuration, which its tasks read, and the path of a
snapshot of the code; `config.yaml` is what the next `make pipeline` continues from. A job's name
holds step and plan, so the queue tells what each job does.
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

ID_LENGTH = 12


@dataclass(frozen=True)
class Array:
    """The tasks of one step that still have to run.

    Attributes:
        stage: The stage of the step.
        step: The step's name.
        key: The recipe key of the step; runs with the same settings share it.
        folder: Where the results go.
        of: Among how many tasks the step's items are divided.
        elements: Which of these tasks have to run.
        needs: Steps of this plan that it waits for.
        after: Live jobs that it waits for as well.
        replaces: Pending jobs that can never start, and that this array replaces.
        items: How many items the step has; None before its inputs exist.
        todo: How many of them are missing; None before its inputs exist.
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
    """What a run still has to do.

    Attributes:
        name: The run's name.
        root: The folder that holds `data/`, `models/` and `runs/`.
        arrays: In the order of the steps.
        config: The configuration as plain data.
        code: The folder of the code to run; empty for the working tree.
        live: Ids of jobs that are in the queue already, by step.
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
        """A hash of the whole plan."""
        return hash_json(asdict(self))[:ID_LENGTH]

    def array(self, step: str) -> Array:
        """The array of a step."""
        return next(array for array in self.arrays if array.step == step)

    def write(self) -> Path:
        """Write the plan into the run's folder."""
        path = Path(self.root) / "runs" / self.name / "plans" / f"{self.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False))
        return path


def read_plan(path: Path) -> Plan:
    """Read a plan from its file.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        reason = f"cannot read the plan {path}: {error}"
        raise InputError(reason, "run make pipeline again") from None


def job_name(step: str, plan: Plan) -> str:
    """The name of a job in the queue: its step and its plan."""
    return f"{step}-{plan.id}"
