"""Which run a command is about: the options that most commands share."""

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
from jobs.core.console import print_error
from jobs.planning.queue import Queue, read_queue
from pipeline.config import Config, resolve
from pipeline.core.errors import InputError, UserError
from pipeline.core.registry import find_dataset, ids
from pipeline.core.settings import nearest, read_yaml
from pipeline.saved_config import COMMAND, continue_run, load_config


@dataclass(frozen=True)
class Selection:
    """The shared options of a command line."""

    dataset: Annotated[str | None, typer.Option(help="Data set: an id or a YAML file.")] = None
    model: Annotated[str | None, typer.Option(help="Model: an id, a folder or owner/name.")] = None
    recipe: Annotated[str | None, typer.Option(help="Recipe: an id or a YAML file.")] = None
    profile: Annotated[str | None, typer.Option(help="Site: a profile or a YAML file.")] = None
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None
    file: Annotated[str | None, typer.Option(help="Local copy of the corpus.")] = None
    root: Annotated[str | None, typer.Option(help="Folder for all results.")] = None
    words: Annotated[list[str] | None, typer.Argument(help="Settings, such as train.lr=3e-4.")] = (
        None
    )

    @functools.cached_property
    def site(self) -> Profile:
        """The profile. Finding it may need to ask SLURM for the cluster's name."""
        return find_profile(self.profile)

    def root_folder(self) -> Path:
        """The folder that holds `data/`, `models/` and `runs/`."""
        return find_root(self.site, self.root)

    def queue(self, strict: bool = False) -> Queue | None:
        """SLURM's queue as it is now; None if plans run on this machine.

        Args:
            strict: Whether to raise if SLURM does not answer.
        """
        return read_queue(self.root_folder(), strict) if self.site.scheduler == "slurm" else None

    def make_variables(self) -> str:
        """The variables that select the same run in `make status` and other commands."""
        variables = {
            "DATASET": self.dataset,
            "NAME": self.name,
            "PROFILE": self.profile,
            "RUNS": self.root,
        }
        return _assignments(variables)

    def read_only(self) -> Selection:
        """The same run for a command that only reads: works without a cluster that answers."""
        try:
            self.site  # noqa: B018 (may ask SLURM)
        except InputError as error:
            local = replace(self, profile="local")
            print_error(f"{error}; this is based on files alone, those in {local.root_folder()}")
            return local
        return self

    def make_command(self) -> str:
        """The command that starts or resumes the same run; empty if make cannot express it."""
        if any(re.search(r"\s", word) for word in self.words or ()):
            return ""
        variables = {
            "DATASET": self.dataset,
            "MODEL": self.model,
            "RECIPE": self.recipe,
            "PROFILE": self.profile or os.environ.get("GRISTMILL_PROFILE"),
            "NAME": self.name,
            "FILE": self.file,
            "RUNS": self.root,
            "ARGS": " ".join(self.words or []),
        }
        return COMMAND + _assignments(variables)

    def config(self) -> Config:
        """The configuration that these options describe.

        Raises:
            UserError: No data set is named, or an option is unknown or wrong.
        """
        if not self.dataset:
            known = ", ".join(ids("datasets"))
            raise UserError(
                "name a data set", f"e.g. make pipeline DATASET=nih; registered: {known}"
            )
        asked = resolve(self.dataset, self.model, self.recipe, self.words, self.name, self.file)
        config, changed = continue_run(asked, self.root_folder())
        if changed:
            listed = "; ".join(f"{k}: {old!r}, now {new!r}" for k, (old, new) in changed.items())
            print_error(f"{config.name} keeps the settings it began with; new defaults: {listed}")
        return config

    def existing_config(self) -> Config:
        """The saved configuration of the newest run that these options describe.

        Raises:
            UserError: There is no such run.
        """
        runs, name = self.root_folder() / "runs", self.name
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
            names = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
            hint = nearest(name, names) if name and names else "start one: make pipeline DATASET=…"
            raise UserError(f"there is no {what} in {runs}", hint)
        return load_config(found[-1])


def _assignments(values: dict[str, str | None]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items() if value)


def _dataset_of(path: Path) -> str | None:
    dataset = read_yaml(path).get("dataset")
    return dataset.get("id") if isinstance(dataset, dict) else None


def with_selection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; its first parameter receives the `Selection`."""
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
        options = {field.name: values.pop(field.name) for field in fields(Selection)}
        command(Selection(**options), **values)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper
