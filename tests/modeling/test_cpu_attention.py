"""Attention by document equals attention under the mask, including its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.packing import make_batch, pack
from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.modeling import cpu_attention
from pipeline.modeling.loading import body_and_head, load_base
from tests.helpers.tiny import make_model

LENGTHS = [5, 31, 1, 0, 17, 12, 40, 9, 64, 2]
WINDOW = 48


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread uses blocks of rows, several use torch's kernel."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def batch() -> Any:
    offsets = np.cumsum([0, *LENGTHS])
    ids = np.random.default_rng(0).integers(3, 512, offsets[-1]).astype(np.uint16)
    none = np.zeros(len(LENGTHS), dtype=np.int64)
    corpus = TokenizedSplit(ids, offsets, none, none, "")  # type: ignore[arg-type]
    packing = pack(offsets, WINDOW)
    return make_batch(corpus, packing, range(len(packing)), 0, 1)


def test_document_ends_are_read_from_the_mask() -> None:
    import torch

    made = batch()
    found = cpu_attention.document_ends(made.attention_mask(torch.float32))
    for ends, segments in zip(found, made.segments.tolist(), strict=True):
        wanted = [n + 1 for n in range(WINDOW - 1) if segments[n] != segments[n + 1]]
        # padding has a segment of its own
        assert ends == [*wanted, WINDOW]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
@pytest.mark.parametrize("block", [128, 7])
def test_states_and_gradients_are_those_under_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, block: int
) -> None:
    import torch

    monkeypatch.setattr(cpu_attention, "BLOCK_ROWS", block)
    device = torch.device("cpu")
    folder, made = make_model(family, tmp_path), batch()
    found = []
    for kind in ("sdpa", cpu_attention.IMPLEMENTATION):
        model = load_base(folder, "fp32", device)
        assert model.config._attn_implementation == cpu_attention.IMPLEMENTATION
        model.set_attn_implementation(kind)
        model.train().requires_grad_(True)
        body, _ = body_and_head(model)
        states = body(
            input_ids=made.inputs,
            attention_mask=made.attention_mask(torch.float32),
            position_ids=made.positions,
            use_cache=False,
        ).last_hidden_state[made.segments >= 0]
        states.square().mean().backward()
        found.append([states.detach(), *(p.grad for p in body.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for masked, apart in zip(*found, strict=True):
        torch.testing.assert_close(masked, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 127, 128, 129, 300])
def test_block_rows_compute_causal_attention(slots: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(slots)
    given = [torch.randn(2, 3, slots, 8, generator=generator).requires_grad_() for _ in range(3)]
    back = torch.randn(2, 3, slots, 8, generator=generator)
    found = []
    for how in ("plain", "ours", "bf16"):
        kind = {"plain": torch.float64, "ours": torch.float32, "bf16": torch.bfloat16}[how]
        query, key, value = (tensor.to(kind) for tensor in given)
        if how == "plain":
            later = torch.ones(slots, slots, dtype=torch.bool).triu(1)
            scores = (0.3 * query @ key.transpose(-1, -2)).masked_fill(later, -torch.inf)
            out = scores.softmax(-1) @ value
        else:
            out = cpu_attention.causal_attention(query, key, value, 0.3, 0.0)
        out.float().backward(back)
        found.append([out.detach().float(), *(t.grad.clone() for t in given if t.grad is not None)])
        for tensor in given:
            tensor.grad = None
    for wanted, exact, rounded in zip(*found, strict=True):
        torch.testing.assert_close(exact, wanted, rtol=1e-5, atol=1e-5)
        # with one token, query and key have no gradient; torch's kernel rounds differently
        if torch.get_num_threads() == 1:
            assert float((rounded - wanted).norm()) <= 0.01 * float(wanted.norm())


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    import torch

    torch.manual_seed(0)
    query = torch.zeros(1, 1, 400, 4)
    out = cpu_attention.causal_attention(query, query, torch.ones(1, 1, 400, 4), 1.0, 0.5)
    assert float(out[0, 0, -1].std()) == 0
    assert float(out.std()) > 0.01
    assert float(out[:, :, 100:].mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_scoring_on_a_cpu_equals_torch_s_sdpa(tmp_path: Path, family: str) -> None:
    import torch

    ids = torch.randint(3, 512, (2, 150), generator=torch.Generator().manual_seed(0))
    states = []
    for kind in ("sdpa", cpu_attention.IMPLEMENTATION):
        model = load_base(make_model(family, tmp_path / kind), "fp32", torch.device("cpu"))
        model.set_attn_implementation(kind)
        with torch.no_grad():
            states.append(body_and_head(model)[0](input_ids=ids).last_hidden_state)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
