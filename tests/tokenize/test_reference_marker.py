"""Ids that are wrong somewhere are trusted nowhere; ids without a row of the model are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import Config, resolve
from pipeline.core import receipt as receipts
from pipeline.core.errors import CorruptInput, UserError
from pipeline.core.receipt import Receipt
from pipeline.dag import find
from pipeline.tokenize.encoder import FastEncoder, FlatIds
from tests.helpers.runs import SMALL, advance

pytestmark = pytest.mark.slow


def encoders(root: Path) -> dict[str, int]:
    """How many shards each encoder made."""
    made: list[str] = [
        json.loads(path.read_text())["facts"]["encoder"].split()[0]
        for path in root.glob("data/*/shards-*/chunk-*/receipt.json")
    ]
    return {name: made.count(name) for name in set(made)}


@pytest.fixture
def wrong_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast encoder gives wrong ids for one document, and all documents are compared."""
    sound = FastEncoder.encode

    def broken(self: FastEncoder, texts: list[str]) -> FlatIds:
        ids, offsets = sound(self, texts)
        if any(text.startswith("7: ") for text in texts):
            ids = ids[::-1].copy()
        return ids, offsets

    monkeypatch.setattr(FastEncoder, "encode", broken)
    monkeypatch.setattr("pipeline.tokenize.chunk.CHECKED_PER_65536", 65_536)


def test_a_mismatch_in_one_chunk_has_the_reference_make_all(
    small: Callable[..., Config], tmp_path: Path, wrong_once: None
) -> None:
    config, root = small(), tmp_path / "root"
    advance(config, root, "tokenize.shards")
    before = encoders(root)
    assert before["tokenizers"] == 1
    assert before["fastokens"] > 1
    with pytest.raises(CorruptInput) as caught:
        advance(config, root, "tokenize.seal")
    assert str(caught.value).startswith("fastokens 0.3.5 gives other ids for '")
    assert str(caught.value).endswith(
        f"': {before['fastokens']} of {sum(before.values())} shards were made by it and are no "
        "longer used. Run the same command again: the model's own library then makes all shards"
    )
    assert find(config, root, "tokenize.shards").missing
    node = advance(config, root, "tokenize.seal")
    assert encoders(root) == {"tokenizers": sum(before.values())}
    seal = node.done["seal"]
    assert seal.facts["encoder"].startswith("tokenizers ")

    other = small("tokenize.validation=0.2")  # in another folder, and the mark counts there, too
    advance(other, root, "tokenize.shards")
    assert "fastokens" not in encoders(root)


def test_shards_of_the_reference_are_those_of_a_sound_fast_encoder(
    small: Callable[..., Config], tmp_path: Path, prepared: Path, request: pytest.FixtureRequest
) -> None:
    config, root = small(), tmp_path / "root"
    request.getfixturevalue("wrong_once")
    with pytest.raises(CorruptInput):
        advance(config, root, "tokenize.seal")
    advance(config, root, "tokenize.seal")
    paths = sorted(prepared.glob("data/*/shards-*/chunk-*/*.parquet"))
    assert paths
    for path in paths:
        assert pq.read_table(path).equals(pq.read_table(root / path.relative_to(prepared)))


def test_a_model_without_tokenizer_json_is_set_aside(
    small: Callable[..., Config], tmp_path: Path
) -> None:
    """An earlier version committed it for a tokenizer without a fast form."""
    config, root = small(), tmp_path / "root"
    node = advance(config, root, "decompress.chunks")
    model = find(config, root, "download.model")
    unit = model.work.folder / "base"
    receipt = receipts.load(unit)
    assert isinstance(receipt, Receipt)
    del receipt.outputs["tokenizer.json"]
    receipts.write(receipt, unit)
    assert node.complete
    assert find(config, root, "tokenize.shards").missing, "plan and status work"
    with pytest.raises(CorruptInput, match=r"has no tokenizer\.json\. It was set aside as"):
        advance(config, root, "tokenize.shards")
    advance(config, root, "tokenize.shards")


def larger(folder: Path, to: Path) -> Path:
    """A copy of a model with an added token that has no row in the embedding."""
    shutil.copytree(folder, to)
    path = to / "tokenizer_config.json"
    token = {"content": "<image>", "special": True, "normalized": False}
    content = json.loads(path.read_text()) | {"added_tokens_decoder": {"512": token}}
    path.write_text(json.dumps(content))
    return to


def test_a_token_without_a_row_is_refused_where_it_occurs(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    lines = [
        {"text": f"{n}: the court <image> of appeals"[: 17 if n != 9 else None]} for n in range(40)
    ]
    corpus = tmp_path / "c.jsonl"
    model = larger(models("llama"), tmp_path / "larger")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"urls": [corpus.as_uri()]}))
    config = resolve(str(path), str(model), "lora-8bit", SMALL, "small")

    corpus.write_text(
        "\n".join(json.dumps(line) for line in lines if "<image>" not in line["text"])
    )
    advance(config, tmp_path / "sound", "tokenize.seal")
    (item,) = find(config, tmp_path / "sound", "tokenize.shards").items or []
    assert (item.inputs or {})["rows"] == "512", "shards for a model with more rows are others"

    corpus.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError) as caught:
        advance(config, tmp_path / "root", "tokenize.shards")
    assert str(caught.value) == (
        "the document c.jsonl:10 contains '<image>', which is token 512, and the embedding of the "
        "model has 512 rows. Take another MODEL, or save this one after "
        "resize_token_embeddings(513)"
    )
