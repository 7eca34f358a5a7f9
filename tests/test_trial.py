"""What a model would lose in silence is found when it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import POSITIONS, WORDS, make_config, make_model

from pipeline.errors import UserError
from pipeline.model.load import load_base
from pipeline.model.trial import try_out

torch = pytest.importorskip("torch")
CPU = torch.device("cpu")


def random(config: Any) -> Any:
    """A model whose logits and attention are as far from nothing as those of a trained one."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_known_families_pass(tmp_path: Path, family: str, weights: Any) -> None:
    model = load_base(make_model(family, tmp_path), weights, CPU)
    modes = [module.training for module in model.modules()]
    for precision in ("fp32", "bf16"):
        try_out(model, CPU, precision, packed=64)
    assert [module.training for module in model.modules()] == modes


SIZE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 2,
}


@pytest.mark.parametrize("name", ["Qwen2Config", "Qwen3Config", "MistralConfig"])
def test_so_do_their_relatives(name: str) -> None:
    import transformers

    model = random(getattr(transformers, name)(**SIZE))
    try_out(model, CPU, "fp32", packed=64)


def test_logits_that_are_changed_after_the_head_are_refused() -> None:
    from transformers import CohereConfig, Gemma2Config, GraniteConfig

    for config in (
        Gemma2Config(**SIZE, final_logit_softcapping=3.0, query_pre_attn_scalar=16),
        GraniteConfig(**SIZE, logits_scaling=4.0),
        CohereConfig(**SIZE, logit_scale=0.25),
    ):
        with pytest.raises(UserError, match="changes its logits after the output head"):
            try_out(random(config), CPU, "fp32")


def test_what_goes_past_the_mask_is_refused_where_documents_share_a_window() -> None:
    from transformers import MambaConfig

    model = random(MambaConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, state_size=8))
    try_out(model, CPU, "fp32")
    with pytest.raises(UserError, match=r"where documents end|into the next"):
        try_out(model, CPU, "fp32", packed=64)


def test_a_model_that_forgets_the_mask_is_seen() -> None:
    model = random(make_config("llama"))
    body = model.base_model
    forward = body.forward

    def blind(*arguments: Any, attention_mask: Any = None, **words: Any) -> Any:
        if attention_mask is not None:  # without one it is made of the positions
            later = torch.ones_like(attention_mask, dtype=torch.bool).triu(1)
            attention_mask = torch.zeros_like(attention_mask).masked_fill(later, -1e9)
        return forward(*arguments, attention_mask=attention_mask, **words)

    body.forward = blind
    with pytest.raises(UserError, match="reads one document into the next"):
        try_out(model, CPU, "fp32", packed=64)


def test_a_window_that_slides_is_not_trained_beyond() -> None:
    from transformers import MistralConfig, Qwen2Config

    sliding = random(MistralConfig(**SIZE, sliding_window=32))
    try_out(sliding, CPU, "fp32", packed=32)
    with pytest.raises(UserError, match=r"sees 32 tokens back, and train\.length is 64"):
        try_out(sliding, CPU, "fp32", packed=64)
    off = Qwen2Config(**SIZE, sliding_window=32, use_sliding_window=False)
    try_out(random(off), CPU, "fp32", packed=64)


def test_what_is_kept_besides_the_head_leaves_that_as_it_is(tmp_path: Path) -> None:
    import bitsandbytes as bnb

    for family, kept in (("llama", "down_proj"), ("opt", "fc2"), ("gpt2", "c_fc")):
        folder = make_model(family, tmp_path / family)
        model = load_base(folder, "int8", CPU, keep=[kept])
        quantized = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, bnb.nn.Linear8bitLt)
        }
        assert quantized
        assert kept not in quantized
        assert not isinstance(model.get_output_embeddings(), bnb.nn.Linear8bitLt)
