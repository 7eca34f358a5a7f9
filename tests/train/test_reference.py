"""The loss curve equals that of a plain loop over Hugging Face's libraries."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import resolve
from pipeline.core.stage import Context
from pipeline.dag import Node
from pipeline.dataset.order import WindowSampler
from pipeline.dataset.packing import pack
from pipeline.dataset.sealed import open_sealed
from tests.helpers.runs import SMALL, advance
from tests.train.helpers import metrics

pytestmark = pytest.mark.slow

LENGTH, BATCH, STEPS, RATE, SEED = 192, 6, 8, 3e-3, 7
# with a smaller one, gradients that are only rounding errors (biases of keys) make full steps
EPS = 1e-4
WORDS = (
    f"train.sequence_length={LENGTH}", f"train.batch_size={BATCH}", "train.micro_batch_size=2",
    f"train.steps={STEPS}", f"train.lr={RATE}", f"train.seed={SEED}", "train.min_lr_ratio=0",
    "train.weights=fp32", "train.precision=fp32", "train.weight_decay=0.1",
    "train.max_grad_norm=0.5", "train.warmup_ratio=0.25", f"train.eps={EPS}",
)  # fmt: skip


def texts(node: Node) -> list[list[list[int]]]:
    """The documents, or parts of long ones, that each step reads.

    Only the order of the data is taken from the code under test.
    """
    corpus = open_sealed(node.work.inputs, "train", Context())
    facts = node.work.inputs["download.model"].one()[1].facts
    packing = pack(corpus.offsets, LENGTH)

    def text(document: int, first: int, pairs: int) -> list[int]:
        whole = [facts["prefix_id"], *corpus.document(document).tolist(), facts["end_id"]]
        return whole[first : first + pairs + 1]

    order = WindowSampler(len(packing), BATCH, SEED)
    return [
        [
            text(*piece)
            for window in order.windows(step)
            for piece in packing.pieces_of(window).tolist()
        ]
        for step in range(STEPS)
    ]


def train_plainly(
    folder: Path, method: str, steps: list[list[list[int]]]
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step; every document is a batch with its own `labels`."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if method == "lora":
        torch.manual_seed(SEED)
        settings = peft.LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM",
            fan_in_fan_out=model.config.model_type == "gpt2",
        )  # fmt: skip
        model = peft.get_peft_model(model, settings)
    model.train()
    learning = [p for p in model.parameters() if p.requires_grad]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = [p for p in learning if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in learning if p.ndim < 2 or id(p) in tables]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=EPS)
    warm = math.ceil(0.25 * STEPS)
    results = []
    for step, parts in enumerate(steps):
        total = sum(len(text) - 1 for text in parts)
        mean = 0.0
        optimizer.zero_grad()
        for text in parts:
            ids = torch.tensor([text])
            loss = model(input_ids=ids, labels=ids).loss * ((len(text) - 1) / total)
            loss.backward()
            mean += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(learning, 0.5).item()
        done = (step - warm) / (STEPS - 1 - warm)
        share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        optimizer.step()
        results.append((mean, norm))
    return results


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "family",
    [
        "opt",
        pytest.param("opt with gelu", marks=pytest.mark.thorough),
        "gpt2",
        pytest.param("llama", marks=pytest.mark.thorough),
    ],
)
def test_loss_curve_equals_that_of_a_plain_loop(
    family: str, method: str, dataset: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(models(family.partition(" ")[0]), tmp_path / "model"))
    if family == "opt with gelu":
        config = json.loads((model / "config.json").read_text())
        text = json.dumps(config | {"activation_function": "gelu"})
        (model / "config.json").write_text(text)
    words = [*SMALL, *WORDS, f"train.method={method}"]
    run = resolve(str(dataset), str(model), "lora", words, "reference")
    node = advance(run, tmp_path, "train.train")
    product = [(r["loss"], r["grad_norm"]) for r in metrics(node) if r["kind"] == "step"]
    plain = train_plainly(node.work.inputs["download.model"].one()[0], method, texts(node))
    assert len(product) == STEPS
    for (loss, norm), (plain_loss, plain_norm) in zip(product, plain, strict=True):
        assert loss == pytest.approx(plain_loss, rel=1e-6)
        # the gradient of OPT's ReLU jumps where rounding changes a sign; its loss does not
        assert family == "opt" or norm == pytest.approx(plain_norm, rel=5e-6)
    assert product[-1][0] < product[0][0] - 0.05, "it has learned something"
