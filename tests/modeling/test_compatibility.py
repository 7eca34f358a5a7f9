"""Models whose forward pass we do not reproduce are refused; supported ones pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, resolve
from pipeline.core.errors import UserError
from pipeline.core.stage import Context, run_item
from pipeline.dag import find
from pipeline.modeling.compatibility import check_document_isolation, check_head
from pipeline.modeling.loading import load_base
from tests.helpers import tiny
from tests.helpers.runs import SMALL, advance
from tests.train.helpers import train

SIZE: dict[str, Any] = {
    "vocab_size": tiny.WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": tiny.POSITIONS,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


def save_model(config: Any, folder: Path) -> Path:
    """Save a random model of that configuration, with the tokenizer of the tests."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return tiny.make_tokenizer(folder)


def make_config(dataset: Path, model: Path, *words: str) -> Config:
    return resolve(str(dataset), str(model), "lora-8bit", [*SMALL, *words], "strange")


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_supported_models_pass(models: Callable[[str], Path], name: str, weights: Any) -> None:
    import torch

    device = torch.device("cpu")
    model = load_base(models(name), weights, device)
    for precision in ("fp32", "bf16"):
        check_head(model, device, precision)  # type: ignore[arg-type]
        check_document_isolation(model, device, precision, tiny.POSITIONS)  # type: ignore[arg-type]


@pytest.mark.slow
def test_model_that_changes_its_logits_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is tokenized; if an earlier release prepared it, in training and scoring."""
    from transformers import GraniteConfig

    config = make_config(
        dataset, save_model(GraniteConfig(logits_scaling=8.0, **SIZE), tmp_path / "model")
    )
    message = "models of type granite do not compute their logits by the output head alone"
    with pytest.raises(UserError, match=message):
        advance(config, tmp_path / "root", "download.model")
    monkeypatch.setattr("pipeline.download.run.check_family", lambda _: "default")
    advance(config, tmp_path / "root", "tokenize.seal")
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "root")
    scoring = find(config, tmp_path / "root", "evaluate.base")
    with pytest.raises(UserError, match=message):
        run_item(scoring.work, (scoring.items or [])[0], Context(log=print))


def test_changed_logits_are_detected_in_any_model_type(tmp_path: Path) -> None:
    import torch
    from transformers import CohereConfig, Gemma2Config

    no_caps = {"attn_logit_softcapping": None}
    shapes = {
        "gemma2": Gemma2Config(head_dim=16, final_logit_softcapping=1.0, **no_caps, **SIZE),
        "cohere": CohereConfig(logit_scale=0.25, **SIZE),
    }
    for name, shape in shapes.items():
        model = load_base(save_model(shape, tmp_path / name), "fp32", torch.device("cpu"))
        with pytest.raises(UserError, match=f"type {name} do not compute their logits"):
            check_head(model, torch.device("cpu"), "fp32")


@pytest.mark.slow
def test_attention_shorter_than_a_window_is_refused(dataset: Path, tmp_path: Path) -> None:
    """With windows of that many tokens it trains."""
    shape = tiny.make_config("mistral")
    shape.sliding_window = 32
    model = save_model(shape, tmp_path / "model")
    config = make_config(dataset, model, "train.sequence_length=64")
    advance(config, tmp_path / "root", "tokenize.seal")
    with pytest.raises(
        UserError,
        match=r"longer than the attention span of 32 tokens .* Use train\.sequence_length=32",
    ):
        train(config, tmp_path / "root")
    assert train(
        make_config(dataset, model, "train.sequence_length=32"), tmp_path / "root"
    ).complete


def test_attention_with_capped_scores_is_refused_on_cpu(tmp_path: Path) -> None:
    import torch
    from transformers import Gemma2Config

    shape = Gemma2Config(head_dim=16, final_logit_softcapping=None, **SIZE)
    model = load_base(save_model(shape, tmp_path), "fp32", torch.device("cpu"))
    with pytest.raises(
        UserError, match="caps its attention scores, which is not supported on a CPU"
    ):
        check_head(model, torch.device("cpu"), "fp32")


def test_a_model_that_ignores_the_mask_is_not_trained(models: Callable[[str], Path]) -> None:
    import torch

    device = torch.device("cpu")
    model = load_base(models("llama"), "fp32", device)
    with torch.no_grad():  # a fresh model hardly attends to the tokens before
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    check_document_isolation(model, device, "fp32", 64)
    body = model.base_model
    forward = body.forward

    def ignore_mask(*arguments: Any, attention_mask: Any = None, **words: Any) -> Any:
        if attention_mask is not None:  # otherwise the model makes one from the positions
            later = torch.ones_like(attention_mask, dtype=torch.bool).triu(1)
            attention_mask = torch.zeros_like(attention_mask).masked_fill(later, -1e9)
        return forward(*arguments, attention_mask=attention_mask, **words)

    body.forward = ignore_mask
    with pytest.raises(UserError, match="let documents in the same window see each other"):
        check_document_isolation(model, device, "fp32", 64)


@pytest.mark.parametrize(
    ("name", "unquantized"), [("llama", "down_proj"), ("opt", "fc2"), ("gpt2", "c_fc")]
)
def test_unquantized_modules_are_added_to_the_output_head(
    models: Callable[[str], Path], name: str, unquantized: str
) -> None:
    import bitsandbytes as bnb
    import torch

    model = load_base(models(name), "int8", torch.device("cpu"), unquantized_modules=[unquantized])
    quantized = {
        called.rpartition(".")[2]
        for called, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear8bitLt)
    }
    assert quantized
    assert unquantized not in quantized
    assert not isinstance(model.get_output_embeddings(), bnb.nn.Linear8bitLt)
