"""Sampling of held-out documents: a fixed subset of a split, the same in every run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit


def hash_order(documents: TokenizedSplit, min_tokens: int = 0) -> npt.NDArray[np.int64]:
    """Indices of the documents of a split in the order of their text hash, which is random.

    Args:
        documents: The split.
        min_tokens: Shorter documents are left out.
    """
    high, low = documents.hashes.view(">u8").reshape(-1, 2).T
    order = np.lexsort((low, high))
    return order[np.diff(documents.offsets)[order] >= min_tokens]


def sample_documents(
    documents: TokenizedSplit, max_documents: int, max_tokens: int | None
) -> list[int]:
    """Sample documents to score: the first ones in hash order. Empty documents are left out.

    With `max_tokens`, a document that does not fit into what is left of it is skipped. If none
    fits, the first document is taken.
    """
    lengths, order = np.diff(documents.offsets), hash_order(documents, 1)
    indices: list[int] = (order[:max_documents] if max_tokens is None else order).tolist()
    if max_tokens is None:
        return indices
    sample: list[int] = []
    left = max_tokens
    for index in indices:
        if len(sample) == max_documents:
            break
        if lengths[index] <= left:
            sample.append(index)
            left -= lengths[index]
    return sample or indices[:1]
