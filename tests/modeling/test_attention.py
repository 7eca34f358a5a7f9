"""FlashAttention by sequence lengths keeps documents apart, as the mask does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.dataset.packing import make_batch, pack
from pipeline.modeling.attention import pick_attention
from tests.dataset.helpers import END, PREFIX, corpus_of, sequence
from tests.train.helpers import batches, make_step_runner

Models = Callable[[str], Path]
FLASH = "flash_attention_2"


def varlen(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any
) -> tuple[Any, None]:
    """What FlashAttention computes from sequence lengths, by torch's SDPA."""
    import torch

    assert attention_mask is None, "flash takes lengths and no mask"
    assert given["cu_seq_lens_q"] is given["cu_seq_lens_k"]
    ends = given["cu_seq_lens_q"]
    assert ends.dtype == torch.int32
    assert (int(ends[0]), int(ends[-1])) == (0, query.shape[2])
    assert given["max_length_q"] == given["max_length_k"] == int(ends.diff().max())
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(t[:, :, a:b] for t in (query, key, value)), is_causal=True, scale=given["scaling"]
        )
        for a, b in pairwise(ends.tolist())
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """A function that makes a model use `varlen` as if flash-attn was installed."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, varlen)

    def convert(model: Any) -> Any:
        model.config._attn_implementation = FLASH
        return model

    return convert


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_attention_by_length_reads_each_document_as_if_alone(
    models: Models, flash: Callable[[Any], Any], family: str
) -> None:
    import torch

    from pipeline.modeling.loading import body_and_head, load_base

    plain, model = (load_base(models(family), "fp32", torch.device("cpu")) for _ in range(2))
    for each in (plain, model):
        with torch.no_grad():  # larger weights make leaks visible
            for parameter in each.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)
    flash(model)
    corpus = corpus_of([20, 5, 9, 0, 31, 70, 1])
    packing = pack(corpus.offsets, 40)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    arguments, targets = batch.varlen_inputs()
    assert arguments["input_ids"].shape == (1, packing.pairs), "there is no padding"
    assert targets.tolist() == batch.targets[batch.segments >= 0].tolist()
    body, head = body_and_head(model)
    with torch.no_grad():
        together = head(body(**arguments, use_cache=False).last_hidden_state)[0]
    slot = 0
    for window in range(len(packing)):
        for document, first, count in packing.pieces_of(window).tolist():
            tokens = sequence(corpus, document)[first : first + count]
            with torch.no_grad():
                alone = plain(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            assert (together[slot : slot + count] - alone).abs().max() < 1e-4
            slot += count
    assert slot == packing.pairs


@pytest.mark.slow
def test_a_step_is_the_same_by_length_and_by_mask(
    models: Models, flash: Callable[[Any], Any]
) -> None:
    one, other = make_step_runner(models), make_step_runner(models)
    flash(other.model)
    for step in range(2):
        row = one.run(step, batches((3, 1, 4)), 1e-3)
        result = other.run(step, batches((3, 1, 4)), 1e-3)
        assert result["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert result["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)]
)
def test_a_step_is_the_same_compiled(models: Models, backend: str) -> None:
    """Both trace the model with its backward pass; inductor also compiles C++, for minutes."""
    import torch

    from pipeline.modeling.loading import body_and_head

    one, other = make_step_runner(models), make_step_runner(models)
    quick = replace(
        other, compiled_body=torch.compile(body_and_head(other.model)[0], backend=backend)
    )
    for step in range(2):
        row, result = (each.run(step, batches((4, 4)), 1e-3) for each in (one, quick))
        assert result["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert result["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("capability", "precision", "installed", "problem"),
    [
        ((8, 0), "bf16", True, None),
        ((9, 0), "fp16", True, None),
        ((8, 0), "fp32", True, "computes in bf16 or fp16 only"),
        ((7, 5), "fp16", True, "capability 8.0 or more, and Old GPU has less"),
        ((8, 0), "bf16", False, "needs the package flash-attn"),
    ],
)
def test_flash_is_picked_where_it_can_run_and_refused_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    precision: Any,
    installed: bool,
    problem: str | None,
) -> None:
    import torch

    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    monkeypatch.setattr("pipeline.modeling.attention.find_spec", lambda _: installed or None)
    assert pick_attention("sdpa", device, precision) == "sdpa"
    assert pick_attention("auto", device, precision) == (FLASH if problem is None else "sdpa")
    if problem is None:
        assert pick_attention("flash", device, precision) == FLASH
    else:
        with pytest.raises(UserError, match=problem):
            pick_attention("flash", device, precision)


def test_flash_needs_a_gpu() -> None:
    import torch

    device = torch.device("cpu")
    assert pick_attention("auto", device, "bf16") == "cpu_by_document"
    assert pick_attention("sdpa", device, "bf16") == "sdpa"
    with pytest.raises(UserError, match=r"train.attention=flash needs a GPU. Use train.attention"):
        pick_attention("flash", device, "bf16")


def test_pieces_without_padding_are_in_the_order_of_their_windows() -> None:
    corpus = corpus_of([3, 1, 6])
    packing = pack(corpus.offsets, 8)
    batch = make_batch(corpus, packing, range(len(packing)), PREFIX, END)
    arguments, _ = batch.varlen_inputs()
    sizes = np.concatenate([packing.pieces_of(w)[:, 2] for w in range(len(packing))])
    assert arguments["cu_seq_lens_q"].tolist() == [0, *np.cumsum(sizes).tolist()]
