"""Checkpoints that transformers would load without an error, and train from random weights."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import CorruptInput, InputError, UserError
from pipeline.core.registry import BaseModel, find_model
from pipeline.core.stop import Stop
from pipeline.download import checkpoint
from pipeline.download.base_model import prepare_model
from tests.helpers import tiny
from tests.helpers.tiny import make_old_form

Models = Callable[[str], Path]
Tensors = dict[str, Any]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
LFS_HINT = "Type git lfs pull in that folder, or copy the file itself"
SAVE_HINT = "Take another MODEL, or save this one again with save_pretrained of transformers"


def refusal(folder: Path, out: Path, kind: type[Exception] = CorruptInput) -> str:
    """What is said about a model, without the name of its folder; nothing was written."""
    with pytest.raises(kind) as caught:
        prepare(folder, out)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "MODEL")


def prepare(folder: Path, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    model = BaseModel(id="mine", path=str(folder))
    return prepare_model(model, out, out.parent / "partial", Stop(), lambda done, total: None)


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_names_with_a_prefix_are_refused(llama: Path, out: Path) -> None:
    change_weights(llama, lambda tensors: {f"_orig_mod.{k}": v for k, v in tensors.items()})
    first, second, third = ("embed_tokens", "layers.0.input_layernorm", "layers.0.mlp.down_proj")
    assert refusal(llama, out) == (
        "MODEL: the weights do not fit config.json: 21 missing (lm_head.weight, "
        f"model.{first}.weight, model.{second}.weight, …), 20 unknown (_orig_mod.model.{first}."
        f"weight, _orig_mod.model.{second}.weight, _orig_mod.model.{third}.weight, …). {SAVE_HINT}"
    )


@pytest.mark.parametrize("form", ["safetensors", "bin", "bin shards"])
def test_missing_weights_are_refused(models: Models, tmp_path: Path, out: Path, form: str) -> None:
    import torch

    name, gone = "model.decoder.final_layer_norm", {"weight", "bias"}
    if form == "safetensors":
        folder = shutil.copytree(models("opt"), tmp_path / "opt")
        change_weights(
            folder, lambda t: {k: v for k, v in t.items() if not k.startswith(f"{name}.")}
        )
    else:
        folder = make_old_form(models("opt"), tmp_path / "opt", 2 if form == "bin shards" else 1)
        for path in folder.glob("*.bin"):
            state = torch.load(path, weights_only=True)
            torch.save({k: v for k, v in state.items() if not k.startswith(name)}, path)
    assert refusal(folder, out) == (
        f"MODEL: the weights do not fit config.json: {len(gone)} missing ({name}.bias, "
        f"{name}.weight). {SAVE_HINT}"
    )


def test_weights_of_another_shape_are_refused(llama: Path, out: Path) -> None:
    change_config(llama, vocab_size=520)
    assert refusal(llama, out) == (
        "MODEL: the weights do not fit config.json: 1 of another shape "
        f"(model.embed_tokens.weight is 512 × 64, not 520 × 64). {SAVE_HINT}"
    )


def test_an_untied_model_without_its_head_is_refused(llama: Path, out: Path) -> None:
    change_config(llama, tie_word_embeddings=False)
    assert refusal(llama, out) == (
        f"MODEL: the weights do not fit config.json: 1 missing (lm_head.weight). {SAVE_HINT}"
    )


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("model.layers.0.self_attn.q_proj.bias", True),  # config.json switches it off
        ("model.layers.2.input_layernorm.weight", True),  # one layer more
        ("layers.2.input_layernorm.weight", True),
        ("lm_head.bias", True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", False),
        ("model.layers.0.attention.masked_bias", False),
        ("v_head.summary.weight", False),  # TRL's
        ("mtp.layers.0.mlp.up_proj.weight", False),
    ],
)
def test_unknown_weights_are_refused_unless_the_result_is_the_same(
    llama: Path, out: Path, name: str, refused: bool
) -> None:
    import torch

    change_weights(llama, lambda tensors: tensors | {name: torch.ones(64)})
    if refused:
        assert f"1 unknown ({name})" in refusal(llama, out)
    else:
        prepare(llama, out)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_published_forms_of_a_checkpoint_are_accepted(
    models: Models, tmp_path: Path, family: str
) -> None:
    """Heads that are tied and saved, names without the prefix of the body, masks as weights."""
    import torch

    def masks(tensors: Tensors) -> Tensors:
        gpt2 = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8) for n in range(2)}
        return tensors | gpt2 | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}

    def without_prefix(tensors: Tensors) -> Tensors:
        return {
            name.removeprefix("model.").removeprefix("transformer."): value
            for name, value in (masks(tensors) if family == "gpt2" else tensors).items()
        }

    def with_head(tensors: Tensors) -> Tensors:
        embedding = next(v for k, v in tensors.items() if "embed_tokens" in k or "wte" in k)
        return tensors | {"lm_head.weight": embedding.clone()}

    for change in (without_prefix, with_head, *([masks] if family == "gpt2" else [])):
        folder = shutil.copytree(models(family), tmp_path / change.__name__)
        change_weights(folder, change)
        checkpoint.load("mine", folder, device_map="meta")


def test_config_of_another_family_is_refused(models: Models, llama: Path, out: Path) -> None:
    shutil.copy(models("gpt2") / "config.json", llama)
    message = refusal(llama, out)
    assert "29 missing (lm_head.weight, transformer.h.0.attn.c_attn.bias, " in message
    assert "20 unknown (model.embed_tokens.weight, " in message


@pytest.mark.slow
def test_weights_of_a_large_model_are_not_read(tmp_path: Path) -> None:
    """Only headers are: the file is sparse, and 3 GB would not fit into the limit."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(num_hidden_layers=4, dtype="bfloat16", tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    header, end = {}, 0
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            span = [end, end := end + 2 * value.numel()]
            header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": span}
    raw = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint.load("mine", tmp_path, device_map="meta")
    assert end > 1.8e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json",
     "config.json", "generation_config.json"],
)  # fmt: skip
def test_git_lfs_pointers_are_refused(
    models: Models, llama: Path, tmp_path: Path, out: Path, name: str
) -> None:
    old = make_old_form(models("opt"), tmp_path / "old") if name.endswith(".bin") else llama
    (old / name).write_bytes(POINTER)
    assert refusal(old, out) == (
        f"MODEL: {name} is a Git LFS pointer, not the file itself. {LFS_HINT}"
    )
    assert not [*out.iterdir()]


def shard(folder: Path, **weight_map: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "gone",
    ["model-00002-of-00002.safetensors", "../model-00002-of-00002.safetensors", "/etc/passwd"],
)
def test_a_missing_shard_is_refused(llama: Path, out: Path, gone: str) -> None:
    shard(llama, a="model-00001-of-00002.safetensors", b=gone)
    assert refusal(llama, out) == (
        f"MODEL: model.safetensors.index.json names a file that is not there: {gone}. "
        "Copy or download the whole model again"
    )


def test_shards_without_an_index_are_refused(llama: Path, out: Path) -> None:
    shard(llama)
    assert "model.safetensors.index.json lists no weights" in refusal(llama, out)
    (llama / "model.safetensors.index.json").unlink()
    assert refusal(llama, out, InputError) == (
        "MODEL has shards and no model.safetensors.index.json. Copy this file, too"
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"{}", "is no intact safetensors file (Error while deserializing"),
        ("model.safetensors", None, "is no intact safetensors file (Error while deserializing"),
        ("tokenizer.json", b'{"model": {', "is not JSON (Input data was truncated)"),
        ("config.json", b"[]", "is no JSON object"),
        ("config.json", b'{"model_type": "llama"', "is not JSON (Input data was truncated)"),
    ],
)
def test_damaged_files_are_refused_by_name(
    llama: Path, out: Path, name: str, content: bytes | None, says: str
) -> None:
    path = llama / name
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    message = refusal(llama, out)
    assert message.startswith(f"MODEL: {name} {says}")
    assert message.endswith(". Copy or download it again")


@pytest.mark.parametrize(("size", "says"), [(0, "empty"), (-200, "truncated")])
def test_damaged_pickles_are_refused_by_name(
    models: Models, tmp_path: Path, out: Path, size: int, says: str
) -> None:
    folder = make_old_form(models("opt"), tmp_path / "old")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])
    assert refusal(folder, out) == (
        f"MODEL: pytorch_model.bin is {says}. Copy or download it again"
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_attention_heads": 3}, "Class validation error for validator 'validate_architecture"),
        ({"hidden_size": "x"}, "Validation error for field 'hidden_size': TypeError: Field"),
    ],
)
def test_an_invalid_config_is_refused_with_the_reason(
    llama: Path, out: Path, values: dict[str, Any], says: str
) -> None:
    change_config(llama, **values)
    assert refusal(llama, out, UserError).startswith(f"MODEL cannot be read: {says}")


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "version": "gemm"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit"),
        ({"load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({}, "by an unnamed method"),
    ],
)
@pytest.mark.parametrize("part", ["", "text_config"])
def test_quantized_weights_are_refused(
    llama: Path, out: Path, quantization: dict[str, Any], named: str, part: str
) -> None:
    values = {"quantization_config": quantization}
    change_config(llama, **({part: values} if part else values))
    assert refusal(llama, out, UserError) == (
        f"MODEL: its weights are quantized already ({named}). Take the unquantized model as MODEL; "
        "train.weights=int8 and nf4 quantize it while it is loaded"
    )


@pytest.mark.parametrize("place", ["itself", "with config.json", "in a folder of checkpoints"])
def test_an_adapter_is_refused_as_a_model(models: Models, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if place == "with config.json":
        shutil.copy(models("llama") / "config.json", folder)
    with pytest.raises(UserError) as caught:
        prepare(
            Path(
                find_model(str(tmp_path if place == "in a folder of checkpoints" else folder)).path
                or ""
            ),
            tmp_path / "out",
        )
    assert str(caught.value) == (
        f"MODEL: {folder} is a PEFT adapter, not a whole model. Merge it into its base model, by "
        "make export if a run made it, else by peft's merge_and_unload() and save_pretrained(), "
        "and give the folder of the result"
    )
