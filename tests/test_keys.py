"""Recipe keys survive releases: a golden file holds those of a dozen configurations.

A key that moves makes users compute again what they have. Where a test here fails, a neutral value,
a default or a declaration has changed: give a new field a neutral value that reproduces what was
computed before, and leave the neutral values of others alone. `python -m tests.test_keys` adds new
configurations and fields to the file; it changes no entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import dag
from pipeline.config import ALL_SECTIONS, Config, resolve
from pipeline.core.settings import Section, hashed, neutral_values

GOLDEN = Path(__file__).with_name("golden") / "keys.json"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nih": {"dataset": "nih"},
    "nih, another learning rate": {"dataset": "nih", "overrides": ["train.lr=3e-4"]},
    "nih, gpt2, all weights": {"dataset": "nih", "model": "gpt2", "recipe": "full"},
    "nih, a split share": {"dataset": "nih", "overrides": ["tokenize.test=0.01"]},
    "nih, no spikes skipped": {"dataset": "nih", "overrides": ["train.spike_factor=null"]},
    "nih, other prompts": {"dataset": "nih", "overrides": ["evaluate.prompts=3"]},
    "nih, another context": {"dataset": "nih", "overrides": ["evaluate.context=512"]},
    "nih, other betas": {"dataset": "nih", "overrides": ["train.betas=[0.9,0.99]"]},
    "law, opt-6.7b": {"dataset": "law", "model": "opt-6.7b"},
    "law-cap": {"dataset": "law-cap"},
    "law-courtlistener, small chunks": {
        "dataset": "law-courtlistener",
        "overrides": ["decompress.chunk_bytes=1000000"],
    },
    "nih-exporter, some years": {
        "dataset": "nih-exporter",
        "overrides": ["dataset.years=2020-2022"],
    },
    "nih, as CSV": {"dataset": "nih", "overrides": ["dataset.form=csv"]},
    "nih, split by a field": {"dataset": "nih", "overrides": ["dataset.split_by=meta.id"]},
    "demo": {"dataset": "demo", "model": "smollm2-135m", "recipe": "demo"},
    "original": {"dataset": "nih", "recipe": "original"},
    "a hub model": {"dataset": "nih", "model": "owner/name@v1"},
}


def key_table() -> dict[str, dict[str, str]]:
    return {name: dag.keys(resolve(**words)) for name, words in CONFIGURATIONS.items()}


def neutral_table() -> dict[str, Any]:
    return {
        f"{name}.{field}": value
        for name in ALL_SECTIONS
        for field, value in neutral_values(section_of(name)).items()
    }


def section_of(name: str) -> type[Section]:
    section = Config.model_fields[name].annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return section


def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(GOLDEN.read_text())
    return content


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_keys_are_those_of_the_golden_file(name: str) -> None:
    assert dag.keys(resolve(**CONFIGURATIONS[name])) == golden()["keys"][name]


def test_neutral_values_never_change_and_every_one_is_recorded() -> None:
    assert neutral_table() == golden()["neutral"]


def test_every_field_says_whether_it_is_part_of_a_key() -> None:
    for name in ALL_SECTIONS:
        section = section_of(name)
        for field, info in section.model_fields.items():
            declared = field in neutral_values(section) or field in section.not_hashed_fields()
            assert declared or info.is_required(), f"{name}.{field}: hashed() or not_hashed()?"


def test_a_new_setting_leaves_keys_alone_until_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dag.keys(resolve("nih"))
    train = next(step for step in dag.STEPS if step.name == "train.train")

    class Grown(section_of("train")):  # type: ignore[misc]
        new: int = hashed(1, neutral=1)

    steps = tuple(
        type(step)(**{**vars(step), "uses": (*step.uses, "train.new")}) if step is train else step
        for step in dag.STEPS
    )
    monkeypatch.setattr(dag, "STEPS", steps)
    config = resolve("nih")
    fields = config.train.model_dump()
    assert dag.keys(config.model_copy(update={"train": Grown(**fields)})) == before
    other = dag.keys(config.model_copy(update={"train": Grown(**fields, new=2)}))
    moved = {name for name in before if other[name] != before[name]}
    assert moved == {"train.train", "evaluate.tuned", "evaluate.report"}


def test_the_version_of_a_table_behind_auto_is_part_of_the_key() -> None:
    class First(Section):
        share: str | float = hashed("auto", neutral="auto", table=1)

    class Second(Section):
        share: str | float = hashed("auto", neutral="auto", table=2)

    assert First().key_part("share") is not Second().key_part("share")
    assert Second().key_part("share") == "auto@2"
    assert First(share=0.1).key_part("share") == Second(share=0.1).key_part("share") == 0.1


def write() -> None:
    """Add what is new to the golden file."""
    known = golden() if GOLDEN.exists() else {"keys": {}, "neutral": {}}
    content = {
        "keys": {**key_table(), **known["keys"]},
        "neutral": {**neutral_table(), **known["neutral"]},
    }
    GOLDEN.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
