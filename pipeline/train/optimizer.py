"""Optimizers: AdamW with 32-bit or 8-bit state; weight decay on matrices only."""

from __future__ import annotations

from typing import Any, Literal

OptimizerName = Literal["adamw", "adamw8bit", "paged_adamw8bit"]


def make_optimizer(
    model: Any,
    name: OptimizerName,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Any:
    """An optimizer over the trainable weights.

    Norms, biases and embeddings do not decay. Embeddings keep 32-bit state even if the rest has
    8-bit state, which is unstable for them. `lr=0.0` is a placeholder: `pipeline.train.step_runner`
    sets the learning rate before every step.
    """
    import torch

    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    embedding_ids = {id(m.weight) for m in embeddings}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embedding_ids]
    not_decayed = [p for p in trainable if p.ndim < 2 or id(p) in embedding_ids]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, weight_decay), (not_decayed, 0.0))
        if params
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps)
    import bitsandbytes as bnb

    for module in embeddings:
        bnb.optim.GlobalOptimManager.get_instance().register_module_override(
            module, "weight", {"optim_bits": 32}
        )
    optimizer = bnb.optim.PagedAdamW8bit if name == "paged_adamw8bit" else bnb.optim.AdamW8bit
    return optimizer(groups, lr=0.0, betas=betas, eps=eps)
