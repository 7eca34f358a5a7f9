"""Cross-entropy in chunks and in fp32, so that the logits of a whole batch never exist at once.

With a frozen output head, the gradient of the hidden states is computed together with the loss,
chunk by chunk, and kept instead of the logits: (tokens, width) instead of (tokens, vocabulary). No
chunk is computed twice. With a trainable head, each chunk is checkpointed: the backward pass
computes its logits again. torch's own `linear_cross_entropy` rounds the loss to bf16 if its inputs
are bf16 (5 % in perplexity), so reported losses cannot come from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline.modeling.device import Precision
from pipeline.modeling.packed_batch import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

CHUNK_TOKENS = 512
LOSS_PRECISION: Precision = "fp32"
"""Format of the softmax and of each loss; sums over documents are float64."""


def token_losses(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target.

    Args:
        hidden: Last hidden states, (tokens, width).
        head: The output head, a module.
        targets: Token ids, (tokens,); `IGNORE_INDEX` where nothing is predicted.

    Returns:
        Nats, fp32, (tokens,); 0 where ignored. Differentiable with respect to `hidden` and the
        parameters of the head; only once if the head is frozen.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk_losses(states: torch.Tensor, chunk_targets: torch.Tensor) -> torch.Tensor:
        logits = head(states).float()
        return torch.nn.functional.cross_entropy(
            logits, chunk_targets, ignore_index=IGNORE_INDEX, reduction="none"
        )

    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    losses = []
    for start in range(0, len(targets), CHUNK_TOKENS):
        chunk = hidden[start : start + CHUNK_TOKENS], targets[start : start + CHUNK_TOKENS]
        if not torch.is_grad_enabled():
            losses.append(chunk_losses(*chunk))
        elif frozen:
            losses.append(_frozen_head_loss().apply(*chunk, chunk_losses))
        else:
            losses.append(checkpoint(chunk_losses, *chunk, use_reentrant=False))
    return torch.cat(losses)


@cache
def _frozen_head_loss() -> Any:
    """The autograd function below; a function returns it because torch is imported late."""
    import torch
    from torch.autograd.function import once_differentiable

    class FrozenHeadLoss(torch.autograd.Function):
        """Losses of a chunk, with the gradient of each with respect to its own hidden state.

        A loss depends on the hidden state of its own token only. So the gradient of the sum of the
        losses contains the gradient of each, and the backward pass multiplies it by a factor per
        token.
        """

        @staticmethod
        def forward(
            ctx: Any,
            states: torch.Tensor,
            targets: torch.Tensor,
            chunk_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        ) -> torch.Tensor:
            states = states.detach().requires_grad_()
            with torch.enable_grad():
                losses = chunk_losses(states, targets)
                (gradient,) = torch.autograd.grad(losses.sum(), states)
            ctx.save_for_backward(gradient)
            return losses.detach()

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            (gradient,) = ctx.saved_tensors
            # multiplied in fp32: in half precision the factor would be rounded
            product = loss_gradient[:, None] * gradient.float()
            return product.to(gradient.dtype), None, None

    return FrozenHeadLoss
