"""Run a training in this process: stop, kill or disturb it, and read its result."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.core.errors import Interrupted
from pipeline.core.stage import Context, run_item
from pipeline.core.stop import Stop
from pipeline.dag import Node, find
from pipeline.dataset.packing import make_batch, pack
from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.modeling.loading import add_lora, load_base
from pipeline.modeling.packed_batch import PackedBatch
from pipeline.train.checkpoint import trainable_weights
from pipeline.train.metrics_log import METRICS_FILE
from pipeline.train.optimizer import make_optimizer
from pipeline.train.stability import SpikeGuard
from pipeline.train.step_runner import StepRunner


class StopAfter(Stop):
    """Requests a stop, or raises another error, once the metrics contain a step."""

    def __init__(self, folder: Path, step: int, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.path, self.text, self.error = folder / "metrics.jsonl", f'"step": {step},', error

    def check(self) -> None:
        """Raise once the step is there."""
        if self.path.exists() and self.text in self.path.read_text():
            raise self.error or Interrupted("a test")


class Killed(BaseException):
    """Stands for SIGKILL within one process: nothing is saved on exit."""


def train_interrupted(config: Config, prepared: Path, folder: Path, moments: list[int]) -> Node:
    """Train in a copy of `prepared`, stopped (or, if negative, killed) after these steps."""
    root = Path(shutil.copytree(prepared, folder / "root"))
    work = find(config, root, "train.train").work.folder
    for moment in moments:
        stop = StopAfter(work, abs(moment), Killed if moment < 0 else None)
        with contextlib.suppress(Interrupted, Killed):
            train(config, root, stop)
    return train(config, root)


def result(node: Node) -> tuple[str, float, frozenset[tuple[str, ...]]]:
    """Digest of the trained weights, the best loss, and each step and validation.

    A repeated step appears once, unless it gave another result.
    """
    ((unit, receipt),) = node.done.items()
    rows = [json.loads(line) for line in (node.work.folder / unit / METRICS_FILE).open()]
    keys = ("kind", "step", "loss", "grad_norm", "lr", "tokens", "skipped")
    # as text: NaN equals itself, and every bit of a float is compared
    steps = {tuple(f"{n} {row[n]!r}" for n in keys if n in row) for row in rows if "loss" in row}
    assert {row["step"] for row in rows if row["kind"] == "step"} == {
        step + 1 for step in range(receipt.facts["steps"])
    }
    return receipt.digest, receipt.facts["best_loss"], frozenset(steps)


def train(config: Config, root: Path, stop: Stop | None = None) -> Node:
    """Run the train step in this process."""
    node = find(config, root, "train.train")
    assert node.items is not None
    run_item(node.work, node.items[0], Context(stop=stop or Stop(), log=print))
    return find(config, root, "train.train")


def metrics(node: Node) -> list[dict[str, object]]:
    """The rows of the run's metrics."""
    text = (node.work.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


Fault = Callable[[int, float, int], float]
"""`fault(step, learning_rate, windows)`: factor of a micro-batch's loss; it may raise."""


def inject(
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    slope: Callable[[int], float] = lambda step: 1.0,
) -> None:
    """Apply a fault to every micro-batch; `slope` is a factor of its gradient alone."""
    run, loss_sum = StepRunner.run, StepRunner._loss_sum
    now: list[Any] = [0, 0.0]

    def recording(
        self: StepRunner, number: int, parts: Iterable[PackedBatch], rate: float
    ) -> dict[str, Any]:
        now[:] = number, rate
        return run(self, number, parts, rate)

    def failing(self: StepRunner, batch: PackedBatch) -> Any:
        loss = loss_sum(self, batch) * fault(*now, len(batch.inputs))
        loss.register_hook(lambda gradient: gradient * slope(now[0]))
        return loss

    monkeypatch.setattr(StepRunner, "run", recording)
    monkeypatch.setattr(StepRunner, "_loss_sum", failing)


def no_memory() -> float:
    """Fail like a GPU without free memory."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


Models = Callable[[str], Path]


# one document per window: 64, 3, 41, 2, 64, 9, 1 and 30 real tokens
LENGTHS = (70, 2, 40, 1, 63, 8, 0, 29)


LENGTH = 64


def batches(cuts: tuple[int, ...], order: tuple[int, ...] = tuple(range(8))) -> list[PackedBatch]:
    """All windows in that order, as micro-batches of those sizes."""
    ids = np.random.default_rng(5).integers(3, 512, sum(LENGTHS)).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    empty = np.zeros(len(LENGTHS), np.int64), np.zeros(len(LENGTHS), "V16")
    corpus = TokenizedSplit(ids, offsets, *empty, digest="")
    packing = pack(offsets, LENGTH, "pad")
    ends = np.cumsum((0, *cuts))
    assert ends[-1] == len(LENGTHS)
    return [make_batch(corpus, packing, order[a:b], prefix=0, end=1) for a, b in pairwise(ends)]


def make_step_runner(
    models: Models, method: str = "full", patience: int = 2, clip: float = 1.0
) -> StepRunner:
    import torch

    device = torch.device("cpu")
    torch.manual_seed(0)
    model = load_base(models("llama"), "fp32", device)
    if method == "lora":
        model = add_lora(model, 4, 8, 0.0, "all-linear", seed=0)
        with torch.no_grad():  # initially lora_B is zero, and so are half of all gradients
            for name, parameter in trainable_weights(model).items():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    else:
        model.requires_grad_(True)
    model.train()
    optimizer = make_optimizer(model, "adamw", (0.9, 0.95), 1e-4, 0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return StepRunner(model, optimizer, scaler, device, "fp32", clip, SpikeGuard(patience))


def weights(step_runner: StepRunner) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in trainable_weights(step_runner.model).items()}


def changed(one: dict[str, Any], other: dict[str, Any]) -> int:
    return sum(bool((value != other[name]).any()) for name, value in one.items())
