"""All memory-saving settings together: train, resume exactly, evaluate and merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.housekeeping.export import export_run
from pipeline.config import Config
from pipeline.core.errors import Interrupted
from pipeline.dag import find
from pipeline.modeling.loading import body_and_head, is_quantized, load_adapter
from pipeline.saved_config import save_config
from pipeline.train.step_runner import StepRunner
from tests.export.helpers import apart, in_fp32, logits, parts
from tests.helpers.runs import advance
from tests.train.helpers import StopAfter, metrics, result, train

WORDS = (
    "train.method=lora", "train.weights=int8", "train.gradient_checkpointing=true",
    "train.batch_size=4", "train.micro_batch_size=1", "train.precision=bf16",
    "train.lora_dropout=0.1",
    "train.steps=8", "train.lr=1e-2", "train.checkpoint_every=100", "train.validate_every=8",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.thorough  # the options one by one are in other tests
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_memory_saving_options_work_together(
    family: str, small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 bits, LoRA, checkpointing, accumulation and autocast, for each family."""
    from transformers import AutoModelForCausalLM

    config, root, step = small(*WORDS, family=family), tmp_path / "root", StepRunner.run
    used: list[tuple[Any, ...]] = []

    def recording(self: StepRunner, number: int, batches: Any, rate: float) -> Any:
        parts = list(batches)
        body = body_and_head(self.model)[0]
        eight = is_quantized(self.model.get_base_model())
        used.append((eight, body.is_activation_checkpointing, len(parts), self.precision))
        return step(self, number, parts, rate)

    monkeypatch.setattr(StepRunner, "run", recording)
    save_config(config, root)
    advance(config, root, "tokenize.seal")
    whole = result(train(config, Path(shutil.copytree(root, tmp_path / "whole"))))
    with pytest.raises(Interrupted):
        train(config, root, StopAfter(find(config, root, "train.train").work.folder, 3))
    node = train(config, root)
    assert result(node) == whole, "bit for bit: adapter, losses and norms of all steps"
    assert set(used) == {(True, True, 4, "bf16")}
    assert [row["step"] for row in metrics(node) if row["kind"] == "start"] == [0, 3]
    losses = [row["loss"] for row in metrics(node) if row["kind"] == "validation"]
    assert losses[-1] < losses[0] - 0.05, "it has learned"
    advance(config, root, "evaluate.report")
    report = json.loads((root / "runs" / config.name / "report" / "report.json").read_text())
    scores = report["evaluation"]["test"]
    assert scores["tuned"]["perplexity"] < scores["base"]["perplexity"]
    export_run(config, root, tmp_path / "out", "fp32")
    base, best = parts(config, root)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert apart(merged, logits(load_adapter(in_fp32(base), best))) < 2e-6
    assert apart(merged, logits(in_fp32(base))) > 0.05, "and it is not the base"
