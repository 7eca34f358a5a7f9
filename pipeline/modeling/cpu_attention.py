"""Attention on a CPU: document by document, instead of one mask for the whole window.

Under a mask, the kernel computes every pair of positions of a window and discards most of them:
those across documents, and those with a later token. Document by document, only the lower triangle
is computed. On a GPU, many small calls cost more than one large block, so GPUs use the mask.

With one thread, the triangle is computed in blocks of rows, with plain matrix products. torch's own
CPU kernel takes twice as long in bf16 (425 tokens, forward twice and backward once, as under
gradient checkpointing: 27 ms against 13 ms), and as long in fp32. The cost is memory: the attention
weights of a layer exist, for the blocks on and below the diagonal; under checkpointing for one
layer at a time. With several threads torch's kernel is used, because it synchronizes them only
once. With the plain products they wait for each other at every product, which took four times as
long when other processes used the cores too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "cpu_by_document"
BLOCK_ROWS = 128
UNSUPPORTED = {"softcap": "caps its attention scores", "s_aux": "uses attention sinks"}
"""Arguments of transformers' attention functions that are not computed here."""


def register() -> None:
    """Register this implementation with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in each layer.

    Args:
        module: The layer's attention module.
        query: (windows, heads, tokens, head width); `key` and `value` may have fewer heads.
        key: See `query`.
        value: See `query`.
        attention_mask: In training the mask of `PackedBatch.masked_inputs`; None means
            causal. Any other mask is passed to torch's SDPA.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; by default 1 / sqrt(head width).
        kwargs: Passed to torch's SDPA.

    Returns:
        (windows, tokens, heads, head width), and None for the attention weights.

    Raises:
        UserError: The model's attention computes more than this.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for argument, feature in UNSUPPORTED.items():
        if kwargs.get(argument) is not None:
            raise UserError(
                f"this model {feature}, which is not supported on a CPU", "Use another MODEL"
            )
    mask, tokens = attention_mask, query.shape[2]
    causal = mask is None and tokens == key.shape[2] > 1
    packed = mask is not None and module.training and mask.is_floating_point()
    if not (causal or packed):
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (key, value))
    scale = scaling or query.shape[-1] ** -0.5
    if mask is None:
        output = causal_attention(query, key, value, scale, dropout)
        return output.transpose(1, 2).contiguous(), None
    rows = []
    for row, ends in enumerate(document_ends(mask)):
        documents = []
        for start, end in pairwise([0, *ends]):
            q, k, v = (t[row : row + 1, :, start:end] for t in (query, key, value))
            documents.append(causal_attention(q, k, v, scale, dropout))
        rows.append(torch.cat(documents, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """`softmax(query · keyᵀ · scale) · value`, over each token and those before it.

    Args:
        query: (windows, heads, tokens, head width), like `key`.
        key: See `query`.
        value: The same, but its heads may have another width, as the result has.
        scale: Factor of the scores.
        dropout: Dropout probability of the attention weights.
    """
    import torch

    if torch.get_num_threads() > 1:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scale, is_causal=True
        )
    windows, heads, tokens, _ = query.shape
    query, key, value = (t.reshape(windows * heads, tokens, -1) for t in (query, key, value))
    key = (key * scale).transpose(1, 2)
    size = min(BLOCK_ROWS, tokens)
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    blocks = []
    for start in range(0, tokens, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, tokens)
        scores = torch.bmm(query[:, start:end], key[:, :, :end])
        scores[:, :, start:].masked_fill_(later[: end - start, : end - start], float("-inf"))
        weights = torch.dropout(scores.softmax(-1), dropout, train=dropout > 0)
        blocks.append(torch.bmm(weights, value[:, :end]))
    return torch.cat(blocks, dim=1).view(windows, heads, tokens, -1)


def document_ends(mask: torch.Tensor) -> list[list[int]]:
    """Where the documents of each window end, read from a block-diagonal causal mask.

    Args:
        mask: Additive, (windows, 1, tokens, tokens). A token that does not see the one before it
            starts a document.
    """
    tokens = mask.shape[-1]
    starts = mask[:, 0].diagonal(-1, dim1=1, dim2=2) < 0
    return [[*(row.nonzero().flatten() + 1).tolist(), tokens] for row in starts]
