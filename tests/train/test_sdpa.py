"""A whole training by torch's SDPA under the document mask, as GPUs compute it, on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.core.errors import Interrupted
from pipeline.dag import Node, find
from pipeline.modeling import cpu_attention
from pipeline.modeling.packed_batch import PackedBatch
from tests.train.helpers import StopAfter, metrics, result, train

pytestmark = pytest.mark.slow

Small = Callable[..., Config]
LAYERS, STEPS, MICRO_BATCHES, MICRO_BATCH, LENGTH = 2, 6, 2, 2, 64  # as `small` has them
# larger weights learn to look at what precedes a token, so that leaks show in the loss
SETTINGS = ("train.precision=fp32", "train.lr=2e-2", "train.lora_targets=[q_proj,k_proj,v_proj]")
SDPA = "train.attention=sdpa"


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Callable[[str], Path]:
    """`place(name)`: a new root in which training is the next step."""
    return lambda name: Path(shutil.copytree(prepared, tmp_path / name))


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What may be attended to in each call of transformers' SDPA attention in training mode."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    mapping = ALL_ATTENTION_FUNCTIONS._global_mapping
    sdpa, calls = mapping["sdpa"], []

    def recording(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if module.training:
            calls.append(None if mask is None else mask == 0)
        return sdpa(module, query, key, value, mask, **kwargs)

    monkeypatch.setitem(mapping, "sdpa", recording)
    return calls


def losses(node: Node, kind: str = "step") -> list[float]:
    return [row["loss"] for row in metrics(node) if row["kind"] == kind]  # type: ignore[misc]


def test_training_by_sdpa_equals_training_by_document(
    small: Small, place: Callable[[str], Path], masks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses agree to rounding; they would not if documents saw each other."""
    import torch

    by_document = train(small(*SETTINGS), place("by document"))
    assert not masks, "a CPU computes by document unless it is told otherwise"

    def unexpected(*arguments: Any, **kwargs: Any) -> Any:
        raise AssertionError("attention by document was called")

    monkeypatch.setattr(cpu_attention, "attention_forward", unexpected)
    by_mask = train(small(*SETTINGS, SDPA), place("by mask"))

    # every layer of every micro-batch ran twice, because of gradient checkpointing
    assert len(masks) == 2 * LAYERS * MICRO_BATCHES * STEPS
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    assert {tuple(mask.shape) for mask in masks} == {(MICRO_BATCH, 1, LENGTH, LENGTH)}
    assert not any((mask & ~causal).any() for mask in masks)
    assert any((mask != causal).any() for mask in masks), "some windows have several documents"

    for kind in ("step", "validation"):
        assert losses(by_mask, kind) == pytest.approx(losses(by_document, kind), rel=1e-5)

    let_documents_see_each_other(monkeypatch)
    leaking = train(small(*SETTINGS, SDPA), place("leaking"))
    pairs = zip(losses(leaking), losses(by_mask), strict=True)
    assert max(abs(leak - loss) / loss for leak, loss in pairs) > 1e-4, "so the check is sharp"


def let_documents_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the mask purely causal, and skip the check that would refuse to train with it."""
    import torch

    attention_mask = PackedBatch.attention_mask

    def causal_mask(self: PackedBatch, dtype: torch.dtype) -> torch.Tensor:
        return attention_mask(replace(self, segments=torch.zeros_like(self.segments)), dtype)

    monkeypatch.setattr(PackedBatch, "attention_mask", causal_mask)
    monkeypatch.setattr("pipeline.train.run.check_document_isolation", lambda *_: None)


def test_a_training_by_sdpa_resumes_exactly(small: Small, place: Callable[[str], Path]) -> None:
    config = small(*SETTINGS, SDPA, "train.lora_dropout=0.1")
    whole = result(train(config, place("whole")))
    root = place("interrupted")
    for step in (3, 4):
        folder = find(config, root, "train.train").work.folder
        with pytest.raises(Interrupted):
            train(config, root, StopAfter(folder, step))
    node = train(config, root)
    assert result(node) == whole
    starts = [row["step"] for row in metrics(node) if row["kind"] == "start"]
    assert starts == [0, 3, 4]
