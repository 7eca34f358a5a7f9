"""One optimizer step, computed by all ranks together.

The loss of a step is the sum over all its micro-batches, on all ranks, divided by its real tokens.
So the gradient does not depend on how the step is split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.dataset.order import step_seed
from pipeline.modeling.device import Precision, autocast
from pipeline.modeling.loading import attention_of, body_and_head
from pipeline.modeling.loss import token_losses
from pipeline.modeling.packed_batch import IGNORE_INDEX, PackedBatch
from pipeline.train.checkpoint import trainable_weights
from pipeline.train.distributed import Ranks
from pipeline.train.stability import SpikeGuard

if TYPE_CHECKING:
    import torch


class OutOfMemory(Exception):
    """A micro-batch did not fit on a GPU of some rank; weights and optimizer are unchanged."""


@dataclass(frozen=True)
class StepRunner:
    """Computes optimizer steps. Holds the model, its optimizer, the gradient scaler and the ranks.

    `max_grad_norm`: gradients are clipped to this global norm. `compiled_body`: called instead of
    the model's body. `seed`: seed of dropout.
    """

    model: Any
    optimizer: Any
    scaler: Any
    device: torch.device
    precision: Precision
    max_grad_norm: float
    spike_guard: SpikeGuard
    compiled_body: Callable[..., Any] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0

    def run(
        self, step: int, batches: Iterable[PackedBatch], learning_rate: float
    ) -> dict[str, Any]:
        """Take an optimizer step, or skip it if the guard finds a problem.

        Args:
            step: Number of steps before this one.
            batches: This rank's micro-batches of the step.
            learning_rate: Learning rate of the step.

        Returns:
            loss (nats per token), grad_norm (before clipping), lr, tokens, skipped; and why, if it
            was skipped.

        Raises:
            OutOfMemory: On all ranks, if one ran out of memory; the step can be repeated.
            UserError: No weight has a gradient, or the optimizer does not fit into memory.
        """
        import torch

        torch.manual_seed(step_seed(self.seed, step, self.ranks.rank))
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = list(batches)
        real_tokens = sum(int((b.targets != IGNORE_INDEX).sum()) for b in micro_batches)
        (tokens,) = self.ranks.all_sum(real_tokens)
        loss = self._accumulate_gradients(micro_batches, int(tokens))
        weights = list(trainable_weights(self.model).values())
        self.ranks.all_reduce_gradients(weights)
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, self.max_grad_norm))
        (norm,) = self.ranks.all_max(norm)
        # fp16 starts with a loss scale that is too large, on purpose, and halves it
        calibrating = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        problem = self.spike_guard.check(loss, norm, calibrating)
        if not problem:
            self._update_weights(learning_rate)
        self.scaler.update()
        row = {"loss": loss, "grad_norm": norm, "lr": learning_rate, "tokens": int(tokens)}
        return row | ({"skipped": True, "why": problem} if problem else {"skipped": False})

    def _accumulate_gradients(self, micro_batches: list[PackedBatch], tokens: int) -> float:
        """Add up the gradients of the micro-batches; return the mean loss over all ranks."""
        import torch

        loss, out_of_memory = 0.0, False
        try:
            for batch in micro_batches:
                loss_term = self._loss_sum(batch.to(self.device)) / tokens
                self.scaler.scale(loss_term).backward()
                loss += float(loss_term.detach())
        except torch.OutOfMemoryError:
            out_of_memory = True
        loss, failed_ranks = self.ranks.all_sum(loss, out_of_memory)
        if failed_ranks:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory
        return loss

    def _loss_sum(self, batch: PackedBatch) -> torch.Tensor:
        """Summed loss of a micro-batch, nats."""
        import torch

        body, head = body_and_head(self.model)
        forward = body if self.compiled_body is None else self.compiled_body
        sums = []
        for arguments, targets in batch.inputs_for(attention_of(self.model)):
            with autocast(self.device, self.precision):
                states = forward(**arguments, use_cache=False).last_hidden_state
                losses = token_losses(states.flatten(0, 1), head, targets)
            sums.append(losses.sum())
        return torch.stack(sums).sum()

    def _update_weights(self, learning_rate: float) -> None:
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            self.scaler.step(self.optimizer)
        except torch.OutOfMemoryError:
            # some weights may be updated already, and smaller micro-batches would not help
            raise UserError(
                "the state of the optimizer does not fit into the GPU's memory",
                "Use train.optimizer=paged_adamw8bit, or RECIPE=lora-8bit",
            ) from None
