"""The training loop: one optimizer step, and the order of steps, validation, checkpoints and stops.

It holds no file format and no data source: those are behind its `Hooks`. A step's loss is the sum
over all its micro-batches, on all ranks, divided by its real tokens, so that the gradient does not
depend on how the step is cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import Interrupted, UserError
from pipeline.core.stop import Stop
from pipeline.dataset.order import step_seed
from pipeline.dataset.packing import IGNORE_INDEX, PackedBatch
from pipeline.modeling.device import Precision, autocast
from pipeline.modeling.loading import backbone
from pipeline.modeling.loss import token_losses
from pipeline.train.checkpoint import State, trainable
from pipeline.train.distributed import Ranks
from pipeline.train.stability import Guard

if TYPE_CHECKING:
    import torch


class OutOfMemory(Exception):
    """A micro-batch did not fit on a GPU of some rank; weights and optimizer are untouched."""


@dataclass(frozen=True)
class Learner:
    """What a step works on: model, optimizer, scaler, device, precision, and the clip norm.

    `compiled`: what to call in place of the model's body. `seed`: of dropout.
    """

    model: Any
    optimizer: Any
    scaler: Any
    device: torch.device
    precision: Precision
    clip: float
    guard: Guard
    compiled: Callable[..., Any] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0

    def step(self, number: int, batches: Iterable[PackedBatch], rate: float) -> dict[str, Any]:
        """One optimizer step, on all ranks together.

        Args:
            number: Steps taken before.
            batches: The micro-batches of the step, this rank's share.
            rate: Learning rate.

        Returns:
            loss (nats a token), grad_norm (before clipping), lr, tokens, skipped; where it was
            skipped also why.

        Raises:
            OutOfMemory: On all ranks, where one had too little; the step can be done again.
            UserError: Nothing is learned, or memory does not suffice for the optimizer.
        """
        import torch

        torch.manual_seed(step_seed(self.seed, number, self.ranks.rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(batches)
        (tokens,) = self.ranks.total(
            sum(int((part.targets != IGNORE_INDEX).sum()) for part in parts)
        )
        loss = self._accumulate(parts, int(tokens))
        learning = list(trainable(self.model).values())
        self.ranks.reduce(learning)
        self.scaler.unscale_(self.optimizer)
        (norm,) = self.ranks.largest(float(torch.nn.utils.clip_grad_norm_(learning, self.clip)))
        # fp16 begins with a loss scale that is too large, on purpose, and halves it
        calibrating = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        why = self.guard.judge(loss, norm, calibrating)
        if not why:
            self._take(rate)
        self.scaler.update()
        row = {"loss": loss, "grad_norm": norm, "lr": rate, "tokens": int(tokens)}
        return row | ({"skipped": True, "why": why} if why else {"skipped": False})

    def _accumulate(self, parts: list[PackedBatch], tokens: int) -> float:
        """Add up the gradients of the micro-batches; the mean loss of the step over all ranks."""
        import torch

        loss, full = 0.0, False
        try:
            for part in parts:
                share = self._sum(part.to(self.device)) / tokens
                self.scaler.scale(share).backward()
                loss += float(share.detach())
        except torch.OutOfMemoryError:
            full = True
        loss, failed = self.ranks.total(loss, full)
        if failed:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory
        return loss

    def _take(self, rate: float) -> None:
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            self.scaler.step(self.optimizer)
        except torch.OutOfMemoryError:
            # some weights may have moved already, and smaller micro-batches would not help
            raise UserError(
                "the GPU's memory does not suffice for the state of the optimizer",
                "use train.optimizer=paged_adamw8bit, or RECIPE=lora-8bit",
            ) from None

    def _sum(self, batch: PackedBatch) -> torch.Tensor:
        """Summed loss of a micro-batch, nats."""
        body, head = backbone(self.model)
        compute = body if self.compiled is None else self.compiled
        flash = body.config._attn_implementation == "flash_attention_2"
        arguments, targets = batch.varlen_inputs() if flash else batch.masked_inputs()
        with autocast(self.device, self.precision):
            states = compute(**arguments, use_cache=False).last_hidden_state
            losses = token_losses(states.flatten(0, 1), head, targets)
        return losses.sum()


@dataclass(frozen=True)
class Plan:
    """How long, how often, and how patiently.

    `total`: steps; `rate`: learning rate of a step; `micro_batch`: windows; `stop_after`:
    validations without improvement, None for no end; `rollbacks`: returns to a good checkpoint.
    """

    total: int
    validate_every: int
    checkpoint_every: int
    rate: Callable[[int], float]
    micro_batch: int = 1
    stop_after: int | None = None
    rollbacks: int = 0

    def validates(self, state: State) -> bool:
        """Whether the model is to be judged now, and has not yet been."""
        due = state.step == self.total or state.step % self.validate_every == 0
        return due and state.validated < state.step

    def ended(self, state: State) -> bool:
        """Whether there is nothing more to do."""
        early = self.stop_after is not None and state.stale >= self.stop_after
        return early or state.step == self.total


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of those who know files and data.

    `batches`: micro-batches of a step, of at most so many windows. `validate`: mean loss on
    held-out text. `save`: keep the state. `back`: put the last good checkpoint back. `log`: a row.
    """

    batches: Callable[[int, int], Iterable[PackedBatch]]
    validate: Callable[[State], float]
    save: Callable[[State], None]
    back: Callable[[State], None]
    log: Callable[[dict[str, Any]], None]


def fit(learner: Learner, state: State, plan: Plan, hooks: Hooks, stop: Stop) -> None:
    """Train from `state` to the end of the plan; `state` is kept up to date.

    Raises:
        Interrupted: A stop was asked for; the state was saved at a step boundary.
        UserError: Training diverged, or cannot be done with this memory.
    """
    learner.model.train()
    learner.guard.memory = state.guard
    saved = state.step
    while True:
        try:
            learner.ranks.check(stop)
            if plan.validates(state) and _validate(state, plan, hooks):
                saved = state.step
        except Interrupted:
            _save(state, plan, hooks, asked=True)
            raise
        if plan.ended(state):
            return
        if state.step != saved and state.step % plan.checkpoint_every == 0:
            _save(state, plan, hooks)
            saved = state.step
        started = time.perf_counter()
        row = _step(learner, state, plan, hooks)
        seconds = time.perf_counter() - started
        state.step += 1
        state.tokens += row["tokens"]
        state.skipped += row["skipped"]
        state.seconds += seconds
        hooks.log({"kind": "step", "step": state.step, **row, "seconds": round(seconds, 4)})
        if learner.guard.exhausted:
            _go_back(state, plan, hooks, row["why"])
            learner.guard.memory = state.guard
            saved = state.step


def _validate(state: State, plan: Plan, hooks: Hooks) -> bool:
    """Judge the model by held-out text; whether it is the best so far, and was saved."""
    loss = hooks.validate(state)
    if not math.isfinite(loss):
        raise UserError(
            f"the validation loss at step {state.step} is {loss}",
            "try train.precision=fp32; at step 0 the base model is at fault",
        )
    state.validated = state.step
    # while steps are being skipped the weights are under suspicion
    sound = not state.guard.in_a_row or state.step == plan.total
    better = sound and loss < state.best_loss
    state.stale = 0 if better else state.stale + 1
    # noted before it is saved: a kill in between then repeats it, and it is not missing
    hooks.log({"kind": "validation", "step": state.step, "loss": loss})
    if better:
        state.best_loss, state.best_step = loss, state.step
        _save(state, plan, hooks)
    return better


def _save(state: State, plan: Plan, hooks: Hooks, asked: bool = False) -> None:
    """Keep the state; if no step is being skipped it is one to go back to.

    One that a stop has asked for is not, unless it was due anyway: else what a training ends in
    would depend on where it was stopped.
    """
    due = not asked or state.step % plan.checkpoint_every == 0
    if due and not state.guard.in_a_row:
        state.good_step = state.step
    hooks.save(state)


def _step(learner: Learner, state: State, plan: Plan, hooks: Hooks) -> dict[str, Any]:
    """A step, with smaller micro-batches where memory does not suffice; the global one is kept."""
    while True:
        micro = min(plan.micro_batch, state.micro_batch or plan.micro_batch)
        try:
            batches = hooks.batches(state.step, micro)
            return learner.step(state.step, batches, plan.rate(state.step) * state.slowdown)
        except OutOfMemory:
            if micro == 1:
                raise UserError(
                    "one window at a time is too much for the GPU's memory",
                    "use a smaller train.sequence_length, train.gradient_checkpointing=true or "
                    "RECIPE=lora-8bit",
                ) from None
            state.micro_batch = micro // 2
        hooks.log({"kind": "memory", "step": state.step, "micro_batch": state.micro_batch})


def _go_back(state: State, plan: Plan, hooks: Hooks, why: str) -> None:
    """Return to the last good checkpoint with a lower learning rate, unless that was tried."""
    skipped, rate = state.guard.in_a_row, plan.rate(state.step - 1) * state.slowdown
    if state.rollbacks >= plan.rollbacks:
        raise UserError(
            f"training diverged: steps were skipped {skipped} times in a row, the last, step "
            f"{state.step}, because {why}; it has gone back to an earlier checkpoint "
            f"{state.rollbacks} times, and the learning rate was down to {rate:.3g}",
            f"the checkpoint of step {state.good_step} is kept; try a lower train.lr, or "
            "train.precision=bf16",
        )
    before = state.step
    hooks.back(state)
    hooks.log({"kind": "rollback", "step": state.step, "of": before, "slowdown": state.slowdown})
