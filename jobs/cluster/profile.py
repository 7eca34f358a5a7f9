"""Profiles: what a site is like. `slurm/profiles/<name>.yaml`, or a file of one's own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.cluster import slurm_cli as slurm
from pipeline.core.errors import UserError
from pipeline.core.settings import Section, build, nearest, read_yaml
from pipeline.dag import STAGES, STEPS

PROFILES = Path(__file__).parents[2] / "slurm" / "profiles"
EITHER = (("mem", "mem_per_cpu"), ("gpus", "gres"))
OURS = {"array", "dependency", "error", "job-name", "open-mode", "output", "signal", "time"}
SHORTEST = 11  # minutes: up to 10, submitit takes every preemption for a time-out


class Resources(Section):
    """What a job asks for. What is None is not asked for, so the site's own default holds.

    `time`: limit, in minutes or as SLURM writes it (`D-HH:MM:SS`). `mem`, `mem_per_cpu`: as SLURM
    writes it (`64G`); at most one. `nodes`, `tasks_per_node`: for train only, a process each, which
    share every step; with GPUs one a GPU. `gpus`: a node's, or `gres` where a site wants that
    (`gpu:rtx8000:1`). `parallel`: elements of an array that run at once. `setup`: shell lines
    before the job starts, such as `module load`. `sbatch`: any other option, by its long name.
    `where`: `login` runs it in the foreground before anything is queued (download only).
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
    def _in_minutes(cls, value: Any) -> Any:
        """SLURM's own forms."""
        if not isinstance(value, str) or value.isdigit():
            return value
        found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", value)
        if not found:
            raise ValueError("write minutes, or D-HH:MM:SS")
        days, first, second, third = found.groups()
        if days is None and third is None:  # MM:SS
            return int(first) + bool(int(second or 0))
        hours = int(days or 0) * 24 + int(first)
        return hours * 60 + int(second or 0) + bool(int(third or 0))

    @field_validator("time")
    @classmethod
    def _long_enough(cls, minutes: int) -> int:
        if minutes < SHORTEST:
            raise ValueError(f"at least {SHORTEST} minutes: a job needs some to start and to save")
        return minutes

    @field_validator("mem", "mem_per_cpu")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+[KMGT]?", value):
            raise ValueError("write it as 16G or 4000M")
        return value

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in OURS:
                raise ValueError(f"{name} is set by the plan")
        return options

    @model_validator(mode="after")
    def _one_way(self) -> Resources:
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
        """GPUs that a job of this kind will see."""
        asked = [word.split(":") for word in (self.gres or "").split(",")]
        counts = [int(w[-1]) if w[-1].isdigit() else 1 for w in asked if w[0] == "gpu"]
        return sum(counts) or self.gpus

    def told(self) -> str:
        """What is asked for, in a line."""
        memory = self.mem or (f"{self.mem_per_cpu} a core" if self.mem_per_cpu else None)
        gpus = self.gres or (f"{self.gpus} GPU" if self.gpus else None)
        nodes = f"{self.nodes} nodes" if self.nodes > 1 else None
        tasks = f"{self.tasks_per_node} tasks a node" if self.tasks_per_node > 1 else None
        each = f"{self.cpus} cpu"
        parts = (self.partition, nodes, tasks, each, memory, gpus, f"{self.time} min")
        return ", ".join(filter(None, parts))


class Profile(Section):
    """Facts of a site.

    `scheduler`: whether plans become SLURM jobs or run here. `cluster`: the ClusterName by which
    the profile is found. `root`: where `data/`, `models/` and `runs/` go. `group`: a unix group
    whose members may read what is made there; without one only you may. `cpus`, `gpus`: what a plan
    that runs here may use. `jobs`: what jobs ask for: `default`, a stage's name, or a step's,
    the more exact one wins field by field. `kill_on_invalid_dep`: a job whose input will never come
    is cancelled, not left in the queue. `signal_seconds`: how long before its time limit a job is
    told to save.
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
    def _known_jobs(cls, jobs: dict[str, Resources]) -> dict[str, Resources]:
        known = ["default", *STAGES, *(step.name for step in STEPS)]
        for name, resources in jobs.items():
            if name not in known:
                raise ValueError(f"{name!r} is no stage; {nearest(name, known)}")
            if resources.where == "login" and not name.startswith("download"):
                raise ValueError(f"{name} cannot run on the login node, only download can")
            if resources.nodes * resources.tasks_per_node > 1 and not name.startswith("train"):
                raise ValueError(f"{name} cannot have several tasks a job, only train can")
        return jobs

    def resources(self, step: str) -> Resources:
        """What a job of that step asks for."""
        values: dict[str, Any] = {}
        for name in ("default", step.partition(".")[0], step):
            if name in self.jobs:
                values = _over(values, self.jobs[name].model_dump(exclude_unset=True))
        return build(Resources, values, f"jobs.{step}")

    def granted_cpus(self) -> int:
        """Cores that a plan which runs here may use."""
        return self.cpus or len(os.sched_getaffinity(0))

    def granted_gpus(self, step: str = "train.train") -> int:
        """GPUs that a step will see, as far as can be told without loading torch."""
        if self.scheduler == "slurm":
            return self.resources(step).granted_gpus
        if self.gpus != "auto":
            return self.gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return len(
                [device for device in visible.split(",") if device.strip() not in ("", "-1")]
            )
        return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def find_profile(name: str | None) -> Profile:
    """The profile of that name, or in that YAML file.

    Without a name, the one that GRISTMILL_PROFILE names, else this machine's.

    Raises:
        UserError: There is none, or it holds an unknown setting.
    """
    name = name or os.environ.get("GRISTMILL_PROFILE") or _of_this_machine()
    if name == "local" and not (PROFILES / "local.yaml").exists():
        return Profile(scheduler="local")  # an installed package has no profiles beside it
    return build(Profile, _values(name, ()), f"profile {name}")


def _of_this_machine() -> str:
    """The profile that names this cluster, else `default`; `local` where there is no cluster."""
    cluster = slurm.cluster_name()
    if cluster is None:
        return "local"
    named = {read_yaml(path).get("cluster"): path.stem for path in sorted(PROFILES.glob("*.yaml"))}
    return named.get(cluster, "default")


def _values(name: str, before: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a profile laid upon those of the one it extends."""
    if name in before:
        raise UserError(f"profile {' extends '.join([*before, name])}: that has no end")
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if is_path else PROFILES / f"{name}.yaml"
    if not path.is_file():
        if is_path:
            raise UserError(f"there is no file {path}")
        known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
        extended = f", which {before[-1]} extends," if before else ""
        raise UserError(f"profile {name!r}{extended} is not known", nearest(name, known))
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    inherited = _values(str(base), (*before, name))
    inherited.pop("cluster", None)
    jobs = _inherit(inherited.pop("jobs", {}), values.pop("jobs", {}))
    return {**inherited, **values, "jobs": jobs}


def _inherit(base: Any, own: Any) -> Any:
    """A profile's jobs laid upon inherited ones: also its default is more than anything there."""
    if not all(isinstance(entry, dict) for entry in (base, own, *dict(own).values())):
        return own  # to be refused
    default = own.get("default", {})
    jobs = {name: _over(entry, default) for name, entry in base.items()}
    return jobs | {name: _over(jobs.get(name, {}), entry) for name, entry in own.items()}


def _over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`; of two that exclude each other the upper one's stays."""
    beaten = {other for pair in EITHER for one, other in (pair, pair[::-1]) if over.get(one)}
    return {name: value for name, value in base.items() if name not in beaten} | over


def find_root(profile: Profile, root: str | None) -> Path:
    """Where everything goes: what the user says, else the profile, else `./runs`."""
    chosen = root or profile.root or "runs"
    return Path(os.path.expandvars(chosen)).expanduser().resolve()
