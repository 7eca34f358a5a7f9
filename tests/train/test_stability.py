"""Inject every fault that training handles, and check the outcome."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import Config, resolve
from pipeline.core.errors import Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.dag import find
from pipeline.train.callbacks import TrainerCallbacks
from pipeline.train.checkpoint import trainable_weights
from pipeline.train.stability import HISTORY_STEPS, MIN_HISTORY_STEPS, SpikeGuard
from pipeline.train.step_runner import StepRunner
from tests.helpers.examples import thorough
from tests.helpers.runs import SMALL, advance
from tests.train.helpers import (
    StopAfter,
    batches,
    changed,
    inject,
    make_step_runner,
    metrics,
    no_memory,
    result,
    train,
    train_interrupted,
    weights,
)

pytestmark = pytest.mark.slow

Small = Callable[..., Config]


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A root in which training is the next step."""
    return Path(shutil.copytree(prepared, tmp_path / "root"))


def kinds(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def facts(node: Any) -> dict[str, Any]:
    (receipt,) = node.done.values()
    return dict(receipt.facts)


# Non-finite values and outliers


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_non_finite_step_is_skipped_counted_and_reported(
    small: Small,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    factor: float,
) -> None:
    inject(monkeypatch, lambda step, rate, windows: factor if step == 3 else 1.0)
    node = train(small(), root)
    assert (facts(node)["skipped"], facts(node)["rollbacks"]) == (1, 0)
    (skipped,) = [row for row in kinds(metrics(node), "step") if row["skipped"]]
    assert skipped["step"] == 4
    assert f"step 4 of 6 SKIPPED: loss is {factor}" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_non_finite_gradient_is_skipped_with_a_finite_loss(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    inject(monkeypatch, lambda *_: 1.0, lambda step: factor if step == 3 else 1.0)
    node = train(small(), root)
    (skipped,) = [row for row in kinds(metrics(node), "step") if row["skipped"]]
    assert skipped["step"] == 4
    assert math.isfinite(skipped["loss"])
    assert not math.isfinite(skipped["grad_norm"])
    assert all(math.isfinite(row["loss"]) for row in kinds(metrics(node), "validation"))


@pytest.mark.parametrize(
    ("what", "loss", "slope"), [("loss", 2.0, 0.5), ("gradient norm", 1.0, 50.0)]
)
def test_spike_in_loss_or_gradient_is_skipped_in_training(
    small: Small,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    loss: float,
    slope: float,
) -> None:
    """One at a time: when the loss doubles, its gradient stays the same."""
    inject(
        monkeypatch,
        lambda step, rate, windows: loss if step == MIN_HISTORY_STEPS else 1.0,
        lambda step: slope if step == MIN_HISTORY_STEPS else 1.0,
    )
    words = (f"train.steps={MIN_HISTORY_STEPS + 2}", "train.validate_every=9", "train.lr=1e-4")
    node = train(small(*words), root)
    rows = kinds(metrics(node), "step")
    assert [row["step"] for row in rows if row["skipped"]] == [MIN_HISTORY_STEPS + 1]
    assert (
        f"step {MIN_HISTORY_STEPS + 1} of {MIN_HISTORY_STEPS + 2} SKIPPED: {what} is "
        in capsys.readouterr().out
    )
    assert facts(node)["skipped"] == 1


def fill_history(guard: SpikeGuard, steps: int = MIN_HISTORY_STEPS) -> SpikeGuard:
    for number in range(steps):
        assert guard.check(3.0 + number / 100, 1.0 + number / 100) == ""
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (3.0 + math.log(10) + 0.2, 1.0, "loss is 5.503, the median is 3.075"),
        (3.0, 11.0, "gradient norm is 11, the median is 1.075"),
        (3.0 + math.log(10) - 0.1, 1.0, ""),
        (3.0, 9.0, ""),
        (0.5, 0.001, ""),
    ],
)
def test_spike_over_the_running_median_is_skipped(loss: float, norm: float, problem: str) -> None:
    guard = fill_history(SpikeGuard(5, spike_factor=10.0))
    assert guard.check(loss, norm) == problem
    assert guard.history.in_a_row == bool(problem)
    assert guard.check(3.0, 1.0) == ""
    assert guard.history.in_a_row == 0


def test_no_spike_without_history_or_with_detection_off() -> None:
    assert fill_history(SpikeGuard(5, 10.0), MIN_HISTORY_STEPS - 1).check(50.0, 1e6) == ""
    assert fill_history(SpikeGuard(5, None)).check(50.0, 1e6) == ""


def test_the_history_holds_only_the_newest_steps_taken() -> None:
    guard = fill_history(SpikeGuard(5, 10.0), 3 * HISTORY_STEPS)
    before = list(guard.history.norms)
    assert len(before) == HISTORY_STEPS
    assert guard.check(3.0, 1e6)
    assert guard.history.norms == before


def test_skipped_spike_leaves_weights_and_optimizer_unchanged(
    models: Callable[[str], Path],
) -> None:
    disturbed, undisturbed = make_step_runner(models), make_step_runner(models)
    for each in (disturbed, undisturbed):
        each.spike_guard.spike_factor = 10.0
        for step in range(MIN_HISTORY_STEPS):
            assert not each.run(step, batches((8,)), 1e-4)["skipped"]
    compute = StepRunner._loss_sum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRunner, "_loss_sum", lambda self, batch: compute(self, batch) * 20)
        row = disturbed.run(MIN_HISTORY_STEPS, batches((8,)), 1e-4)
    assert row["skipped"]
    assert "the median is" in row["why"]
    for each in (disturbed, undisturbed):
        assert not each.run(MIN_HISTORY_STEPS + 1, batches((8,)), 1e-4)["skipped"]
    assert changed(weights(disturbed), weights(undisturbed)) == 0


# Validation losses that are not finite


def refused_at(step: int, config: Config, root: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(config, root)
    assert str(caught.value) == (
        f"the validation loss at step {step} is nan. Try train.precision=fp32; at step 0 the cause "
        "is the base model"
    )


def test_non_finite_base_model_stops_training(
    dataset: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models("llama"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = resolve(str(dataset), str(folder), "lora-8bit", SMALL, "broken")
    advance(config, tmp_path / "root", "tokenize.seal")
    refused_at(0, config, tmp_path / "root")


def test_non_finite_weights_stop_training_and_are_not_saved(
    small: Small, root: Path, prepared: Path, tmp_path: Path
) -> None:
    """As if a device failed between the last step and the validation."""
    import torch

    whole = train(small(), Path(shutil.copytree(prepared, tmp_path / "whole")))
    step = StepRunner.run

    def spoiling(self: StepRunner, number: int, *more: Any) -> dict[str, Any]:
        row = step(self, number, *more)
        if number == 2:
            with torch.no_grad():
                next(iter(trainable_weights(self.model).values())).fill_(math.nan)
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRunner, "run", spoiling)
        refused_at(3, small(), root)
    folder = find(small(), root, "train.train").work.folder
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-00000000", "step-00000002"]
    assert result(train(small(), root)) == result(whole)


# Rollbacks

STEPS = (
    "train.steps=9",
    "train.max_skipped_in_a_row=1",
    "train.warmup_ratio=0",
    "train.schedule=constant",
)


def until_slower(step: int, rate: float, windows: int) -> float:
    """From step 5 on losses are NaN, until the learning rate is lower."""
    return math.nan if step >= 5 and rate > 3e-3 else 1.0


def test_too_many_skipped_steps_roll_back_with_a_lower_rate(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inject(monkeypatch, until_slower)
    node = train(small(*STEPS), root)
    rows = metrics(node)
    (back,) = kinds(rows, "rollback")
    assert (back["step"], back["of"], back["slowdown"]) == (4, 7, 0.5)
    taken = kinds(rows, "step")
    assert [row["step"] for row in taken] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9]
    assert [row["lr"] for row in taken] == pytest.approx([5e-3] * 7 + [2.5e-3] * 5)
    assert (facts(node)["rollbacks"], facts(node)["skipped"]) == (1, 2)
    assert "ROLLED BACK from step 7 to step 4" in capsys.readouterr().out
    import torch
    from safetensors.torch import load_file

    learned = load_file(node.work.folder / "best" / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in learned.values())


def test_a_stop_right_after_a_rollback_keeps_the_lower_rate(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, until_slower)
    stop, back = Stop(), TrainerCallbacks.roll_back

    def and_stop(self: TrainerCallbacks, state: Any) -> None:
        back(self, state)
        stop.set("a test")

    with monkeypatch.context() as patch:
        patch.setattr(TrainerCallbacks, "roll_back", and_stop)
        with pytest.raises(Interrupted):
            train(small(*STEPS), root, stop)
    node = train(small(*STEPS), root)
    assert (facts(node)["rollbacks"], facts(node)["attempts"]) == (1, 2)
    after = kinds(metrics(node), "step")[-5:]
    assert [row["step"] for row in after] == [5, 6, 7, 8, 9]
    assert [row["lr"] for row in after] == pytest.approx([2.5e-3] * 5)


def test_training_stops_after_the_last_rollback(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, lambda step, rate, windows: math.nan if step >= 5 else 1.0)
    config = small(*STEPS)
    with pytest.raises(UserError) as caught:
        train(config, root)
    assert str(caught.value) == (
        "training diverged: 2 steps in a row were skipped, the last one, step 7, because loss is "
        "nan, gradient norm is nan; after 2 rollbacks the learning rate was 0.00125. The "
        "checkpoint of step 4 is kept; try a lower train.lr, or train.precision=bf16"
    )
    node = find(config, root, "train.train")
    assert not node.complete
    assert (node.work.folder / "step-00000004" / "receipt.json").exists()


def test_skips_and_rollbacks_are_the_same_after_interruptions(
    small: Small, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After a stop, which saves, or a kill: checkpoints contain the history of the guard."""
    with pytest.MonkeyPatch.context() as patch:
        inject(patch, until_slower)
        config = small(*STEPS)
        place = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "root"))
        whole = train(config, place)

        # a stop after step 5 saves an extra checkpoint, and one after step 3 saves before that step
        # is validated; neither may change where a rollback returns to
        @settings(max_examples=6 if thorough else 2, deadline=None, database=None)
        @example([5])
        @example([3, 5])
        @example([4, 6])
        @given(st.lists(st.integers(-9, 9), min_size=1, max_size=3))
        def check(moments: list[int]) -> None:
            folder = tmp_path_factory.mktemp("broken")
            node = train_interrupted(config, prepared, folder, moments)
            assert result(node) == result(whole)
            for name in ("skipped", "rollbacks", "best_step"):
                assert facts(node)[name] == facts(whole)[name]

        check()


# Memory


def test_out_of_memory_halves_micro_batches_and_nothing_else(
    small: Small, root: Path, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared, tmp_path / "other")
    words = ("train.batch_size=4", "train.lora_dropout=0.1")
    alone = train(small(*words, "train.micro_batch_size=1"), tmp_path / "other")
    inject(monkeypatch, lambda step, rate, windows: no_memory() if windows > 1 else 1.0)
    node = train(small(*words, "train.micro_batch_size=4"), root)
    assert [row["micro_batch"] for row in kinds(metrics(node), "memory")] == [2, 1]
    tokens = [[row["tokens"] for row in kinds(metrics(n), "step")] for n in (node, alone)]
    assert tokens[0] == tokens[1], "the global batch is the same"
    assert result(node) == result(alone), "and so are the weights, bit by bit"


def test_a_reduced_micro_batch_is_kept_after_a_restart(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, lambda step, rate, windows: no_memory() if windows > 1 else 1.0)
    config = small()
    with pytest.raises(Interrupted):
        train(config, root, StopAfter(find(config, root, "train.train").work.folder, 3))
    assert len(kinds(metrics(train(config, root)), "memory")) == 1


def test_window_too_large_for_memory_gives_a_one_line_error(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, lambda step, rate, windows: no_memory())
    with pytest.raises(
        UserError, match="a micro-batch of one window does not fit into the GPU's memory"
    ):
        train(small(), root)


def test_optimizer_too_large_for_memory_gives_a_one_line_error(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = make_step_runner(models)
    monkeypatch.setattr(disturbed.optimizer, "step", lambda *args, **kwargs: no_memory())
    with pytest.raises(UserError, match="the state of the optimizer does not fit"):
        disturbed.run(0, batches((8,)), 1e-3)


# Zero gradients


def test_vanishing_gradients_stop_training(
    small: Small, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a 4-bit evaluation on a CPU; checked at every step, not only at the first."""
    inject(monkeypatch, lambda step, rate, windows: 0.0 if step == 4 else 1.0)
    with pytest.raises(UserError, match="no trainable weight received a gradient"):
        train(small(), root)
