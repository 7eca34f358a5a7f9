"""Which held-out documents are judged by: the same for every run, whoever chooses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import Corpus


def by_hash(corpus: Corpus, least: int = 0) -> npt.NDArray[np.int64]:
    """The documents of a split, lowest text hash first: as good as drawn by lot.

    Args:
        corpus: Of the split.
        least: Tokens that a document has at least.
    """
    high, low = corpus.hashes.view(">u8").reshape(-1, 2).T
    order = np.lexsort((low, high))
    return order[np.diff(corpus.offsets)[order] >= least]


def choose(corpus: Corpus, most: int, tokens: int | None) -> list[int]:
    """The documents to score: at most so many, in order of hash.

    Where `tokens` are limited: those that fit in what is left, in that order; if not even one does,
    the first. Empty documents are passed over.
    """
    lengths, found = np.diff(corpus.offsets), by_hash(corpus, 1)
    if tokens is None:
        few: list[int] = found[:most].tolist()
        return few
    order: list[int] = found.tolist()
    chosen: list[int] = []
    left = tokens
    for index in order:
        if len(chosen) == most:
            break
        if lengths[index] <= left:
            chosen.append(index)
            left -= lengths[index]
    return chosen or order[:1]
