"""What a report must not hide: a model that knows its texts by heart, and a test it has seen."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
import yaml
import zstandard

from pipeline.config import Config, resolve
from pipeline.report.formatting import number
from tests.helpers.runs import advance
from tests.helpers.tiny import PARAGRAPH

pytestmark = pytest.mark.slow

LEARN = (
    "train.method=full",
    "train.weights=fp32",
    "train.steps=240",
    "train.validate_every=240",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.sequence_length=256",
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
        from tests.helpers.runs import SMALL

        config = resolve(str(path), str(models("llama")), "lora", [*SMALL, *words], "heart")
        node = advance(config, tmp_path / "root", "evaluate.report")
        found: dict[str, Any] = json.loads(
            (node.work.folder / "report" / "report.json").read_text()
        )
        return found

    return make


@pytest.mark.thorough
def test_a_model_that_knows_its_ten_documents_by_heart_is_caught(
    report: Callable[..., dict[str, Any]],
) -> None:
    found = report(texts(34), "tokenize.validation=0.2", "tokenize.test=0.45", *LEARN)
    splits = found["corpus"]["splits"]
    assert 5 <= splits["train"]["documents"] <= 15
    assert splits["test"]["documents"] >= 10
    told = {finding["what"]: finding["text"] for finding in found["findings"]}
    learned = found["written"]["tuned"]["learned"]
    assert learned["recited"] >= 0.8
    assert learned["copied_long"] >= 0.8
    assert learned["copied_longest"] >= 50
    assert found["written"]["base"]["learned"]["recited"] == 0
    assert "word for word" in told["memorization"]
    assert found["gap"]["ci95"][0] > 1
    assert found["gap"]["seen"] == 1
    # the base model is random, so words that all texts share help on test documents, too
    assert "training documents than on test documents" in told["gap"]


def digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def column(root: Path, pattern: str, *names: str) -> Iterator[Any]:
    """Rows of the one table that is called so."""
    (path,) = root.glob(pattern)
    return zip(*pq.read_table(path, columns=[*names]).to_pydict().values(), strict=True)


def test_test_documents_that_stand_in_training_are_reported(
    report: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    lot, known = random.Random(1), PARAGRAPH.split()

    def edited(text: str) -> str:
        words = text.split()
        for place in range(7, len(words), 15):
            words[place] = lot.choice(known)
        return " ".join(words)

    originals, around = texts(60, 120), texts(40, 120, seed=2)
    planted = {
        "exact": [text + " " for text in originals[:20]],  # a space more, so another hash
        "edited": [edited(text) for text in originals[20:40]],
        "quoting": [
            f"{around[2 * n]} {text} {around[2 * n + 1]}" for n, text in enumerate(originals[40:])
        ],
    }
    documents = originals + [text for made in planted.values() for text in made]
    shares = ("tokenize.test=0.25", "evaluate.max_documents=200")
    found = report(documents, "evaluate.prompts=0", "train.steps=2", *shares)
    assert found["corpus"]["documents"] == 120, "none of them is an exact duplicate"

    root = tmp_path / "root"
    tables = {
        split: dict(column(root, f"data/*/overlap-*/overlap/{split}.parquet", "hash", "near"))
        for split in ("validation", "test")
    }
    held_out = {text for table in tables.values() for text in table}
    gives_away: dict[str, tuple[str, str]] = {}
    pairs = zip(originals, [(k, made) for k in planted for made in planted[k]], strict=True)
    for original, (kind, made) in pairs:
        gives_away[digest(original)] = kind, digest(made)
        if kind != "quoting":  # what quotes is mostly its own text
            gives_away[digest(made)] = kind, digest(original)
    near = {
        text: gives_away[text][0]
        for text in tables["test"]
        if text in gives_away and gives_away[text][1] not in held_out
    }
    assert {text for text, is_near in tables["test"].items() if is_near} == set(near)
    counts = Counter(near.values())
    assert min(counts[kind] for kind in planted) >= 2, "of each kind some fell to test"

    clean = found["evaluation"]["test"]["without_near_duplicates"]
    kept = len(tables["test"]) - len(near)
    assert (clean["documents"], clean["left_out"]) == (kept, len(near))
    for who, pattern in (("base", "data/*/scores-*"), ("tuned", "runs/heart/evaluate-*")):
        rows = column(root, f"{pattern}/test/scores.parquet", "hash", "nll", "tokens")
        nll, tokens = np.array([row[1:] for row in rows if row[0] not in near]).sum(0)
        assert clean[who] == pytest.approx(np.exp(nll / tokens))
    told = {finding["what"]: finding["text"] for finding in found["findings"]}["near-duplicates"]
    assert told.startswith(f"{len(near)} of {len(tables['test'])} test documents")
    assert "near-duplicates of a training document, or 80 % or more of their tokens" in told
    assert f"from {number(clean['base'])} to {number(clean['tuned'])}" in told
