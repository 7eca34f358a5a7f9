"""The configuration of a run: one validated, frozen object.

Defaults of the sections ← recipe YAML ← the words of `ARGS`. `pipeline.saved_config` writes it to
`runs/<name>/config.yaml`, from which the run continues.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.core.errors import UserError
from pipeline.core.receipt import hash_json
from pipeline.core.redaction import redact
from pipeline.core.registry import (
    OWN_FILE_SUFFIXES,
    BaseModel,
    Dataset,
    Kind,
    entry,
    find_dataset,
    find_model,
)
from pipeline.core.settings import Section, build, merge, parse_overrides
from pipeline.decompress.stage import DecompressConfig
from pipeline.download.stage import DownloadConfig
from pipeline.evaluate.stage import EvaluateConfig
from pipeline.tokenize.stage import TokenizeConfig
from pipeline.train.stage import TrainConfig

DEFAULT_MODEL, DEFAULT_RECIPE = "opt-125m", "lora-8bit"  # defaults where the dataset names none
MAX_NAME_BYTES = 200  # of a run's name
MAX_NAME_CHARS = 80  # of a name that is made up


class Request(Section):
    """What the user asked for when the run began; it decides nothing by itself.

    Typing the same request again continues the run, also under a release with other defaults.
    `dataset`, `model`, `recipe` hold an id, or the content of the user's own YAML file. `named`:
    whether NAME was given. `settings`: those of ARGS, by section.
    """

    dataset: str | dict[str, Any] = ""
    model: str | dict[str, Any] | None = None
    recipe: str | dict[str, Any] | None = None
    file: str | None = None
    named: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)


class Config(Section):
    """Everything that a run computes, and nothing about where it is computed.

    `recipe` and `request` say where its settings came from; they decide nothing.
    """

    name: str
    recipe: str = ""
    request: Request = Request()
    dataset: Dataset
    model: BaseModel
    download: DownloadConfig = DownloadConfig()
    decompress: DecompressConfig = DecompressConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


ALL_SECTIONS = tuple(n for n in Config.model_fields if n not in ("name", "recipe", "request"))


def resolve(
    dataset: str,
    model: str | None = None,
    recipe: str | None = None,
    overrides: list[str] | None = None,
    name: str | None = None,
    file: str | None = None,
) -> Config:
    """Build the configuration that the user asks for.

    Args:
        dataset: Registry id, or path of a YAML file.
        model: Registry id, local folder, or hub repo id; None for the dataset's own default.
        recipe: Registry id, or path of a YAML file; None likewise.
        overrides: Words like `train.lr=3e-4`.
        name: The run's name; None to make one from the dataset and what differs from the defaults.
        file: A local copy of the corpus.

    Raises:
        UserError: A name is unknown, or a setting has the wrong name, type or value.
    """
    data = find_dataset(dataset, file)
    model_name = model or data.model or DEFAULT_MODEL
    recipe_name = recipe or data.recipe or DEFAULT_RECIPE
    overrides_tree = parse_overrides(overrides or [])
    for word in {"name", "recipe", "request"} & overrides_tree.keys():
        what = f"ARGS: the run's {word} is not a setting"
        raise UserError(what, f"Write {word.upper()}=… beside ARGS")
    values = {
        **{k: v for k, v in entry("recipes", recipe_name).items() if k != "id"},
        "name": name or data.id,
        "recipe": recipe_name,
        "dataset": data.model_dump(),
        "model": find_model(model_name).model_dump(),
    }
    check_run_name(values["name"])
    config: Config = build(Config, values, f"recipe {recipe_name}")
    without_overrides = config
    if overrides_tree:
        config = build(Config, merge(values, overrides_tree), "ARGS")
    if config.model.context:
        config.train.window_tokens(config.model.context)
        config.evaluate.check_context(config.model.context)
    config.train.check_targets(config.model.modules)
    request = Request(
        dataset=_requested("datasets", dataset) or "",
        model=config.model.path or _requested("models", model),
        recipe=_requested("recipes", recipe),
        file=file and str(Path(file).expanduser().resolve()),
        named=name is not None,
        settings=overrides_tree,
    )
    if name is not None:
        return config.model_copy(update={"request": request})
    differs = [config.model.id] if model_name != (data.model or DEFAULT_MODEL) else []
    differs += [Path(recipe_name).stem] if recipe_name != (data.recipe or DEFAULT_RECIPE) else []
    changed = sorted(differences(without_overrides, config).items())
    differs += [f"{name}={_as_typed(new)}" for name, (_, new) in changed]
    return config.model_copy(update={"name": _run_name(data.id, differs), "request": request})


def check_run_name(name: str) -> None:
    """Raise `UserError` if a folder cannot have this name."""
    if not name or name.startswith(".") or re.search(r"[/\0\n]", name):
        raise UserError(
            f"NAME={name!r} cannot be a folder's name",
            "Use no / and no line break, and no dot at the start",
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(f"NAME={name[:20]}… is longer than {MAX_NAME_BYTES} bytes", "Shorten it")


def _requested(kind: Kind, name: str | None) -> str | dict[str, Any] | None:
    """A registered name as it is; the content in place of the user's own file, which may change."""
    own_file = name is not None and Path(name).suffix in OWN_FILE_SUFFIXES
    return entry(kind, name) if name is not None and own_file else name


def _as_typed(value: Any) -> str:
    """A setting as users type it, without the quotes and brackets of a list."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _run_name(dataset: str, differs: list[str]) -> str:
    shown = [redact(word) for word in differs]
    name = "+".join([dataset, *(re.sub(r"[/:%\\\s]+", "_", word) for word in shown)])
    if len(name) <= MAX_NAME_CHARS and shown == differs:
        return name
    return f"{name[: MAX_NAME_CHARS - 9]}-{hash_json(differs)[:8]}"


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that decide results and differ: dotted name → (one's value, other's)."""
    left, right = _flat(hashed_values(one)), _flat(hashed_values(other))
    return {k: (left.get(k), right.get(k)) for k in {*left, *right} if left.get(k) != right.get(k)}


def hashed_values(config: Config) -> dict[str, Any]:
    """The settings that decide results, by section."""
    return {name: getattr(config, name).hashed_values() for name in ALL_SECTIONS}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
