"""Attention document by document is attention under the mask, to the last gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.corpus import Corpus
from pipeline.data.packing import make_batch, pack
from pipeline.model import documents, load
from tests.tiny import make_model

LENGTHS = [5, 31, 1, 0, 17, 12, 40, 9, 64, 2]
WINDOW = 48


def batch() -> Any:
    offsets = np.cumsum([0, *LENGTHS])
    ids = np.random.default_rng(0).integers(3, 512, offsets[-1]).astype(np.uint16)
    none = np.zeros(len(LENGTHS), dtype=np.int64)
    corpus = Corpus(ids, offsets, none, none, "")  # type: ignore[arg-type]
    packing = pack(offsets, WINDOW)
    return make_batch(corpus, packing, range(len(packing)), 0, 1)


def test_the_mask_says_where_documents_end() -> None:
    import torch

    made = batch()
    found = documents.spans(made.mask(torch.float32))
    for ends, segments in zip(found, made.segments.tolist(), strict=True):
        wanted = [n + 1 for n in range(WINDOW - 1) if segments[n] != segments[n + 1]]
        # slots that hold nothing stand alone with all that hold nothing
        assert ends == [*wanted, WINDOW]


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_states_and_gradients_are_those_under_the_mask(tmp_path: Path, family: str) -> None:
    import torch

    device = torch.device("cpu")
    folder, made = make_model(family, tmp_path), batch()
    found = []
    for kind in ("sdpa", documents.NAME):
        model = load.load_base(folder, "fp32", device)
        assert model.config._attn_implementation == documents.NAME
        model.set_attn_implementation(kind)
        model.train().requires_grad_(True)
        body, _ = load.backbone(model)
        states = body(
            input_ids=made.inputs,
            attention_mask=made.mask(torch.float32),
            position_ids=made.positions,
            use_cache=False,
        ).last_hidden_state[made.segments >= 0]
        states.square().mean().backward()
        found.append([states.detach(), *(p.grad for p in body.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for masked, apart in zip(*found, strict=True):
        torch.testing.assert_close(masked, apart, rtol=1e-4, atol=1e-5)
