"""A training step does not depend on its micro-batches, and bad steps are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.modeling.packed_batch import IGNORE_INDEX, PackedBatch
from pipeline.train.checkpoint import TrainState, trainable_weights
from pipeline.train.step_runner import StepRunner
from pipeline.train.trainer import TrainSchedule, fit
from tests.helpers.runs import StopAfterChecks
from tests.train.helpers import LENGTH, LENGTHS, Models, batches, changed, make_step_runner, weights


def assert_close(one: dict[str, Any], other: dict[str, Any], **tolerance: float) -> None:
    import torch

    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


CUTS = [(1,) * 8, (2, 2, 2, 2), (3, 1, 4), (7, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_does_not_depend_on_its_micro_batches(models: Models, method: str) -> None:
    """The new weights are the same, even if micro-batches differ a hundredfold in real tokens."""
    whole = make_step_runner(models, method)
    before = weights(whole)
    row = whole.run(0, batches((8,)), 1e-2)
    after = weights(whole)
    assert changed(before, after) == len(before), "every weight changed"
    assert row["tokens"] == sum(min(n + 1, LENGTH) for n in LENGTHS)
    for cuts in CUTS:
        other = make_step_runner(models, method)
        found = other.run(0, batches(cuts), 1e-2)
        assert found["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
        assert found["tokens"] == row["tokens"]
        assert_close(weights(other), after, rtol=1e-4, atol=2e-6)


def test_the_order_within_a_step_does_not_matter(models: Models) -> None:
    one, other = make_step_runner(models), make_step_runner(models)
    one.run(0, batches((4, 4)), 1e-2)
    other.run(0, batches((4, 4), (7, 3, 1, 5, 2, 0, 6, 4)), 1e-2)
    assert_close(weights(one), weights(other), rtol=1e-4, atol=2e-6)


def test_the_loss_is_the_mean_over_real_tokens_and_not_over_micro_batches(models: Models) -> None:
    import torch

    found = make_step_runner(models).run(0, batches((1,) * 8), 0.0)
    model = make_step_runner(models).model
    sums, counts = [], []
    for batch in batches((1,) * 8):
        real = int((batch.targets != IGNORE_INDEX).sum())
        with torch.no_grad():
            logits = model(input_ids=batch.inputs[:, :real]).logits[0]
        sums.append(
            float(
                torch.nn.functional.cross_entropy(logits, batch.targets[0, :real], reduction="sum")
            )
        )
        counts.append(real)
    assert found["loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    naive = np.mean([s / c for s, c in zip(sums, counts, strict=True)])
    assert abs(naive - found["loss"]) > 1e-3, "the two differ, so the check is sharp"


@pytest.mark.slow
def test_several_steps_do_not_depend_on_their_micro_batches(models: Models) -> None:
    one, other = make_step_runner(models), make_step_runner(models)
    for step in range(4):
        first = one.run(step, batches((8,)), 3e-3)
        second = other.run(step, batches((3, 1, 4)), 3e-3)
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert_close(weights(one), weights(other), rtol=1e-3, atol=1e-4)


def test_gradients_are_clipped_and_the_norm_before_is_reported(models: Models) -> None:
    loose, tight = make_step_runner(models, clip=1e9), make_step_runner(models, clip=0.01)
    norm = loose.run(0, batches((8,)), 0.0)["grad_norm"]
    assert tight.run(0, batches((8,)), 0.0)["grad_norm"] == pytest.approx(norm)
    total = sum(float(p.grad.pow(2).sum()) for p in trainable_weights(tight.model).values()) ** 0.5
    assert total == pytest.approx(0.01, rel=1e-3)


def test_a_rate_of_zero_changes_nothing(models: Models) -> None:
    step_runner = make_step_runner(models)
    before = weights(step_runner)
    assert not step_runner.run(0, batches((8,)), 0.0)["skipped"]
    assert changed(before, weights(step_runner)) == 0


def spoil(learner: StepRunner, factor: float) -> Any:
    """Multiply the logits, as an overflow would; returns the hook to remove."""
    return learner.model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: output * factor
    )


@pytest.mark.slow
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_non_finite_step_leaves_weights_and_optimizer_unchanged(
    models: Models, factor: float
) -> None:
    import torch

    disturbed, undisturbed = make_step_runner(models), make_step_runner(models)
    for each in (disturbed, undisturbed):
        each.run(0, batches((8,)), 1e-3)
    before = weights(disturbed)
    hook = spoil(disturbed, factor)
    row = disturbed.run(1, batches((8,)), 1e-3)
    hook.remove()
    assert row["skipped"]
    assert not np.isfinite(row["loss"]), "it is reported as it was"
    assert changed(before, weights(disturbed)) == 0
    for each in (disturbed, undisturbed):
        assert not each.run(2, batches((4, 4)), 1e-3)["skipped"]
    assert changed(weights(disturbed), weights(undisturbed)) == 0, "the optimizer is unchanged, too"
    assert all(torch.isfinite(p).all() for p in weights(disturbed).values())


def test_too_many_such_steps_in_a_row_are_noticed(models: Models) -> None:
    step_runner = make_step_runner(models, patience=2)
    before = weights(step_runner)
    hook = spoil(step_runner, float("nan"))
    for step in (10, 11, 12):
        assert not step_runner.spike_guard.exhausted
        row = step_runner.run(step, batches((8,)), 1e-3)
        assert (row["skipped"], row["why"]) == (True, "loss is nan, gradient norm is nan")
    assert step_runner.spike_guard.exhausted
    assert changed(before, weights(step_runner)) == 0
    hook.remove()
    assert not step_runner.run(13, batches((8,)), 1e-3)["skipped"]
    assert not step_runner.spike_guard.exhausted


@pytest.mark.slow
def test_a_good_step_resets_the_count(models: Models) -> None:
    step_runner = make_step_runner(models, patience=1)
    for step in range(6):
        hook = spoil(step_runner, float("nan") if step % 2 else 1.0)
        assert step_runner.run(step, batches((8,)), 1e-3)["skipped"] == bool(step % 2)
        hook.remove()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_model_without_gradient_stops_training_at_once(models: Models, method: str) -> None:
    step_runner = make_step_runner(models, method)
    hook = spoil(step_runner, 0.0)
    with pytest.raises(UserError, match="no trainable weight received a gradient"):
        step_runner.run(0, batches((8,)), 1e-3)
    hook.remove()
    step_runner.run(0, batches((8,)), 1e-3)


@pytest.mark.slow
def test_a_scale_that_overflows_is_lowered_until_steps_are_taken(models: Models) -> None:
    import torch

    plain = make_step_runner(models, patience=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.5)
    step_runner = replace(plain, scaler=scaler)
    before = weights(step_runner)
    steps = 0
    while step_runner.run(steps, batches((8,)), 1e-3)["skipped"]:
        assert changed(before, weights(step_runner)) == 0
        steps += 1
    assert steps > 0, "the scale did overflow"
    reference = make_step_runner(models)
    reference.run(0, batches((8,)), 1e-3)
    assert_close(weights(step_runner), weights(reference), rtol=1e-4, atol=1e-6)


class Run:
    """A training of some steps on the same windows, which records its callbacks."""

    def __init__(
        self, models: Models, losses: list[float], state: TrainState | None = None
    ) -> None:
        self.step_runner = make_step_runner(models)
        self.state = state or TrainState()
        self.losses = losses
        self.events: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def batches(self, step: int, micro_batch_size: int) -> Iterator[PackedBatch]:
        yield from batches((micro_batch_size,) * (8 // micro_batch_size))

    def validate(self, state: TrainState) -> float:
        self.events.append(f"validate {state.step}")
        return self.losses.pop(0)

    def save(self, state: TrainState) -> None:
        self.events.append(f"save {state.step}")

    def roll_back(self, state: TrainState) -> None:
        raise AssertionError("no rollback is expected")

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def fit(
        self,
        total_steps: int,
        validate_every: int,
        checkpoint_every: int,
        stop: Stop | None = None,
        patience: int | None = None,
    ) -> None:
        schedule = TrainSchedule(
            total_steps,
            validate_every,
            checkpoint_every,
            lambda step: 1e-3,
            micro_batch_size=8,
            early_stopping_patience=patience,
        )
        fit(self.step_runner, self.state, schedule, self, stop or Stop())


@pytest.mark.slow
def test_a_training_validates_saves_and_ends_where_it_should(models: Models) -> None:
    run = Run(models, [3.0, 3.5, 2.0, 2.5])
    run.fit(total_steps=5, validate_every=2, checkpoint_every=3)
    assert run.events == [
        "validate 0", "save 0",
        "validate 2",
        "save 3",
        "validate 4", "save 4",
        "validate 5",
    ]  # fmt: skip
    steps = [row for row in run.rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    assert run.state.step == 5
    assert run.state.tokens == sum(row["tokens"] for row in steps)
    assert (run.state.best_step, run.state.best_loss) == (4, 2.0)
    run.fit(total_steps=5, validate_every=2, checkpoint_every=3)
    assert len(run.events) == 7, "a finished training does nothing more"


@pytest.mark.slow
def test_a_stop_saves_at_a_step_boundary_and_changes_nothing(models: Models) -> None:
    losses = [3.0, 2.5, 2.0]
    whole = Run(models, list(losses))
    whole.fit(total_steps=4, validate_every=2, checkpoint_every=10)
    for checks in range(4):
        run = Run(models, list(losses))
        with pytest.raises(Interrupted, match="a test"):
            run.fit(4, 2, 10, StopAfterChecks(checks))
        assert run.events[-1] == f"save {run.state.step}"
        assert run.state.step == checks
        run.fit(4, 2, 10)
        assert changed(weights(run.step_runner), weights(whole.step_runner)) == 0
        assert [e for e in run.events if "validate" in e] == [
            "validate 0",
            "validate 2",
            "validate 4",
        ]


def test_a_stop_within_a_validation_repeats_it_later(models: Models) -> None:
    class InterruptedOnce(Run):
        """Is interrupted in the first validation."""

        def validate(self, state: TrainState) -> float:
            if not self.events:
                self.events.append("interrupted")
                raise Interrupted("a test")
            return super().validate(state)

    run = InterruptedOnce(models, [3.0, 2.0])
    with pytest.raises(Interrupted):
        run.fit(1, 5, 5)
    run.fit(1, 5, 5)
    assert run.events == ["interrupted", "save 0", "validate 0", "save 0", "validate 1", "save 1"]


@pytest.mark.slow
def test_early_stopping_after_validations_without_improvement(models: Models) -> None:
    run = Run(models, [3.0, 2.0, 2.5, 2.1, 1.9, 1.0])
    run.fit(total_steps=10, validate_every=2, checkpoint_every=100, patience=3)
    assert run.state.step == 10, "two in a row are fewer than three"
    run = Run(models, [3.0, 2.0, 2.5, 2.0, 1.0])
    run.fit(total_steps=10, validate_every=2, checkpoint_every=100, patience=2)
    assert (run.state.step, run.state.stale) == (6, 2)
    assert (run.state.best_step, run.state.best_loss) == (2, 2.0), "an equal loss is not better"
    run.fit(total_steps=10, validate_every=2, checkpoint_every=100, patience=2)
    assert run.state.step == 6, "a training that stopped early does not resume"
