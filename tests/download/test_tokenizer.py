"""A prepared tokenizer.json gives the ids of the tokenizer that users load, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.errors import CorruptInput, InputError, UserError
from pipeline.core.registry import BaseModel, find_model
from pipeline.core.stop import Stop
from pipeline.download import tokenizer as module
from pipeline.download.base_model import prepare_model
from pipeline.tokenize.encoder import ReferenceEncoder

Models = Callable[[str], Path]
TEXT = "The court<new> of <NEW>appeals  affirmed,<s> in 1024 words.\n Return</s> ü<extra><pad>"


def prepare(model: BaseModel, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return prepare_model(model, out, out.parent / "partial", Stop(), lambda done, total: None)


def refusal(folder: Path, out: Path, kind: type[Exception] = UserError) -> str:
    """What is said about a model, without the name of its folder."""
    with pytest.raises(kind) as caught:
        prepare(find_model(str(folder)), out)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "MODEL")


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def resize(folder: Path, rows: int) -> None:
    """Give the model an embedding with another number of rows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)


def user_ids(folder: Path, text: str) -> list[int]:
    """The ids that users get."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def added_token(content: str) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {"content": content, "special": True, **dict.fromkeys(flags, False)}


@pytest.mark.parametrize("place", ["added_tokens_decoder", "extra_special_tokens", "both", "twice"])
def test_tokens_that_only_the_configuration_names_are_tokens(
    llama: Path, out: Path, place: str
) -> None:
    decoder = {"512": added_token("<new>")}
    if place == "twice":
        decoder["513"] = added_token("<new>")
    values: dict[str, Any] = {"added_tokens_decoder": decoder, "extra_special_tokens": ["<extra>"]}
    if place in values:
        values = {place: values[place]}
    change(llama, "tokenizer_config.json", **values)
    resize(llama, 514)
    expected = user_ids(llama, TEXT)
    assert max(expected) >= 512
    prepare(find_model(str(llama)), out)
    ids, _ = ReferenceEncoder(out).encode([TEXT])
    assert ids.tolist() == expected == user_ids(out, TEXT)


def test_a_class_that_builds_its_own_tokenizer_decides(llama: Path, out: Path) -> None:
    """GPT-2's takes the vocabulary alone and splits text its own way."""
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    split = [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.save(str(llama / "tokenizer.json"))
    change(llama, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    ids, _ = ReferenceEncoder(llama).encode([TEXT])
    expected = user_ids(llama, TEXT)
    assert ids.tolist() != expected
    resize(llama, 1024)
    prepare(find_model(str(llama)), out)
    ids, _ = ReferenceEncoder(out).encode([TEXT])
    assert ids.tolist() == expected


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "mistral"])
def test_an_equal_tokenizer_is_copied_unchanged(models: Models, out: Path, family: str) -> None:
    prepare(find_model(str(models(family))), out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (models(family) / name).read_bytes()


def without_tokenizer(folder: Path, model_type: str, files: dict[str, Any]) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    change(folder, "config.json", model_type=model_type)
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def test_a_tokenizer_without_a_fast_form_is_refused(llama: Path, out: Path) -> None:
    byt5 = {"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer"}}
    without_tokenizer(llama, "llama", byt5)
    assert refusal(llama, out) == (
        "MODEL: its tokenizer (ByT5Tokenizer) has no fast form (tokenizer.json), which is "
        "required. Take another MODEL"
    )
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a</w>": 4}
    without_tokenizer(llama, "biogpt", {"vocab.json": vocabulary, "merges.txt": b"#version: 0.2\n"})
    assert refusal(llama, out) == (
        "MODEL: its tokenizer (BioGptTokenizer) has no fast form (tokenizer.json), which is "
        "required. Take another MODEL"
    )


@pytest.mark.parametrize(
    ("content", "package"),
    [(b"\n\x0e\n\x05<unk>", "sentencepiece"), (b"IQ== 0\nIg== 1\n", "tiktoken")],
)
def test_a_missing_package_for_a_vocabulary_is_named(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, package: str
) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda name: False)
    without_tokenizer(llama, "llama", {"tokenizer.model": content})
    assert refusal(llama, out) == (
        f"MODEL: its tokenizer is converted by the package {package}, which is not installed. "
        f"Install it with: pip install {package}"
    )


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "xglm"])
def test_a_model_without_a_tokenizer_is_refused(
    models: Models, llama: Path, out: Path, model_type: str
) -> None:
    """For some types transformers makes an empty tokenizer, and every text is empty."""
    without_tokenizer(llama, model_type, {})
    assert refusal(llama, out, InputError) == (
        "MODEL has no tokenizer: there is no tokenizer.json. Copy the files of its tokenizer into "
        "the folder of the model"
    )


def test_a_tokenizer_that_cannot_be_read_is_refused(llama: Path, out: Path) -> None:
    (llama / "tokenizer.json").write_text('{"version": "1.0"}')
    assert refusal(llama, out, CorruptInput) == (
        "MODEL: its tokenizer cannot be read: KeyError: 'added_tokens'. Take another MODEL"
    )


def test_special_tokens_that_are_never_encoded_are_refused(llama: Path, out: Path) -> None:
    change(llama, "tokenizer_config.json", split_special_tokens=True)
    assert refusal(llama, out) == (
        "MODEL: tokenizer_config.json sets split_special_tokens, which is not supported. Take "
        "another MODEL, or a copy of it without this setting"
    )


def test_missing_special_tokens_are_told_at_once_with_the_file_to_write(
    llama: Path, tmp_path: Path, out: Path
) -> None:
    change(llama, "tokenizer_config.json", bos_token=None, eos_token=None)
    values = {"path": str(llama), "prefix_token": "TOKEN", "end_token": "TOKEN"}
    assert refusal(llama, out) == (
        "model llama: prefix_token is not set, end_token is not set, the tokenizer has no "
        "bos_token and no eos_token. Write a file llama.yaml with "
        f"{json.dumps(values).replace(str(llama), 'MODEL')}, where TOKEN is a token of its "
        "vocabulary (among <s>, </s>, <pad>, for example), and type MODEL=llama.yaml"
    )
    path = tmp_path / "llama.yaml"
    path.write_text(yaml.safe_dump(values | {"prefix_token": "<pad>", "end_token": "</s>"}))
    facts = prepare(find_model(str(path)), out)
    assert (facts["prefix_id"], facts["end_id"]) == (2, 1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"eos_token": None}, "end_token is not set, the tokenizer has no eos_token"),
        ({"eos_token": None, "bos_token": None, "end": "</s>"},
         "prefix_token is not set, the tokenizer has no bos_token and no eos_token"),
        ({"end": "<nix>"}, "end_token '<nix>' is not in the vocabulary"),
    ],
)  # fmt: skip
def test_one_missing_special_token_is_told(
    llama: Path, out: Path, values: dict[str, Any], says: str
) -> None:
    change(llama, "tokenizer_config.json", **{k: v for k, v in values.items() if k != "end"})
    with pytest.raises(UserError) as caught:
        prepare(BaseModel(id="mine", path=str(llama), end_token=values.get("end")), out)
    assert str(caught.value).startswith(f"model mine: {says}. Write a file mine.yaml with ")


def test_added_tokens_may_lack_a_row_of_the_embedding(llama: Path, out: Path) -> None:
    change(llama, "tokenizer_config.json", added_tokens_decoder={"512": added_token("<image>")})
    facts = prepare(find_model(str(llama)), out)
    assert (facts["vocabulary"], facts["token_ids"]) == (512, 513)


def test_a_token_around_documents_needs_a_row(llama: Path, out: Path) -> None:
    change(llama, "tokenizer_config.json", bos_token="<begin>")
    assert "prefix_token '<begin>' has no row in the embedding. Write " in refusal(llama, out)


def test_a_tokenizer_of_another_model_is_refused(llama: Path, out: Path) -> None:
    resize(llama, 500)
    assert refusal(llama, out) == (
        "MODEL: the tokenizer has 512 tokens, the model 500. Take the tokenizer that belongs to "
        "the model"
    )
