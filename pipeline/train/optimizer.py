"""Optimizers: AdamW in 32 bit, or with 8-bit state; decay on matrices only."""

from __future__ import annotations

from typing import Any, Literal

Kind = Literal["adamw", "adamw8bit", "paged_adamw8bit"]


def make_optimizer(
    model: Any, kind: Kind, betas: tuple[float, float], eps: float, weight_decay: float
) -> Any:
    """An optimizer over the weights that learn; its learning rate is set at every step.

    Norms, biases and embeddings do not decay. With 8-bit state, embeddings keep theirs in 32 bit:
    it is unstable otherwise.
    """
    import torch

    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    apart = {id(m.weight) for m in embeddings}
    learning = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in learning if p.ndim >= 2 and id(p) not in apart]
    rest = [p for p in learning if p.ndim < 2 or id(p) in apart]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, weight_decay), (rest, 0.0))
        if params
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps)
    import bitsandbytes as bnb

    for module in embeddings:
        bnb.optim.GlobalOptimManager.get_instance().register_module_override(
            module, "weight", {"optim_bits": 32}
        )
    make = bnb.optim.PagedAdamW8bit if kind == "paged_adamw8bit" else bnb.optim.AdamW8bit
    return make(groups, lr=0.0, betas=betas, eps=eps)
