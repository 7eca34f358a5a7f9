"""Profiles: the facts of a site, in `slurm/profiles/<name>.yaml` or in a file of your own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.cluster import slurm_cli
from jobs.cluster.allocation import visible_gpus
from pipeline.core.errors import UserError
from pipeline.core.settings import Section, build, nearest, read_yaml
from pipeline.dag import STAGES, STEPS

PROFILES = Path(__file__).parents[2] / "slurm" / "profiles"
EXCLUSIVE_OPTIONS = (("mem", "mem_per_cpu"), ("gpus", "gres"))
RESERVED_OPTIONS = {
    "array", "dependency", "error", "job-name", "open-mode", "output", "signal", "time",
}  # fmt: skip
MIN_TIME_MINUTES = 11  # up to 10, submitit treats every preemption as a time-out


class Resources(Section):
    """What a job asks for. None asks for nothing, so the site's default holds.

    Attributes:
        partition: As in sbatch.
        account: As in sbatch.
        qos: As in sbatch.
        constraint: As in sbatch.
        exclude: As in sbatch.
        time: Time limit, in minutes or as SLURM writes it (`D-HH:MM:SS`).
        cpus: Cores of each task.
        mem: Memory of a node as SLURM writes it (`64G`); excludes `mem_per_cpu`.
        mem_per_cpu: Memory of each core; excludes `mem`.
        nodes: Nodes, for train only.
        tasks_per_node: Processes on each node, for train only; they share every training step, and
            with GPUs there is one for each GPU.
        gpus: GPUs of each node; excludes `gres`.
        gres: GPUs where a site asks for them this way (`gpu:rtx8000:1`).
        parallel: How many elements of an array run at once.
        setup: Shell lines before the job starts, such as `module load`.
        sbatch: Any other option of sbatch, by its long name.
        where: `login` runs the step in the foreground before anything is queued (download only).
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    time: int = 240
    cpus: int = Field(1, ge=1)
    mem: str | None = None
    mem_per_cpu: str | None = None
    nodes: int = Field(1, ge=1)
    tasks_per_node: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    gres: str | None = None
    parallel: int = Field(256, ge=1)
    setup: tuple[str, ...] = ()
    sbatch: dict[str, str | int | Literal[True]] = Field({})
    where: Literal["job", "login"] = "job"

    @field_validator("time", mode="before")
    @classmethod
    def _parse_time(cls, value: Any) -> Any:
        """Convert SLURM's formats to minutes, rounded up."""
        if not isinstance(value, str) or value.isdigit():
            return value
        match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", value)
        if not match:
            raise ValueError("write minutes, or D-HH:MM:SS")
        days, first, second, third = match.groups()
        if days is None and third is None:  # MM:SS
            return int(first) + bool(int(second or 0))
        hours = int(days or 0) * 24 + int(first)
        return hours * 60 + int(second or 0) + bool(int(third or 0))

    @field_validator("time")
    @classmethod
    def _check_time(cls, minutes: int) -> int:
        if minutes < MIN_TIME_MINUTES:
            raise ValueError(
                f"must be at least {MIN_TIME_MINUTES} minutes: a job needs time to start and save"
            )
        return minutes

    @field_validator("mem", "mem_per_cpu")
    @classmethod
    def _check_memory(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+[KMGT]?", value):
            raise ValueError("write it as 16G or 4000M")
        return value

    @field_validator("sbatch")
    @classmethod
    def _check_sbatch(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in RESERVED_OPTIONS:
                raise ValueError(f"{name} is set by the plan")
        return options

    @model_validator(mode="after")
    def _check_exclusive(self) -> Resources:
        if self.mem and self.mem_per_cpu:
            raise ValueError("set at most one of mem, mem_per_cpu")
        if self.gpus and self.gres:
            raise ValueError("set at most one of gpus, gres")
        if 0 < self.granted_gpus < self.tasks_per_node:
            raise ValueError(
                f"{self.tasks_per_node} tasks of a node cannot share {self.granted_gpus} GPU"
            )
        return self

    @property
    def granted_gpus(self) -> int:
        """GPUs that such a job will see on each node."""
        entries = [entry.split(":") for entry in (self.gres or "").split(",")]
        counts = [int(e[-1]) if e[-1].isdigit() else 1 for e in entries if e[0] == "gpu"]
        return sum(counts) or self.gpus

    def summary(self) -> str:
        """What the job asks for, in one line."""
        memory = self.mem or (f"{self.mem_per_cpu} a core" if self.mem_per_cpu else None)
        gpus = self.gres or (f"{self.gpus} GPU" if self.gpus else None)
        nodes = f"{self.nodes} nodes" if self.nodes > 1 else None
        tasks = f"{self.tasks_per_node} tasks a node" if self.tasks_per_node > 1 else None
        cpus = f"{self.cpus} cpu"
        parts = (self.partition, nodes, tasks, cpus, memory, gpus, f"{self.time} min")
        return ", ".join(filter(None, parts))


class Profile(Section):
    """The facts of a site.

    Attributes:
        about: A description.
        scheduler: Whether plans become SLURM jobs or run on this machine.
        cluster: The ClusterName by which the profile is found.
        root: The folder that holds `data/`, `models/` and `runs/`.
        group: A unix group whose members may read the results; without one only you may.
        cpus: Cores for plans that run here; None for all that this process may use.
        gpus: GPUs for plans that run here.
        kill_on_invalid_dep: Whether SLURM cancels a job whose dependency has failed.
        signal_seconds: Seconds before its time limit at which SLURM signals a job to save.
        jobs: What jobs ask for, by `default`, stage or step; the more specific entry wins, field by
            field.
    """

    about: str = ""
    scheduler: Literal["slurm", "local"] = "slurm"
    cluster: str | None = None
    root: str | None = None
    group: str | None = None
    cpus: int | None = Field(None, ge=1)
    gpus: int | Literal["auto"] = "auto"
    kill_on_invalid_dep: bool = True
    signal_seconds: int = Field(180, ge=30, le=3600)
    jobs: dict[str, Resources] = Field({})

    @field_validator("jobs")
    @classmethod
    def _check_jobs(cls, jobs: dict[str, Resources]) -> dict[str, Resources]:
        known = ["default", *STAGES, *(step.name for step in STEPS)]
        for name, resources in jobs.items():
            if name not in known:
                raise ValueError(f"{name!r} is not a stage; {nearest(name, known)}")
            if resources.where == "login" and not name.startswith("download"):
                raise ValueError(f"{name} cannot run on the login node, only download can")
            if resources.nodes * resources.tasks_per_node > 1 and not name.startswith("train"):
                raise ValueError(f"{name} cannot have several tasks a job, only train can")
        return jobs

    def resources(self, step: str) -> Resources:
        """What a job of a step asks for."""
        values: dict[str, Any] = {}
        for name in ("default", step.partition(".")[0], step):
            if name in self.jobs:
                values = _override(values, self.jobs[name].model_dump(exclude_unset=True))
        return build(Resources, values, f"jobs.{step}")

    def granted_cpus(self) -> int:
        """Cores that a plan may use on this machine."""
        return self.cpus or len(os.sched_getaffinity(0))

    def granted_gpus(self, step: str = "train.train") -> int:
        """GPUs that a step will see, as far as this can be known without importing torch."""
        if self.scheduler == "slurm":
            return self.resources(step).granted_gpus
        if self.gpus != "auto":
            return self.gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return visible_gpus(visible)
        return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def find_profile(name: str | None) -> Profile:
    """Load a profile by name or by the path of its YAML file.

    Without a name: the profile that GRISTMILL_PROFILE names, else that of this cluster.

    Raises:
        UserError: It does not exist, or holds an unknown setting.
    """
    name = name or os.environ.get("GRISTMILL_PROFILE") or _default_name()
    if name == "local" and not (PROFILES / "local.yaml").exists():
        return Profile(scheduler="local")  # an installed package has no profiles beside it
    return build(Profile, _load(name, ()), f"profile {name}")


def _default_name() -> str:
    """The profile with the name of this cluster, else `default`; `local` without a cluster."""
    cluster = slurm_cli.cluster_name()
    if cluster is None:
        return "local"
    names = {read_yaml(path).get("cluster"): path.stem for path in sorted(PROFILES.glob("*.yaml"))}
    return names.get(cluster, "default")


def _load(name: str, extended_by: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a profile merged over those of the profile it extends."""
    if name in extended_by:
        raise UserError(f"profiles extend each other: {' extends '.join([*extended_by, name])}")
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if is_path else PROFILES / f"{name}.yaml"
    if not path.is_file():
        if is_path:
            raise UserError(f"there is no file {path}")
        known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
        extended = f", which {extended_by[-1]} extends," if extended_by else ""
        raise UserError(f"profile {name!r}{extended} is not known", nearest(name, known))
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    inherited = _load(str(base), (*extended_by, name))
    inherited.pop("cluster", None)
    jobs = _inherit_jobs(inherited.pop("jobs", {}), values.pop("jobs", {}))
    return {**inherited, **values, "jobs": jobs}


def _inherit_jobs(base: Any, own: Any) -> Any:
    """Merge a profile's jobs over inherited ones; its `default` overrides each inherited entry."""
    if not all(isinstance(entry, dict) for entry in (base, own, *dict(own).values())):
        return own  # validation will refuse it
    default = own.get("default", {})
    jobs = {name: _override(entry, default) for name, entry in base.items()}
    return jobs | {name: _override(jobs.get(name, {}), entry) for name, entry in own.items()}


def _override(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`; an option in `over` removes the one it excludes from `base`."""
    pairs = [pair for both in EXCLUSIVE_OPTIONS for pair in (both, both[::-1])]
    removed = {other for option, other in pairs if over.get(option)}
    return {name: value for name, value in base.items() if name not in removed} | over


def find_root(profile: Profile, root: str | None) -> Path:
    """The folder for all results: the user's choice, else the profile's, else `./runs`."""
    chosen = root or profile.root or "runs"
    return Path(os.path.expandvars(chosen)).expanduser().resolve()
