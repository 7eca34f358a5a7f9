"""The training loop: the sequence of steps, validations, checkpoints, rollbacks and stops.

It knows no file format and no data source; these are behind its `Callbacks`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.errors import Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.modeling.packed_batch import PackedBatch
from pipeline.train.checkpoint import TrainState
from pipeline.train.step_runner import OutOfMemory, StepRunner


@dataclass(frozen=True)
class TrainSchedule:
    """How long to train, and how often to validate, save and roll back.

    `total_steps`, `validate_every`, `checkpoint_every`: in optimizer steps. `learning_rate`: maps a
    step to its rate. `micro_batch_size`: in windows. `early_stopping_patience`: validations in a
    row without a better loss; None: no early stopping. `max_rollbacks`: returns to a checkpoint.
    """

    total_steps: int
    validate_every: int
    checkpoint_every: int
    learning_rate: Callable[[int], float]
    micro_batch_size: int = 1
    early_stopping_patience: int | None = None
    max_rollbacks: int = 0

    def should_validate(self, state: TrainState) -> bool:
        """Whether a validation is due and not done yet."""
        due = state.step == self.total_steps or state.step % self.validate_every == 0
        return due and state.validated < state.step

    def is_finished(self, state: TrainState) -> bool:
        """Whether the last step is done, or early stopping ends training."""
        patience = self.early_stopping_patience
        early = patience is not None and state.stale >= patience
        return early or state.step == self.total_steps


class Callbacks(Protocol):
    """What the loop needs from outside."""

    def batches(self, step: int, micro_batch_size: int) -> Iterable[PackedBatch]:
        """This rank's micro-batches of a step, of at most that many windows."""

    def validate(self, state: TrainState) -> float:
        """The mean loss on held-out text, nats per token."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint."""

    def roll_back(self, state: TrainState) -> None:
        """Return to the last good checkpoint; `state` is updated."""

    def log(self, row: dict[str, Any]) -> None:
        """Log a row of metrics."""


def fit(
    step_runner: StepRunner,
    state: TrainState,
    schedule: TrainSchedule,
    callbacks: Callbacks,
    stop: Stop,
) -> None:
    """Train from `state` to the end of the schedule; `state` is kept up to date.

    Raises:
        Interrupted: A stop was requested; the state was saved at a step boundary.
        UserError: Training diverged, or does not fit into memory.
    """
    step_runner.model.train()
    step_runner.spike_guard.history = state.guard
    saved_step = state.step
    while True:
        try:
            step_runner.ranks.check_stop(stop)
            if schedule.should_validate(state) and _validate(state, schedule, callbacks):
                saved_step = state.step
        except Interrupted:
            _save(state, schedule, callbacks, on_stop=True)
            raise
        if schedule.is_finished(state):
            return
        if state.step != saved_step and state.step % schedule.checkpoint_every == 0:
            _save(state, schedule, callbacks)
            saved_step = state.step
        row = _run_step(step_runner, state, schedule, callbacks)
        if step_runner.spike_guard.exhausted:
            _roll_back(state, schedule, callbacks, row["why"])
            step_runner.spike_guard.history = state.guard
            saved_step = state.step


def _validate(state: TrainState, schedule: TrainSchedule, callbacks: Callbacks) -> bool:
    """Compute the validation loss; return whether it is the best so far, and was saved."""
    loss = callbacks.validate(state)
    if not math.isfinite(loss):
        raise UserError(
            f"the validation loss at step {state.step} is {loss}",
            "Try train.precision=fp32; at step 0 the cause is the base model",
        )
    state.validated = state.step
    # while steps are being skipped, the weights are suspect
    trusted = not state.guard.in_a_row or state.step == schedule.total_steps
    better = trusted and loss < state.best_loss
    state.stale = 0 if better else state.stale + 1
    # logged before it is saved: after a kill in between it is repeated, not missing
    callbacks.log({"kind": "validation", "step": state.step, "loss": loss})
    if better:
        state.best_loss, state.best_step = loss, state.step
        _save(state, schedule, callbacks)
    return better


def _save(
    state: TrainState, schedule: TrainSchedule, callbacks: Callbacks, on_stop: bool = False
) -> None:
    """Save a checkpoint, to which a rollback may return if no step is being skipped.

    A rollback must not return to a checkpoint that exists only because of a stop. Otherwise the
    result of training would depend on where it was stopped.
    """
    due = not on_stop or state.step % schedule.checkpoint_every == 0
    if due and not state.guard.in_a_row:
        state.good_step = state.step
    callbacks.save(state)


def _run_step(
    step_runner: StepRunner, state: TrainState, schedule: TrainSchedule, callbacks: Callbacks
) -> dict[str, Any]:
    """Run and log a step, update the state, and return the row."""
    started = time.perf_counter()
    learning_rate = schedule.learning_rate(state.step) * state.slowdown
    row = _run_with_smaller_micro_batches(step_runner, state, schedule, callbacks, learning_rate)
    seconds = time.perf_counter() - started
    state.step += 1
    state.tokens += row["tokens"]
    state.skipped += row["skipped"]
    state.seconds += seconds
    callbacks.log({"kind": "step", "step": state.step, **row, "seconds": round(seconds, 4)})
    return row


def _run_with_smaller_micro_batches(
    step_runner: StepRunner,
    state: TrainState,
    schedule: TrainSchedule,
    callbacks: Callbacks,
    learning_rate: float,
) -> dict[str, Any]:
    """Run the step. After an out-of-memory error halve the micro-batch and repeat.

    The global batch stays the same.
    """
    while True:
        size = min(schedule.micro_batch_size, state.micro_batch or schedule.micro_batch_size)
        try:
            return step_runner.run(state.step, callbacks.batches(state.step, size), learning_rate)
        except OutOfMemory:
            if size == 1:
                raise UserError(
                    "a micro-batch of one window does not fit into the GPU's memory",
                    "Use a smaller train.sequence_length, train.gradient_checkpointing=true or "
                    "RECIPE=lora-8bit",
                ) from None
            state.micro_batch = size // 2
        callbacks.log({"kind": "memory", "step": state.step, "micro_batch": state.micro_batch})


def _roll_back(
    state: TrainState, schedule: TrainSchedule, callbacks: Callbacks, problem: str
) -> None:
    """Return to the last good checkpoint with a lower learning rate, if rollbacks are left."""
    if state.rollbacks >= schedule.max_rollbacks:
        learning_rate = schedule.learning_rate(state.step - 1) * state.slowdown
        raise UserError(
            f"training diverged: {state.guard.in_a_row} steps in a row were skipped, the last one, "
            f"step {state.step}, because {problem}; after {state.rollbacks} rollbacks the learning "
            f"rate was {learning_rate:.3g}",
            f"The checkpoint of step {state.good_step} is kept; try a lower train.lr, or "
            "train.precision=bf16",
        )
    diverged_step = state.step
    callbacks.roll_back(state)
    row = {"kind": "rollback", "step": state.step, "of": diverged_step}
    callbacks.log(row | {"slowdown": state.slowdown})
