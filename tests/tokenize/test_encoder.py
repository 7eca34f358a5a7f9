"""The fast encoder gives the ids of the model's own tokenizer, or is not used."""

from __future__ import annotations

import json
import random
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)  # fmt: skip
from tokenizers import models as shapes

from pipeline.config import Config
from pipeline.tokenize import encoder as module
from pipeline.tokenize.encoder import EncoderMismatch, FastEncoder, ReferenceEncoder, load_encoder
from tests.helpers import tiny
from tests.helpers.runs import advance

END = "<|endoftext|>"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CORPUS = [tiny.PARAGRAPH, *module.PROBES, "naïve Übung Привет 你好 123 4567 don't"] * 3


def make(shape: str) -> Tokenizer:
    """A byte-level or SentencePiece-like BPE tokenizer like that of a known model family."""
    tokenizer = Tokenizer(shapes.BPE(byte_fallback=shape == "sentencepiece", unk_token=None))
    if shape == "sentencepiece":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>", *alphabet])
        tokenizer.train_from_iterator(CORPUS, trainer)
        return tokenizer
    if shape in ("llama3", "qwen"):
        split = pre_tokenizers.Split(Regex(LLAMA3 if shape == "llama3" else QWEN), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if shape == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END, "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if shape == "opt":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), (END, 0))
        tokenizer.enable_truncation(16)
        tokenizer.enable_padding(length=16)
    return tokenizer


@pytest.fixture(scope="module", params=["gpt2", "opt", "llama3", "qwen", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer of one family."""
    path = tmp_path_factory.mktemp(request.param)
    make(request.param).save(str(path / "tokenizer.json"))
    return path


def hard_texts() -> list[str]:
    """Texts with every assigned character, random characters, and runs of one character."""
    chance = random.Random(0)
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    texts = ["a".join(known[at : at + 64]) for at in range(0, len(known), 1024)]
    texts += ["".join(chance.choices(known, k=40)) for _ in range(200)]
    texts += ["".join(map(chr, chance.choices(range(128), k=40))) for _ in range(200)]
    texts += [c * n for c in " .7a\n-漢é" for n in (1, 2, 3, 17, 5000)]
    texts += [f"a{END}b {END} </s>c<s>", END * 3, "<0x41> ▁ ▁▁ x"]
    return [*texts, *module.PROBES, tiny.PARAGRAPH]


@pytest.mark.slow
def test_ids_equal_those_of_the_models_own_tokenizer(folder: Path) -> None:
    reference = ReferenceEncoder(folder)
    fast = FastEncoder(folder, reference)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    texts = hard_texts()
    wanted = [encoding.ids for encoding in plain.encode_batch(texts, add_special_tokens=False)]
    for encoder in (reference, fast):
        ids, offsets = encoder.encode(texts)
        for n, text in enumerate(texts):
            assert ids[offsets[n] : offsets[n + 1]].tolist() == wanted[n], repr(text[:80])
    assert fast.name.startswith("fastokens ")


def test_text_that_spells_a_special_token_becomes_it(tmp_path: Path) -> None:
    make("gpt2").save(str(tmp_path / "tokenizer.json"))
    reference = ReferenceEncoder(tmp_path)
    ids, _ = FastEncoder(tmp_path, reference).encode([f"a{END}b"])
    assert ids[1] == 0
    assert reference.decode(ids.tolist()) == f"a{END}b"


def test_unsupported_tokenizer_uses_the_reference(tmp_path: Path) -> None:
    tokenizer = Tokenizer(shapes.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reference = ReferenceEncoder(tmp_path)
    encoder, why = load_encoder(tmp_path, reference)
    assert encoder is reference
    assert why is not None
    assert "does not load" in why
    assert encoder.encode(["a b", "", "c"])[0].tolist() == [0, 1, 2]


def test_a_panic_of_the_fast_encoder_is_a_mismatch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """Like the exception that pyo3 raises."""

    class Broken:
        def encode_batch_flat(self, texts: list[str]) -> None:
            raise Panic("index out of bounds")

    fast = FastEncoder(folder, ReferenceEncoder(folder))
    monkeypatch.setattr(fast, "_tokenizer", Broken())
    with pytest.raises(EncoderMismatch, match="cannot encode a text: index out of bounds"):
        fast.encode(["a"])


def test_without_the_package_the_reference_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    encoder, why = load_encoder(folder, ReferenceEncoder(folder))
    assert isinstance(encoder, ReferenceEncoder)
    assert why is not None
    assert "does not load" in why


def damaged(folder: Path, to: Path) -> Path:
    """A copy of a model folder without the first merge, which changes the ids of most texts."""
    shutil.copytree(folder, to)
    path = to / "tokenizer.json"
    content: dict[str, Any] = json.loads(path.read_text())
    del content["model"]["merges"][0]
    path.write_text(json.dumps(content))
    return to


def test_loading_detects_other_ids(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    make("gpt2").save(str(tmp_path / "a" / "tokenizer.json"))
    other = damaged(tmp_path / "a", tmp_path / "b")
    with pytest.raises(EncoderMismatch, match="gives other ids for"):
        FastEncoder(other, ReferenceEncoder(tmp_path / "a"))


@pytest.mark.slow
def test_chunk_is_redone_when_token_ids_differ(
    small: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small()
    advance(config, tmp_path / "right", "tokenize.shards")
    sound = FastEncoder.encode

    def broken(self: FastEncoder, texts: list[str]) -> module.FlatIds:
        ids, offsets = sound(self, texts)
        return (ids if texts[0] == module.PROBES[0] else ids[::-1].copy()), offsets

    monkeypatch.setattr(FastEncoder, "encode", broken)
    monkeypatch.setattr("pipeline.tokenize.chunk.CHECKED_PER_65536", 65_536)
    advance(config, tmp_path / "wrong", "tokenize.shards")
    for path in sorted((tmp_path / "right").rglob("*.parquet")):
        other = tmp_path / "wrong" / path.relative_to(tmp_path / "right")
        assert pq.read_table(path).equals(pq.read_table(other))
    named = {
        json.loads(path.read_text())["facts"]["encoder"]
        for path in (tmp_path / "wrong").rglob("chunk-*/receipt.json")
        if "shards-" in str(path)
    }
    assert len(named) == 1
    assert named.pop().startswith("tokenizers ")
