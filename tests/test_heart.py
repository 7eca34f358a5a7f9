"""What a report must not hide: a model that knows its texts by heart, and a test it has seen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard
from conftest import advance
from tiny import PARAGRAPH

from pipeline.config import Config, resolve

pytestmark = pytest.mark.slow

LEARN = (
    "train.method=full",
    "train.weights=fp32",
    "train.steps=240",
    "train.validate_every=240",
    "train.batch=4",
    "train.micro_batch=4",
    "train.length=256",
    "train.lr=5e-3",
    "train.gradient_checkpointing=false",
    "evaluate.prompts=12",
    "evaluate.prompt_tokens=16",
    "evaluate.new_tokens=64",
)


def texts(count: int, words: int = 90, seed: int = 0) -> list[str]:
    """Texts that share words and nothing else."""
    lot, known = random.Random(seed), PARAGRAPH.split()
    return [" ".join(lot.choice(known) for _ in range(words)) for _ in range(count)]


@pytest.fixture
def report(
    tmp_path: Path, models: Callable[[str], Path], small: Callable[..., Config]
) -> Callable[..., dict[str, Any]]:
    """The report of a run over these texts."""

    def make(documents: list[str], *words: str) -> dict[str, Any]:
        lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)
        (tmp_path / "texts.jsonl.zst").write_bytes(zstandard.compress(lines))
        path = tmp_path / "texts.yaml"
        path.write_text(yaml.safe_dump({"urls": [(tmp_path / "texts.jsonl.zst").as_uri()]}))
        from conftest import SMALL

        config = resolve(str(path), str(models("llama")), "lora", [*SMALL, *words], "heart")
        node = advance(config, tmp_path / "root", "evaluate.report")
        found: dict[str, Any] = json.loads(
            (node.work.folder / "report" / "report.json").read_text()
        )
        return found

    return make


def test_a_model_that_knows_its_ten_documents_by_heart_is_caught(
    report: Callable[..., dict[str, Any]],
) -> None:
    found = report(texts(20), "tokenize.validation=0.25", "tokenize.test=0.25", *LEARN)
    assert 5 <= found["corpus"]["splits"]["train"]["documents"] <= 15
    told = {finding["what"]: finding["text"] for finding in found["findings"]}
    learned = found["written"]["tuned"]["learned"]
    assert learned["recited"] >= 0.8
    assert learned["copied_long"] >= 0.8
    assert learned["copied_longest"] >= 50
    assert found["written"]["base"]["learned"]["recited"] == 0
    assert "word for word" in told["learned by heart"]
    assert found["gap"]["ci95"][0] > 1
    assert found["gap"]["seen"] == 1
    assert "training documents than on test documents" in told["gap"]
    assert found["verdict"]["outcome"] != "better"


def test_test_documents_that_were_copied_into_training_are_reported(
    report: Callable[..., dict[str, Any]],
) -> None:
    lot, known = random.Random(1), PARAGRAPH.split()

    def edited(text: str) -> str:
        words = text.split()
        for place in range(7, len(words), 15):
            words[place] = lot.choice(known)
        return " ".join(words)

    originals = texts(60, 120)
    exactly = [text + " " for text in originals[:20]]  # a space more, so the hash is another
    nearly = [edited(text) for text in originals[20:40]]
    found = report([*originals, *exactly, *nearly], "evaluate.prompts=0", "train.steps=2")
    documents = found["corpus"]["documents"]
    assert documents == 100, "none of them is an exact duplicate"
    overlap = found["overlap"]["test"]
    # two of three have a copy; most of those copies fell to training
    assert 0.35 * overlap["documents"] <= overlap["near_duplicates"] < overlap["documents"]
    told = {finding["what"]: finding["text"] for finding in found["findings"]}
    assert "nearly the same as a training document" in told["near-copies"]
