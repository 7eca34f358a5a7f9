"""Which settings of a run differ from those of its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.redaction import redact_all
from pipeline.core.registry import entry
from pipeline.core.settings import build
from pipeline.core.stage import RunConfig
from pipeline.report import SECTIONS

SECTIONS_WITHOUT_RECIPE = ("dataset", "model")
"""Sections that a recipe does not set."""


def describe_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide results, for `report.json`; secrets are removed.

    Returns:
        `recipe`: its name. `values`: by section. `changed`: by dotted name, the value and the
        recipe's.
    """
    values = {name: getattr(config, name).hashed_values() for name in SECTIONS}
    plain = recipe_settings(config)
    changed = {
        f"{section}.{name}": {"value": value, "recipe": plain[section][name]}
        for section in plain
        for name, value in values[section].items()
        if plain[section][name] != value
    }
    named = Path(config.recipe).stem
    return {"recipe": named, **redact_all({"values": values, "changed": changed})}


def recipe_settings(config: RunConfig, known: bool = True) -> dict[str, dict[str, Any]]:
    """The settings that decide results, by section, as the run's recipe has them.

    The defaults if the recipe no longer exists.
    """
    try:
        recipe = entry("recipes", config.recipe) if known and config.recipe else {}
        kinds = {
            name: type(getattr(config, name))
            for name in SECTIONS
            if name not in SECTIONS_WITHOUT_RECIPE
        }
        sections = {
            name: build(kind, recipe.get(name, {}), "recipe") for name, kind in kinds.items()
        }
    except UserError:
        return recipe_settings(config, known=False)
    return {name: section.hashed_values() for name, section in sections.items()}
