"""The configuration of a run: one validated, frozen object.

Defaults of the sections ← recipe YAML ← the words of `ARGS`. It is written to
`runs/<name>/config.yaml`, and that name cannot stand for another configuration later.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from pipeline.core.atomic_io import write_text
from pipeline.core.errors import UserError
from pipeline.core.receipt import hash_json
from pipeline.core.redaction import redact
from pipeline.core.registry import BaseModel, Dataset, entry, find_dataset, find_model
from pipeline.core.settings import Section, build, merge, parse_overrides, read_yaml
from pipeline.decompress.stage import DecompressConfig
from pipeline.download.stage import DownloadConfig
from pipeline.evaluate.stage import EvaluateConfig
from pipeline.tokenize.stage import TokenizeConfig
from pipeline.train.stage import TrainConfig

MODEL, RECIPE = "opt-125m", "lora-8bit"
NAME_LENGTH = 80
TOLD = 8
TYPED = "# "  # before the command that began a run, the first line of its config.yaml
COMMAND = "make pipeline "


class Config(Section):
    """Everything that a run computes, and nothing of where it is computed.

    `recipe`: where its settings began; it decides nothing.
    """

    name: str
    recipe: str = ""
    dataset: Dataset
    model: BaseModel
    download: DownloadConfig = DownloadConfig()
    decompress: DecompressConfig = DecompressConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if not self.name or self.name.startswith(".") or re.search(r"[/\0\n]", self.name):
            raise ValueError(f"the run name {self.name!r} cannot be a folder's name")
        if len(self.name.encode()) > 200:
            raise ValueError(f"the run name {self.name[:20]!r}… is longer than 200 bytes")
        return self


def resolve(
    dataset: str,
    model: str | None = None,
    recipe: str | None = None,
    overrides: list[str] | None = None,
    name: str | None = None,
    file: str | None = None,
) -> Config:
    """The configuration that these words of the user mean.

    Args:
        dataset: Registry id, or path of a YAML file.
        model: Registry id, local folder, or hub repo id; None for the data set's own default.
        recipe: Registry id, or path of a YAML file; None likewise.
        overrides: Words like `train.lr=3e-4`.
        name: The run's name; None to make one from the data set and what differs from the defaults.
        file: A local copy of the corpus.

    Raises:
        UserError: A name is unknown, or a setting has the wrong name, type or value.
    """
    data = find_dataset(dataset, file)
    model_name = model or data.model or MODEL
    recipe_name = recipe or data.recipe or RECIPE
    plain = {
        **{k: v for k, v in entry("recipes", recipe_name).items() if k != "id"},
        "name": name or data.id,
        "recipe": recipe_name,
        "dataset": data.model_dump(),
        "model": find_model(model_name).model_dump(),
    }
    base: Config = build(Config, plain, f"recipe {recipe_name}")
    if not overrides:
        config = base
    else:
        changes = parse_overrides(overrides)
        for word in {"name", "recipe"} & changes.keys():
            what = f"ARGS: the run's {word} is not a setting"
            raise UserError(what, f"write {word.upper()}=… beside ARGS")
        config = build(Config, merge(plain, changes), "ARGS")
    if config.model.context:
        config.train.window(config.model.context)
        config.evaluate.window(config.model.context)
    config.train.check_targets(config.model.modules)
    if name is not None:
        return config
    differs = [config.model.id] if model_name != (data.model or MODEL) else []
    differs += [Path(recipe_name).stem] if recipe_name != (data.recipe or RECIPE) else []
    differs += [f"{k}={_plain(new)}" for k, (_, new) in sorted(differences(base, config).items())]
    return config.model_copy(update={"name": _run_name(data.id, differs)})


def _plain(value: Any) -> str:
    """A setting as it is typed, without the quotes and brackets of a list."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _run_name(dataset: str, differs: list[str]) -> str:
    told = [redact(word) for word in differs]
    name = "+".join([dataset, *(re.sub(r"[/:%\\\s]+", "_", word) for word in told)])
    if len(name) <= NAME_LENGTH and told == differs:
        return name
    return f"{name[: NAME_LENGTH - 9]}-{hash_json(differs)[:8]}"


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that decide results and differ: dotted name → (one's value, other's)."""
    left, right = _flat(identity_fields(one)), _flat(identity_fields(other))
    return {k: (left.get(k), right.get(k)) for k in {*left, *right} if left.get(k) != right.get(k)}


def identity_fields(config: Config) -> dict[str, Any]:
    """The settings that decide results, by section."""
    told = ("name", "recipe")
    return {
        name: getattr(config, name).identity_fields()
        for name in Config.model_fields
        if name not in told
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_name(config: Config, root: Path) -> Path:
    """Where the run's `config.yaml` is, or will be.

    Raises:
        UserError: The name already stands for another configuration.
    """
    path = root / "runs" / config.name / "config.yaml"
    changed = sorted(differences(load_config(path), config).items()) if path.exists() else []
    if changed:
        few = [f"{k}: {old!r} there, {new!r} now" for k, (old, new) in changed[:TOLD]]
        more = [f"{len(changed) - TOLD} more"] * (len(changed) > TOLD)
        raise UserError(
            f"run {config.name!r} exists with another configuration ({'; '.join([*few, *more])})",
            f"choose another NAME, or begin anew: rm -r {shlex.quote(str(path.parent))}",
        )
    return path


def save_config(config: Config, root: Path, typed: str = "") -> Path:
    """Write the run's `config.yaml`, its first line what was typed; raises as `check_name`.

    Where that is not said, what was said before stays. A line that cannot be shown, or not be
    typed again because a secret would have to be left out, is not written down.
    """
    path = check_name(config, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    said = typed if typed.isprintable() and redact(typed) == typed else ""
    said = said or begun_by(path.parent)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(path, f"{TYPED}{said}\n{text}" if said else text)
    return path


def begun_by(run: Path) -> str:
    """The line that was typed to begin the run of that folder; empty where it is not known."""
    try:
        with (run / "config.yaml").open(encoding="utf-8") as file:
            first = file.readline().rstrip("\n")
    except (OSError, ValueError):
        return ""
    return first.removeprefix(TYPED) if first.startswith(TYPED + COMMAND) else ""


def resume_command(run: Path) -> str:
    """What to type to go on with the run of that folder."""
    return begun_by(run) or "the make pipeline that began it, with all its words"


def load_config(path: Path) -> Config:
    """The configuration in a `config.yaml`."""
    return build(Config, read_yaml(path), str(path))
