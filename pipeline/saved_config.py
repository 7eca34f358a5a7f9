"""The configuration that a run began with: `runs/<name>/config.yaml`, and how the run continues.

A run name belongs to one configuration. When the same request is typed again, the run continues
with the settings in its file, so a release may change defaults without redoing anything.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from pipeline.config import ALL_SECTIONS, Config, Request, differences
from pipeline.core.atomic_io import write_text
from pipeline.core.errors import UserError
from pipeline.core.receipt import is_from_version_0_1
from pipeline.core.redaction import redact
from pipeline.core.registry import SOURCE_FIELDS
from pipeline.core.settings import Section, build, neutral_values, read_yaml

CONFIG_FORMAT = 2  # of config.yaml; the files of 0.1 do not name it
MAX_DIFFERENCES = 8  # that a message lists
COMMAND_PREFIX = "# "  # before the command that began a run, the first line of its config.yaml
COMMAND = "make pipeline "


def continue_run(config: Config, root: Path) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    """The configuration to continue with, if a run began with the same request.

    Args:
        config: What the request means under this release.
        root: The folder that holds `data/`, `models/` and `runs/`.

    Returns:
        The run's saved configuration, with the settings that cannot change results as they are in
        `config`; and the defaults that have changed since: dotted name → (saved, now). If there is
        no such run, `config` itself and an empty dict.

    Raises:
        UserError: The run's file cannot be read, is of Gristmill 0.1, or does not fit the settings
            that were given now.
    """
    config_path = _config_path(config, root)
    if config_path.exists() and _same(saved := load_config(config_path), config):
        return _continued(saved, config, config_path)
    for path in () if config.request.named else _unnamed(root):
        with contextlib.suppress(UserError):  # a run that cannot be read is another one
            if _same(saved := load_config(path), config):
                return _continued(saved, config, path)
    return config, {}


def _continued(saved: Config, new: Config, path: Path) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    content, now = saved.model_dump(), new.model_dump()
    for section in ALL_SECTIONS:
        replaced = _section(section).not_hashed_fields() - {"size"}
        if section == "dataset" and saved.dataset.content == new.dataset.content:
            replaced |= {"size", *SOURCE_FIELDS}  # the same corpus, perhaps from another mirror
        content[section] |= {name: now[section][name] for name in replaced}
    continued: Config = build(Config, content, str(path))
    return continued, differences(continued, new)


def _unnamed(root: Path) -> Iterator[Path]:
    """The files of runs whose name was made up; a default that changed may change that name."""
    for path in sorted((root / "runs").glob("*/config.yaml")):
        with contextlib.suppress(OSError, ValueError):
            if "\n  named: false\n" in path.read_text(encoding="utf-8"):
                yield path


def _same(saved: Config, new: Config) -> bool:
    """Whether two configurations come from the same request.

    Another FILE or URL is another corpus, unless its hash says that it is the same.
    """
    old, now = saved.request, new.request
    same_source = (old.file, _sources(old)) == (now.file, _sources(now))
    same_corpus = same_source or saved.dataset.content == new.dataset.content
    return same_corpus and _deciding(old) == _deciding(now)


def _sources(request: Request) -> dict[str, Any]:
    given = request.dataset if isinstance(request.dataset, dict) else {}
    return {name: value for name, value in given.items() if name in SOURCE_FIELDS}


def _deciding(request: Request) -> dict[str, Any]:
    """A request as plain data, without its sources and settings that cannot change results."""
    plain = request.model_dump(mode="json", exclude={"file", "named"})
    for name in ("dataset", "model"):
        if isinstance(plain[name], dict):
            plain[name] = _hashed(name, plain[name])
    for name in ("recipe", "settings"):
        if isinstance(plain[name], dict):
            sections = {
                section: _hashed(section, values) if section in ALL_SECTIONS else values
                for section, values in plain[name].items()
            }
            plain[name] = {section: values for section, values in sections.items() if values}
    return plain


def _hashed(section: str, values: dict[str, Any]) -> dict[str, Any]:
    left_out = _section(section).not_hashed_fields()
    if section == "dataset":
        left_out |= set(SOURCE_FIELDS)
    return {name: value for name, value in values.items() if name not in left_out}


def _section(name: str) -> type[Section]:
    section: Any = Config.model_fields[name].annotation
    return cast("type[Section]", section)


def check_name(config: Config, root: Path) -> Config | None:
    """The configuration that the run's name belongs to; None if there is no run of that name.

    Raises:
        UserError: The name already belongs to another configuration, or there are results of
            Gristmill 0.1 where those of the run go.
    """
    path = _config_path(config, root)
    saved = load_config(path) if path.exists() else None
    changed = sorted(differences(saved, config).items()) if saved else []
    if changed:
        listed = [
            f"{k}: {old!r} in the run, {new!r} now" for k, (old, new) in changed[:MAX_DIFFERENCES]
        ]
        more = [f"{len(changed) - MAX_DIFFERENCES} more"] * (len(changed) > MAX_DIFFERENCES)
        raise UserError(
            f"run {config.name!r} exists with another configuration "
            f"({'; '.join([*listed, *more])})",
            f"Choose another NAME, or start over: rm -r {shlex.quote(str(path.parent))}",
        )
    _refuse_version_0_1(root / "data" / config.dataset.id)
    _refuse_version_0_1(root / "models" / config.model.id)
    return saved


def _config_path(config: Config, root: Path) -> Path:
    return root / "runs" / config.name / "config.yaml"


def _refuse_version_0_1(folder: Path) -> None:
    for step in folder.glob("*-*"):
        unit = next((receipt.parent for receipt in step.glob("[!.]*/receipt.json")), None)
        if unit and is_from_version_0_1(unit):
            raise UserError(
                f"{step} was made by Gristmill 0.1, whose results this version cannot use",
                f"Choose another RUNS, or remove them: rm -r {shlex.quote(str(folder))} (to keep "
                "the corpus, move it out of raw-…/corpus first and pass it as FILE=)",
            )


def save_config(config: Config, root: Path, command: str = "") -> Path:
    """Write the run's `config.yaml`; raises as `check_name`.

    Args:
        config: The run.
        root: The folder that holds `data/`, `models/` and `runs/`.
        command: What was typed, for the first line; if it is not given, the line that is there
            stays. A line that holds a secret or cannot be printed is not written.
    """
    saved, path = check_name(config, root), _config_path(config, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    safe = command if command.isprintable() and redact(command) == command else ""
    line = safe or begun_by(path.parent)
    if saved:  # the first request counts: it is the one that is typed again
        config = config.model_copy(update={"request": saved.request})
    content = {"format": CONFIG_FORMAT, **config.model_dump(mode="json")}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(path, f"{COMMAND_PREFIX}{line}\n{text}" if line else text)
    return path


def begun_by(run: Path) -> str:
    """The command that began the run of that folder; empty if it is not known."""
    try:
        with (run / "config.yaml").open(encoding="utf-8") as file:
            first = file.readline().rstrip("\n")
    except (OSError, ValueError):
        return ""
    return first.removeprefix(COMMAND_PREFIX) if first.startswith(COMMAND_PREFIX + COMMAND) else ""


def resume_command(run: Path) -> str:
    """What to type to continue the run of that folder."""
    return begun_by(run) or "the make pipeline command that began it, with all its words"


def load_config(path: Path) -> Config:
    """The configuration in a `config.yaml`.

    Raises:
        UserError: It cannot be read, or is of Gristmill 0.1.
    """
    content = read_yaml(path)
    if "format" not in content:
        raise UserError(
            f"{path} was written by Gristmill 0.1, whose runs this version cannot continue",
            "Finish the run with 0.1, or start over under another NAME or RUNS",
        )
    if (version := content.pop("format")) != CONFIG_FORMAT:
        raise UserError(
            f"{path} has format {version}, and this version of Gristmill reads format "
            f"{CONFIG_FORMAT}",
            "Continue the run with the version that began it",
        )
    for section in ALL_SECTIONS:  # a setting that the file lacks was introduced after it
        values = content.get(section) or {}
        if isinstance(values, dict):
            content[section] = neutral_values(_section(section)) | values
    config: Config = build(Config, content, str(path))
    return config
