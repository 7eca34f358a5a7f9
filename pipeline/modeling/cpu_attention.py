"""Attention of packed windows on a CPU: document by document, in place of one mask for all.

Under a mask the kernel computes every pair of slots and throws away most of them: those of two
documents, and those of a token and a later one. Document by document only the lower triangle is
computed. On a GPU a call is dear and a block cheap, so there it stays with the mask.

In one thread the triangle is computed by rows of blocks, with plain products of matrices: torch's
own kernel for CPUs takes twice as long in bf16 (425 tokens, forward twice and backward, as under
checkpointing: 27 ms and 13 ms), and no less in fp32. The price is that the weights of a layer
exist, for the blocks on and below the diagonal: under checkpointing of one layer at a time. With
more threads it is torch's kernel, which has them meet once: where others use the cores, too, they
wait for each other at every product (seen: four times as long).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import torch

NAME = "documents"
BLOCK = 128
"""Rows that are computed at once."""
BEYOND = {"softcap": "scores that are capped", "s_aux": "sinks"}


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
        attention_mask: In training that of `Batch.mask`; none is causal; whatever else comes goes
            to torch's own.
        dropout: Of the weights.
        scaling: Of the scores.
        words: For torch's own.

    Returns:
        (windows, slots, heads, width), and no weights.

    Raises:
        UserError: The model's attention does more than that.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for word, what in BEYOND.items():
        if words.get(word) is not None:
            raise UserError(
                f"the attention of this model has {what}, which is not computed on a CPU",
                "take another MODEL",
            )
    mask, slots = attention_mask, query.shape[2]
    causal = mask is None and slots == key.shape[2] > 1
    packed = mask is not None and module.training and mask.is_floating_point()
    if not (causal or packed):
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **words
        )
    heads = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(heads, dim=1) if heads > 1 else t for t in (key, value))
    scale = scaling or query.shape[-1] ** -0.5
    if mask is None:
        return triangle(query, key, value, scale, dropout).transpose(1, 2).contiguous(), None
    rows = []
    for row, ends in enumerate(spans(mask)):
        parts = []
        for begin, end in pairwise([0, *ends]):
            q, k, v = (t[row : row + 1, :, begin:end] for t in (query, key, value))
            parts.append(triangle(q, k, v, scale, dropout))
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def triangle(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """Causal attention, as `softmax(query · key · scale) · value` over this token and those before.

    Args:
        query: (windows, heads, slots, width), as are the others.
        key: See `query`.
        value: See `query`.
        scale: Of the scores.
        dropout: Of the weights.
    """
    import torch

    if torch.get_num_threads() > 1:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scale, is_causal=True
        )
    windows, heads, slots, width = query.shape
    query, key, value = (t.reshape(windows * heads, slots, width) for t in (query, key, value))
    key = (key * scale).transpose(1, 2)
    later = torch.ones(min(BLOCK, slots), min(BLOCK, slots), dtype=torch.bool).triu(1)
    rows = []
    for begin in range(0, slots, BLOCK):
        end = min(begin + BLOCK, slots)
        scores = torch.bmm(query[:, begin:end], key[:, :, :end])
        scores[:, :, begin:].masked_fill_(later[: end - begin, : end - begin], float("-inf"))
        weights = torch.dropout(scores.softmax(-1), dropout, train=dropout > 0)
        rows.append(torch.bmm(weights, value[:, :end]))
    return torch.cat(rows, dim=1).view(windows, heads, slots, width)


def spans(mask: torch.Tensor) -> list[list[int]]:
    """Where the documents of each window end, read off a block-diagonal causal mask.

    Args:
        mask: Additive, (windows, 1, slots, slots): a slot that does not see the one before it
            begins a document.
    """
    slots = mask.shape[-1]
    blind = mask[:, 0].diagonal(-1, dim1=1, dim2=2) < 0
    return [[*(row.nonzero().flatten() + 1).tolist(), slots] for row in blind]
