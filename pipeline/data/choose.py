"""Which held-out documents are judged by: the same for every run, whoever chooses."""

from __future__ import annotations

import numpy as np

from pipeline.data.corpus import Corpus


def by_hash(corpus: Corpus) -> list[int]:
    """The documents of a split, lowest text hash first: as good as drawn by lot."""
    high, low = corpus.hashes.view(">u8").reshape(-1, 2).T
    order: list[int] = np.lexsort((low, high)).tolist()
    return order


def choose(corpus: Corpus, most: int, tokens: int | None) -> list[int]:
    """The documents to score: at most so many, in order of hash.

    Where `tokens` are limited: those that fit in what is left, in that order; if not even one does,
    the first. Empty documents are passed over.
    """
    lengths = np.diff(corpus.offsets)
    order = [index for index in by_hash(corpus) if lengths[index]]
    if tokens is None:
        return order[:most]
    chosen: list[int] = []
    left = tokens
    for index in order:
        if len(chosen) == most:
            break
        if lengths[index] <= left:
            chosen.append(index)
            left -= lengths[index]
    return chosen or order[:1]
