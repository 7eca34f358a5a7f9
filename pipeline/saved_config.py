"""The configuration that a run began with: `runs/<name>/config.yaml`, and how the run continues.

A name stands for one configuration. Where the same request is typed again, the run continues with
the settings in its file, so that a release may change defaults without redoing anything.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ALL_SECTIONS, Config, Request, differences
from pipeline.core.atomic_io import write_text
from pipeline.core.errors import UserError
from pipeline.core.receipt import is_of_01
from pipeline.core.redaction import redact
from pipeline.core.settings import Section, build, read_yaml

FORMAT = 2  # of config.yaml; the files of 0.1 do not name it
MAX_DIFFERENCES = 8  # that a message lists
COMMENT = "# "  # before the command that began a run, the first line of its config.yaml
COMMAND = "make pipeline "


def continue_run(config: Config, root: Path) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    """The configuration to go on with, if a run began with the same request.

    Args:
        config: What the request means under this release.
        root: The folder that holds `data/`, `models/` and `runs/`.

    Returns:
        The run's saved configuration, with the settings that cannot change results as they are in
        `config`; and the defaults that have changed since: dotted name → (saved, now). `config`
        itself and nothing if there is no such run.

    Raises:
        UserError: The run was begun by Gristmill 0.1.
    """
    own = root / "runs" / config.name / "config.yaml"
    if own.exists():
        saved = load_config(own)
        return _continued(saved, config) if _same(saved, config) else (config, {})
    for path in () if config.request.named else _unnamed(root):
        with contextlib.suppress(UserError):  # a run that cannot be read is not the one
            if _same(saved := load_config(path), config):
                return _continued(saved, config)
    return config, {}


def _continued(saved: Config, new: Config) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    fields = {name: _updated(getattr(saved, name), getattr(new, name)) for name in ALL_SECTIONS}
    if saved.dataset.content == new.dataset.content:
        fields["dataset"] = fields["dataset"].model_copy(update={"urls": new.dataset.urls})
    return saved.model_copy(update=fields), differences(saved, new)


def _unnamed(root: Path) -> Iterator[Path]:
    """The files of runs whose name was made up; a default that changed may change that name."""
    for path in sorted((root / "runs").glob("*/config.yaml")):
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text(encoding="utf-8")
            if "\n  named: false\n" in text and f"\nformat: {FORMAT}\n" in f"\n{text}":
                yield path


def _same(saved: Config, new: Config) -> bool:
    """Whether two configurations were asked for by the same request.

    Another FILE is another corpus, unless its hash is known to be the same.
    """
    one, other = saved.request, new.request
    same_corpus = one.file == other.file or saved.dataset.content == new.dataset.content
    return same_corpus and _deciding(one) == _deciding(other)


def _deciding(request: Request) -> dict[str, Any]:
    """A request as plain data, without the settings that cannot change results."""
    plain = request.model_dump(mode="json", exclude={"file"})
    plain["settings"] = {
        section: {
            name: value
            for name, value in values.items()
            if name in _hashed(Config.model_fields[section].annotation)
        }
        for section, values in plain["settings"].items()
    }
    return plain | {"settings": {k: v for k, v in plain["settings"].items() if v}}


def _hashed(section: Any) -> set[str]:
    left_out = section.not_hashed_fields()
    return {name for name in section.model_fields if name not in left_out}


def _updated(saved: Section, new: Section) -> Section:
    """A saved section, with the fields that cannot change results as they are in the new one."""
    return saved.model_copy(update={n: getattr(new, n) for n in type(new).not_hashed_fields()})


def check_name(config: Config, root: Path) -> Path:
    """Where the run's `config.yaml` is, or will be.

    Raises:
        UserError: The name already stands for another configuration, or there are results of
            Gristmill 0.1 where those of the run go.
    """
    path = root / "runs" / config.name / "config.yaml"
    changed = sorted(differences(load_config(path), config).items()) if path.exists() else []
    if changed:
        listed = [f"{k}: {old!r} there, {new!r} now" for k, (old, new) in changed[:MAX_DIFFERENCES]]
        more = [f"{len(changed) - MAX_DIFFERENCES} more"] * (len(changed) > MAX_DIFFERENCES)
        raise UserError(
            f"run {config.name!r} exists with another configuration "
            f"({'; '.join([*listed, *more])})",
            f"choose another NAME, or start over: rm -r {shlex.quote(str(path.parent))}",
        )
    _refuse_01(root / "data" / config.dataset.id)
    _refuse_01(root / "models" / config.model.id)
    return path


def _refuse_01(folder: Path) -> None:
    for step in folder.glob("*-*"):
        unit = next((receipt.parent for receipt in step.glob("[!.]*/receipt.json")), None)
        if unit and is_of_01(unit):
            raise UserError(
                f"{step} was made by Gristmill 0.1, whose results this version cannot use",
                f"choose another RUNS, or remove them: rm -r {shlex.quote(str(folder))} (a corpus "
                "in raw-…/corpus can be kept elsewhere and given with FILE=)",
            )


def save_config(config: Config, root: Path, command: str = "") -> Path:
    """Write the run's `config.yaml`; raises as `check_name`.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        command: What was typed, for the first line; if it is not given, the line that is there
            stays. A line that holds a secret or cannot be printed is not written.
    """
    path = check_name(config, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    safe = command if command.isprintable() and redact(command) == command else ""
    line = safe or begun_by(path.parent)
    content = {"format": FORMAT, **config.model_dump(mode="json")}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(path, f"{COMMENT}{line}\n{text}" if line else text)
    return path


def begun_by(run: Path) -> str:
    """The command that began the run of that folder; empty if it is not known."""
    try:
        with (run / "config.yaml").open(encoding="utf-8") as file:
            first = file.readline().rstrip("\n")
    except (OSError, ValueError):
        return ""
    return first.removeprefix(COMMENT) if first.startswith(COMMENT + COMMAND) else ""


def resume_command(run: Path) -> str:
    """What to type to continue the run of that folder."""
    return begun_by(run) or "the make pipeline command that began it, with all its words"


def load_config(path: Path) -> Config:
    """The configuration in a `config.yaml`.

    Raises:
        UserError: It cannot be read, or is of Gristmill 0.1.
    """
    content = read_yaml(path)
    if content.pop("format", None) != FORMAT:
        raise UserError(
            f"{path} was written by Gristmill 0.1, whose runs this version cannot continue",
            "finish the run with 0.1, or start over under another NAME or RUNS",
        )
    config: Config = build(Config, content, str(path))
    return config
