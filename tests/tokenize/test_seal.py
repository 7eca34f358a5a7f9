"""Duplicate documents are found, and the token cache leaves them out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config, resolve
from pipeline.core.errors import InputError
from pipeline.core.stage import Context
from pipeline.dataset import token_cache
from pipeline.dataset.token_cache import SealedShards, open_token_cache
from pipeline.tokenize.seal import check_texts, find_duplicates
from pipeline.tokenize.shards import HASH_DTYPE
from tests.helpers.examples import examples
from tests.helpers.runs import advance, write_corpus

pytestmark = pytest.mark.slow


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_all_but_the_first_of_equal_texts_are_duplicates(rows: list[tuple[int, int]]) -> None:
    digests = np.array(rows, dtype=np.uint64).reshape(-1, 2).view(HASH_DTYPE).ravel()
    again = [n for n, row in enumerate(rows) if row in rows[:n]]
    assert find_duplicates(digests).tolist() == again


@pytest.mark.parametrize("workers", [1, 3])
def test_the_cache_holds_each_text_once(
    small: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl.zst", 150)
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        (twice / f"{name}.jsonl.zst").write_bytes(corpus.read_bytes())
    dataset = resolve("nih", file=str(twice), overrides=["dataset.id_field=meta.id"]).dataset
    config = small().model_copy(update={"dataset": dataset})
    node = advance(config, tmp_path / "root", "tokenize.seal")
    folder = node.work.folder
    sealed = SealedShards.load(folder, folder / "seal", node.done["seal"].digest)
    seal = sealed.content
    assert sum(seal["duplicates"].values()) == 150
    texts = 0
    for split in ("train", "validation", "test"):
        found = open_token_cache(sealed, split, Context(cpus=workers))
        assert len(found) == seal["splits"][split]["documents"]
        assert len(set(found.hashes.tolist())) == len(found)
        texts += len(found)
        rows = {}
        for shard in seal["shards"]:
            table = pq.read_table(folder / shard / f"{split}.parquet")
            assert table["tokens"].to_pylist() == [
                len(ids) for ids in table["input_ids"].to_pylist()
            ]
            rows |= {row["hash"]: row for row in table.to_pylist()}
        for n, digest in enumerate(found.hashes):
            row = rows[digest.tobytes()]
            assert found.document(n).tolist() == row["input_ids"]
            assert found.bytes[n] == row["bytes"]
    assert texts == 150


def test_one_of_several_processes_builds_the_cache(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = advance(small(), tmp_path / "root", "tokenize.seal")
    folder = node.work.folder
    sealed = SealedShards.load(folder, folder / "seal", node.done["seal"].digest)
    build, built = token_cache._build, []

    def slow_build(*args: Any) -> None:
        built.append(args)
        time.sleep(0.5)
        build(*args)

    monkeypatch.setattr(token_cache, "_build", slow_build)
    monkeypatch.setattr(token_cache, "POLL_SECONDS", 0.05)

    def digest(label: str) -> str:
        context = Context(label=label, has_ended=lambda label: False)
        return open_token_cache(sealed, "train", context).digest

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(digest, "abc"))) == 1
    assert len(built) == 1
    assert not list(node.work.folder.glob(".lease-*"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["", " \n"] * 20, "all 40 texts of the corpus are empty. Name the field with the text"),
        ([None] * 5, "all 5 texts of the corpus are empty"),
        (["The same."] * 30, "all 30 documents of the corpus have the same text"),
        (["Alone."], "the corpus has one document, and three splits need at least three"),
    ],
)
def test_texts_that_are_all_alike_are_told_at_the_seal(
    small: Callable[..., Config], tmp_path: Path, texts: list[str | None], message: str
) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["dataset.id_field=null", "dataset.sha256=null", "dataset.size=null"]
    dataset = resolve("nih", file=str(corpus), overrides=words).dataset
    config = small().model_copy(update={"dataset": dataset})
    with pytest.raises(InputError, match=message):
        advance(config, tmp_path / "root", "tokenize.seal")


def test_texts_without_tokens_are_told_at_the_seal() -> None:
    counts = {"documents": 5, "tokens": 0, "bytes": 50}
    facts = {"splits": {"train": counts}, "empty": 0}
    message = "the tokenizer makes no tokens of any of the 5 documents. Use a MODEL whose tokenizer"
    with pytest.raises(InputError, match=message):
        check_texts([facts], {"train": counts})  # type: ignore[list-item, dict-item]
