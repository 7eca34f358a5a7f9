"""The last stage on a small corpus: scores, samples, resume, sharing, and the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.core.errors import CorruptInput, Interrupted, UserError
from pipeline.core.settings import build
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.dag import find
from pipeline.dataset.subset import hash_order, sample_documents
from pipeline.dataset.token_cache import SealedShards, TokenizedSplit, open_token_cache
from pipeline.evaluate.metrics import bits_per_byte, perplexity
from pipeline.evaluate.stage import EvaluateConfig, samples_item
from pipeline.tokenize.encoder import ReferenceEncoder
from tests.helpers.runs import advance

WORDS = ("evaluate.context=32", "evaluate.stride=16", "evaluate.batch_tokens=128")


def run(
    config: Config, root: Path, step: str, name: str, stop: Stop | None = None, **ctx: Any
) -> str:
    node = find(config, root, step)
    item = next(item for item in node.items or [] if item.name == name)
    return run_item(node.work, item, Context(stop=stop or Stop(), log=lambda text: None, **ctx))


@pytest.fixture(scope="module")
def root(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that this module may add to."""
    return Path(shutil.copytree(prepared, tmp_path_factory.mktemp("evaluate") / "root"))


@pytest.fixture(scope="module")
def finished(root: Path, small: Callable[..., Config]) -> Config:
    config = small(*WORDS, "evaluate.prompts=2")
    advance(config, root, "evaluate.report")
    return config


def facts(config: Config, root: Path, step: str, name: str) -> dict[str, Any]:
    return find(config, root, step).done[name].facts


def table(config: Config, root: Path, step: str, name: str) -> dict[str, Any]:
    path = find(config, root, step).work.folder / name / "scores.parquet"
    return {key: np.array(value) for key, value in pq.read_table(path).to_pydict().items()}


def corpus_of(config: Config, root: Path, split: str) -> TokenizedSplit:
    node = find(config, root, "evaluate.base")
    sealed, receipt = node.work.inputs["tokenize.seal"].one()
    shards = SealedShards.load(sealed.parent, sealed, receipt.digest)
    return open_token_cache(shards, split, Context())


@pytest.mark.slow
def test_scores_are_those_of_the_model_on_the_documents(finished: Config, root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    exact = finished.model_copy(
        update={"train": finished.train.model_copy(update={"weights": "fp32", "precision": "fp32"})}
    )
    run(exact, root, "evaluate.base", "test")
    scores, corpus = table(exact, root, "evaluate.base", "test"), corpus_of(exact, root, "test")
    folder, receipt = find(exact, root, "evaluate.base").work.inputs["download.model"].one()
    model = AutoModelForCausalLM.from_pretrained(folder)
    short = 0
    for index, nll in zip(scores["document"], scores["nll"], strict=True):
        document = corpus.document(index)
        if len(document) > 32:
            continue
        short += 1
        ids = torch.tensor([[receipt.facts["prefix_id"], *document.tolist()]])
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert nll == pytest.approx(loss * len(document), rel=1e-4)
    assert short
    found = facts(exact, root, "evaluate.base", "test")
    assert found["perplexity"] == pytest.approx(perplexity(scores["nll"], scores["tokens"]))
    assert found["bits_per_byte"] == pytest.approx(bits_per_byte(scores["nll"], scores["bytes"]))
    assert found["tokens"] == np.diff(corpus.offsets).sum() == scores["tokens"].sum()
    assert found["bytes"] == corpus.bytes.sum()
    assert (found["context"], found["stride"], found["precision"]) == (32, 16, "fp32")


def test_base_and_adapted_read_the_same(finished: Config, root: Path) -> None:
    for split in ("train", "validation", "test"):
        base, tuned = (table(finished, root, f"evaluate.{w}", split) for w in ("base", "tuned"))
        for column in ("document", "hash", "tokens", "bytes"):
            assert (base[column] == tuned[column]).all()
        assert sorted(base["hash"]) == base["hash"].tolist()
        assert not np.allclose(base["nll"], tuned["nll"])
        one, other = (facts(finished, root, f"evaluate.{w}", split) for w in ("base", "tuned"))
        assert (one["precision"], one["weights"]) == (other["precision"], other["weights"])


@pytest.mark.slow
def test_both_write_on_the_same_openings(finished: Config, root: Path) -> None:
    base, tuned = (
        json.loads(
            (
                find(finished, root, step).work.folder / samples_item(finished) / "samples.json"
            ).read_text()
        )
        for step in ("evaluate.base", "evaluate.tuned")
    )
    corpus = corpus_of(finished, root, "test")
    folder, _ = find(finished, root, "evaluate.base").work.inputs["download.model"].one()
    long = [d for d in map(corpus.document, hash_order(corpus)) if len(d) > 8]
    first = base["held_out"][0]
    assert [sample["prompt"] for sample in base["held_out"]] == [
        ReferenceEncoder(folder).decode(d[:8]) for d in long[:2]
    ]
    assert first["reference"] == ReferenceEncoder(folder).decode(long[0][8:12])
    for kind in ("held_out", "learned"):
        assert [s["prompt"] for s in base[kind]] == [s["prompt"] for s in tuned[kind]]
        assert [s["greedy"] for s in base[kind]] != [s["greedy"] for s in tuned[kind]]
    assert set(first) == {"prompt", "reference", "greedy", "sampled"}
    assert set(base["learned"][0]) == {"prompt", "reference", "greedy"}
    written = facts(finished, root, "evaluate.tuned", samples_item(finished))["written"]
    assert set(written) == {"reference", "greedy", "sampled", "learned"}
    assert (written["greedy"]["texts"], written["greedy"]["tokens"]) == (2, 8)


def test_the_report_stands_in_the_folder_of_the_run(finished: Config, root: Path) -> None:
    folder = root / "runs/small/report"
    report = json.loads((folder / "report.json").read_text())
    for split in ("validation", "test"):
        for who in ("base", "tuned"):
            found = facts(finished, root, f"evaluate.{who}", split)
            assert report["evaluation"][split][who]["perplexity"] == found["perplexity"]
    assert report["training"]["steps"] == 6
    assert report["corpus"]["splits"]["test"]["documents"] == len(corpus_of(finished, root, "test"))
    assert list(report["stages"]) == ["download", "decompress", "tokenize", "train", "evaluate"]
    assert "evaluate.context" in report["settings"]["changed"]
    html = (folder / "report.html").read_text()
    assert html.count("<svg ") == 2 * len(list(folder.glob("*.svg"))) >= 12
    assert report["verdict"]["figures"].split(" → ")[0] in html
    assert find(finished, root, "evaluate.report").complete


@pytest.mark.slow
@pytest.mark.parametrize(("step", "after"), [("evaluate.base", 1), ("evaluate.tuned", 4)])
def test_an_interrupted_score_ends_with_the_same_bytes(
    finished: Config, root: Path, tmp_path: Path, step: str, after: int
) -> None:
    whole = find(finished, root, step).done["test"]
    again = Path(shutil.copytree(root, tmp_path / "root"))
    unit = find(finished, again, step).work.folder / "test"
    shutil.rmtree(unit)
    stop, seen = Stop(), []

    def progress(done: int, total: int, unit: str) -> None:
        assert unit == "tokens"
        seen.append(done)
        if len(seen) == after:
            stop.set("a test")

    with pytest.raises(Interrupted):
        run(finished, again, step, "test", stop, progress=progress)
    (kept,) = unit.parent.glob(".partial-test-*/batches.jsonl")
    with kept.open("ab") as file:
        file.write(b'{"documents": [1], "nl')
    before = seen[-1]
    seen.clear()
    assert run(finished, again, step, "test", progress=progress) == "done"
    assert seen[0] > before, "what was scored before is not scored again"
    assert seen[-1] == whole.facts["tokens"]
    assert find(finished, again, step).done["test"].outputs == whole.outputs
    assert not list(unit.parent.glob(".partial-*"))


@pytest.mark.slow
def test_batches_scored_under_another_precision_are_not_gone_on_from(
    finished: Config, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Path(shutil.copytree(root, tmp_path / "root"))
    unit = find(finished, again, "evaluate.base").work.folder / "test"
    shutil.rmtree(unit)
    stop, seen = Stop(), []
    monkeypatch.setattr("pipeline.evaluate.run.pick_precision", lambda wanted, device: "bf16")
    with pytest.raises(Interrupted):
        run(finished, again, "evaluate.base", "test", stop, progress=lambda *a: stop.set("a test"))
    monkeypatch.setattr("pipeline.evaluate.run.pick_precision", lambda wanted, device: "fp32")
    run(finished, again, "evaluate.base", "test", progress=lambda *a: seen.append(a[0]))
    assert len(seen) == len(set(seen)) > 1
    assert seen[-1] == facts(finished, root, "evaluate.base", "test")["tokens"]
    items = find(finished, again, "evaluate.tuned").items or []
    wanted = {item.name: item.data["precision"] for item in items}
    assert wanted["test"] == "fp32", "the adapted model follows"


def test_a_new_learning_rate_scores_only_the_adapted_model_again(
    finished: Config, root: Path, small: Callable[..., Config]
) -> None:
    other = small(*WORDS, "evaluate.prompts=2", "train.lr=1e-3", name="other")
    assert find(other, root, "evaluate.base").complete
    assert find(other, root, "evaluate.base").work.folder.parent.name == "small"
    assert find(other, root, "evaluate.tuned").items is None, "the training comes first"


def test_a_damaged_adapter_is_noticed(finished: Config, root: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(root, tmp_path / "root"))
    node = find(finished, again, "evaluate.tuned")
    shutil.rmtree(node.work.folder / "test")
    best, _ = node.work.inputs["train.train"].one()
    content = bytearray((best / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (best / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(CorruptInput, match=r"adapter_model\.safetensors is damaged"):
        run(finished, again, "evaluate.tuned", "test")


def corpus(lengths: list[int]) -> TokenizedSplit:
    """Documents of these lengths, whose hashes are in reverse order."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    hashes = [(len(lengths) - i).to_bytes(16, "big") for i in range(len(lengths))]
    ids = np.zeros(offsets[-1], dtype=np.uint16)
    return TokenizedSplit(ids, offsets, np.array(lengths), np.array(hashes, dtype="V16"), "")


def test_documents_are_chosen_by_hash_as_far_as_they_fit() -> None:
    given = corpus([5, 0, 30, 10, 20])
    assert hash_order(given).tolist() == [4, 3, 2, 1, 0]
    assert hash_order(given, 10).tolist() == [4, 3, 2]
    assert sample_documents(given, 10, None) == [4, 3, 2, 0], "an empty one says nothing"
    assert sample_documents(given, 2, None) == [4, 3]
    assert sample_documents(given, 10, 37) == [4, 3, 0]
    assert sample_documents(given, 10, 3) == [4], "never none"


def test_a_stride_that_leaves_tokens_out_is_refused() -> None:
    values = {"context": 64, "stride": 65}
    with pytest.raises(UserError, match=r"evaluate\.stride=65 is more than the 64 tokens"):
        build(EvaluateConfig, values, "evaluate")
    with pytest.raises(UserError, match=r"stride=300 is more than the 256 tokens that are seen"):
        EvaluateConfig(stride=300).window_and_stride(256)


def test_a_window_is_as_long_as_the_model_sees_and_not_longer() -> None:
    assert EvaluateConfig().window_and_stride(2048) == (1024, 512)
    assert EvaluateConfig().window_and_stride(256) == (256, 128)
    assert EvaluateConfig(context=2048, stride=100).window_and_stride(2048) == (2048, 100)
    with pytest.raises(UserError, match=r"context=512 is longer than the model's context of 256"):
        EvaluateConfig(context=512).window_and_stride(256)
