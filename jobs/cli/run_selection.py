"""Which run is meant: the options that most commands share, and what they choose."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from jobs.cluster.profile import Profile, find_profile, find_root
from jobs.core.console import complain
from jobs.planning.queue import Queue, look
from pipeline.config import COMMAND, Config, load_config, resolve
from pipeline.core.errors import InputError, UserError
from pipeline.core.registry import find_dataset, ids
from pipeline.core.settings import read_yaml


@dataclass(frozen=True)
class Selection:
    """What was said on the command line."""

    dataset: Annotated[str | None, typer.Option(help="Registry id, or a YAML file.")] = None
    model: Annotated[str | None, typer.Option(help="Registry id, folder, or owner/name.")] = None
    recipe: Annotated[str | None, typer.Option(help="Registry id, or a YAML file.")] = None
    profile: Annotated[str | None, typer.Option(help="Where it runs.")] = None
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None
    file: Annotated[str | None, typer.Option(help="A local copy of the corpus.")] = None
    root: Annotated[str | None, typer.Option(help="Where everything goes.")] = None
    words: Annotated[list[str] | None, typer.Argument(help="Settings, as train.lr=3e-4.")] = None

    @functools.cached_property
    def site(self) -> Profile:
        """The profile; finding it may have to ask the cluster for its name."""
        return find_profile(self.profile)

    def place(self) -> Path:
        """The folder that holds `data/`, `models/` and `runs/`."""
        return find_root(self.site, self.root)

    def queue(self, strict: bool = False) -> Queue | None:
        """The queue as it is now; None where plans do not go to SLURM.

        Args:
            strict: Whether it is an error that SLURM does not answer.
        """
        return look(self.place(), strict) if self.site.scheduler == "slurm" else None

    def words_for_make(self) -> str:
        """What to type after `make status` and the like to mean the same run."""
        typed = {
            "DATASET": self.dataset,
            "NAME": self.name,
            "PROFILE": self.profile,
            "RUNS": self.root,
        }
        return _assigned(typed)

    def looking(self) -> Selection:
        """The same for a command that only looks: by files alone if the cluster does not answer."""
        try:
            self.site  # noqa: B018 (it asks)
        except InputError as error:
            there = replace(self, profile="local")
            complain(f"{error}; what follows is from files alone, those in {there.place()}")
            return there
        return self

    def line(self) -> str:
        """What to type to begin the same run, or to go on with it; empty if make cannot be told."""
        if any(re.search(r"\s", word) for word in self.words or ()):
            return ""
        typed = {
            "DATASET": self.dataset,
            "MODEL": self.model,
            "RECIPE": self.recipe,
            "PROFILE": self.profile or os.environ.get("GRISTMILL_PROFILE"),
            "NAME": self.name,
            "FILE": self.file,
            "RUNS": self.root,
            "ARGS": " ".join(self.words or []),
        }
        return COMMAND + _assigned(typed)

    def config(self) -> Config:
        """The configuration that these words mean.

        Raises:
            UserError: No data set is named, or something is unknown or wrong.
        """
        if not self.dataset:
            known = ", ".join(ids("datasets"))
            raise UserError("name a data set", f"e.g. make pipeline DATASET=nih; there are {known}")
        return resolve(self.dataset, self.model, self.recipe, self.words, self.name, self.file)

    def existing(self) -> Config:
        """The frozen configuration of a run that was started: the newest, unless more is said.

        Raises:
            UserError: There is none.
        """
        runs, name = self.place() / "runs", self.name
        if name is None and (self.model or self.recipe or self.words or self.file):
            name = self.config().name
        if name is not None:
            found = [runs / name / "config.yaml"]
        else:
            found = sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
            if self.dataset:
                wanted = find_dataset(self.dataset).id
                found = [path for path in found if _dataset_of(path) == wanted]
        if not found or not found[-1].exists():
            what = f"run {name!r}" if name else f"run of {self.dataset}" if self.dataset else "run"
            raise UserError(f"there is no {what} in {runs}", "start one: make pipeline DATASET=…")
        return load_config(found[-1])


def _assigned(values: dict[str, str | None]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items() if value)


def _dataset_of(path: Path) -> str | None:
    dataset = read_yaml(path).get("dataset")
    return dataset.get("id") if isinstance(dataset, dict) else None


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is a `Selection`, the options that make one."""
    hints = get_type_hints(Selection, include_extras=True)
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Selection)
    ]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *shared]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        chosen = {field.name: values.pop(field.name) for field in fields(Selection)}
        command(Selection(**chosen), **values)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper
