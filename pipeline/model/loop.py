"""The training loop: one optimizer step, and the order of steps, validation, checkpoints and stops.

It holds no file format and no data source: the stage gives it `batches(step)`, `validate`, `save`
and `log`. A step's loss is the sum over all its micro-batches divided by its real tokens, so that
the gradient does not depend on how the step is cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.packing import Batch
from pipeline.errors import Interrupted, UserError
from pipeline.model.checkpoint import State, trainable
from pipeline.model.guard import Guard, check_gradients
from pipeline.model.load import Precision, autocast, backbone
from pipeline.model.loss import IGNORE, token_losses
from pipeline.stop import Stop

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Learner:
    """What a step works on: model, optimizer, scaler, device, precision, and the clip norm.

    `compiled`: what to call in place of the model's body.
    """

    model: Any
    optimizer: Any
    scaler: Any
    device: torch.device
    precision: Precision
    clip: float
    guard: Guard
    compiled: Callable[..., Any] | None = None

    def step(self, number: int, batches: Iterable[Batch], rate: float) -> dict[str, Any]:
        """One optimizer step.

        Args:
            number: Steps taken before.
            batches: The micro-batches of the step.
            rate: Learning rate.

        Returns:
            loss (nats a token), grad_norm (before clipping), lr, tokens, skipped.
        """
        import torch

        parts = list(batches)
        tokens = sum(int((part.targets != IGNORE).sum()) for part in parts)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in parts:
            loss = self._sum(part.to(self.device)) / tokens
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        learning = trainable(self.model)
        if number < 2:
            check_gradients(learning.items())
        norm = float(torch.nn.utils.clip_grad_norm_(list(learning.values()), self.clip))
        # fp16 begins with a loss scale that is too large, on purpose, and halves it
        calibrating = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        taken = self.guard.accepts(number, total, norm, calibrating)
        if taken:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return {
            "loss": total,
            "grad_norm": norm,
            "lr": rate,
            "tokens": tokens,
            "skipped": not taken,
        }

    def _sum(self, batch: Batch) -> torch.Tensor:
        """Summed loss of a micro-batch, nats."""
        body, head = backbone(self.model)
        compute = body if self.compiled is None else self.compiled
        flash = body.config._attn_implementation == "flash_attention_2"
        arguments, targets = batch.by_length() if flash else batch.by_mask()
        with autocast(self.device, self.precision):
            states = compute(**arguments, use_cache=False).last_hidden_state
            losses = token_losses(states.flatten(0, 1), head, targets)
        return losses.sum()


@dataclass(frozen=True)
class Plan:
    """How long, and how often. `total`: steps; `rate`: learning rate of a step."""

    total: int
    validate_every: int
    checkpoint_every: int
    rate: Callable[[int], float]


def fit(
    learner: Learner,
    state: State,
    plan: Plan,
    *,
    batches: Callable[[int], Iterable[Batch]],
    validate: Callable[[State], float],
    save: Callable[[State], None],
    log: Callable[[dict[str, Any]], None],
    stop: Stop,
) -> None:
    """Train from `state` to the end of the plan; `state` is kept up to date.

    Raises:
        Interrupted: A stop was asked for; the state was saved at a step boundary.
    """
    learner.model.train()
    saved = state.step
    while True:
        try:
            stop.check()
            if state.validated < state.step and _due(state.step, plan.validate_every, plan.total):
                loss = validate(state)
                if not math.isfinite(loss):
                    raise UserError(
                        f"the validation loss at step {state.step} is {loss}",
                        "try train.precision=fp32; at step 0 the base model is at fault",
                    )
                state.validated = state.step
                if loss < state.best_loss:
                    state.best_loss, state.best_step = loss, state.step
                    save(state)
                    saved = state.step
                log({"kind": "validation", "step": state.step, "loss": loss})
        except Interrupted:
            save(state)
            raise
        if state.step == plan.total:
            return
        if state.step != saved and state.step % plan.checkpoint_every == 0:
            save(state)
            saved = state.step
        started = time.perf_counter()
        row = learner.step(state.step, batches(state.step), plan.rate(state.step))
        seconds = time.perf_counter() - started
        state.step += 1
        state.tokens += row["tokens"]
        state.skipped += row["skipped"]
        state.seconds += seconds
        log({"kind": "step", "step": state.step, **row, "seconds": round(seconds, 4)})


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (step % every == 0)
