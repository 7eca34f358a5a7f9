"""Attention of packed windows on a CPU: document by document, in place of one mask for all.

Under a mask the kernel computes every pair of slots and throws away most of them: those of two
documents, and those of a token and a later one. A call per document computes its lower triangle
only. On a GPU a call is dear and a block cheap, so there it stays with the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "documents"


def register() -> str:
    """Make it known to transformers; returns its name there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **words: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer; the form is that of its attention functions.

    Args:
        module: The layer's attention.
        query: (windows, heads, slots, width); `key` and `value` may have fewer heads.
        key: See `query`.
        value: See `query`.
        attention_mask: In training that of `Batch.mask`; whatever else comes goes to torch's own.
        dropout: Of the weights.
        scaling: Of the scores.
        words: For torch's own.

    Returns:
        (windows, slots, heads, width), and no weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask = attention_mask
    if mask is None or not module.training or not mask.is_floating_point():
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **words
        )
    heads = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(heads, dim=1) if heads > 1 else t for t in (key, value))
    rows = []
    for row, ends in enumerate(spans(mask)):
        begins = [0, *ends[:-1]]
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                query[row : row + 1, :, begin:end],
                key[row : row + 1, :, begin:end],
                value[row : row + 1, :, begin:end],
                dropout_p=dropout,
                scale=scaling,
                is_causal=True,
            )
            for begin, end in zip(begins, ends, strict=True)
        ]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def spans(mask: torch.Tensor) -> list[list[int]]:
    """Where the documents of each window end, read off a block-diagonal causal mask.

    Args:
        mask: Additive, (windows, 1, slots, slots): a slot that does not see the one before it
            begins a document.
    """
    slots = mask.shape[-1]
    blind = mask[:, 0].diagonal(-1, dim1=1, dim2=2) < 0
    return [[*(row.nonzero().flatten() + 1).tolist(), slots] for row in blind]
