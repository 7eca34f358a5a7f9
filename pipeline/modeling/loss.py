"""Cross-entropy in chunks and in fp32: the logits of a whole batch never exist at once.

Under a frozen head the gradient of the hidden states is made with the loss, chunk by chunk, and
kept in place of the logits: (tokens, width) and not (tokens, vocabulary). So nothing is computed
twice, as it would be if the backward pass made the logits again; that is left for a head that
learns. torch's own `linear_cross_entropy` rounds the loss to bf16 when its inputs are bf16 (5 % in
perplexity), so it cannot be used for what is reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.dataset.packing import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

CHUNK = 512


def token_losses(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target.

    Args:
        hidden: Last hidden states, (tokens, width).
        head: The output head.
        targets: Token ids, (tokens,); `IGNORE_INDEX` where nothing is predicted.

    Returns:
        Nats, fp32, (tokens,); 0 where ignored. Differentiable (once) in `hidden` and the head.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = head(states).float()
        return torch.nn.functional.cross_entropy(
            logits, wanted, ignore_index=IGNORE_INDEX, reduction="none"
        )

    learns = torch.is_grad_enabled()
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    parts = []
    for start in range(0, len(targets), CHUNK):
        states, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
        if not learns:
            parts.append(chunk(states, wanted))
        elif frozen:
            parts.append(_differentiated(chunk, states, wanted))
        else:
            parts.append(checkpoint(chunk, states, wanted, use_reentrant=False))
    return torch.cat(parts)


def _differentiated(chunk: Any, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """A chunk's losses, with the gradient of each in its own states made at once.

    A loss depends on its own token's states only, so the gradient of their sum holds all of them,
    and what comes back in the backward pass is but a factor for each token.
    """
    import torch

    own = states.detach().requires_grad_()
    losses = chunk(own, wanted)
    (slopes,) = torch.autograd.grad(losses.sum(), own)
    # nothing is added but a gradient; in fp32, for the factor would be rounded with the states
    return losses.detach() + ((states - own.detach()).float() * slopes.float()).sum(dim=1)
