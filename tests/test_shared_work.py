"""Settings whose effect is equal, or that a result does not depend on, compute nothing again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import Config, resolve
from pipeline.core.stage import Context, run_item
from pipeline.dag import STEPS, find
from tests.helpers.runs import SMALL, advance

WORDS = [word for word in SMALL if not word.startswith(("tokenize.validation", "tokenize.test"))]


@pytest.fixture
def config(dataset: Path, models: Callable[[str], Path]) -> Callable[..., Config]:
    def made(*words: str, name: str = "one") -> Config:
        return resolve(str(dataset), str(models("llama")), "lora-8bit", [*WORDS, *words], name)

    return made


def outcomes(config: Config, root: Path, until: str) -> dict[str, set[str]]:
    """Run every step up to `until`: by step, what became of its items."""
    found: dict[str, set[str]] = {}
    for step in STEPS:
        node = find(config, root, step.name)
        assert node.items is not None
        found[step.name] = {
            run_item(node.work, item, Context(log=lambda text: None)) for item in node.items
        }
        if step.name == until:
            return found
    raise ValueError(until)


@pytest.mark.slow
def test_a_split_share_that_equals_auto_encodes_nothing_again(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    advance(config(), tmp_path, "tokenize.seal")
    same = config("tokenize.validation=0.05", "tokenize.test=0.05", name="same")
    assert outcomes(same, tmp_path, "tokenize.seal") == {
        "download.corpus": {"skipped"},
        "download.model": {"skipped"},
        "decompress.chunks": {"skipped"},
        "tokenize.shards": {"adopted"},
        "tokenize.seal": {"adopted"},
    }
    other = config("tokenize.validation=0.2", name="other")
    assert outcomes(other, tmp_path, "tokenize.shards")["tokenize.shards"] == {"done"}


def test_another_form_of_one_file_downloads_nothing_again(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    advance(config(), tmp_path, "download.corpus")
    found = outcomes(config("dataset.form=jsonl", name="named"), tmp_path, "download.corpus")
    assert found == {"download.corpus": {"adopted"}}
    assert len(list((tmp_path / "data" / "small").glob("raw-*/corpus"))) == 2, "a folder for each"


@pytest.mark.parametrize(
    "word", ["evaluate.prompts=2", "evaluate.new_tokens=5", "evaluate.resamples=300"]
)
def test_what_scores_do_not_depend_on_scores_nothing_again(
    finished: Path, small: Callable[..., Config], tmp_path: Path, word: str
) -> None:
    node = find(small(word), finished, "evaluate.base")
    assert {item.name for item in node.missing} == (
        set() if "resamples" in word else {item.name for item in node.items if "-" in item.name}
    )
    assert node.work.folder == find(small(), finished, "evaluate.base").work.folder
