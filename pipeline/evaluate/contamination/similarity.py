"""The Jaccard similarity of documents: of their sets of 5-grams (shingles).

MinHash (datasketch) estimates it for every pair. For the pairs that may be the most similar the
sets themselves are compared, so that the result does not depend on an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.ngrams import Positions, StopCheck, Tokens, distinct, rolling

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_TOKENS = 5
"""Tokens of a shingle."""
MINHASH_PERMUTATIONS = 256
"""An estimate near 0.5 has a standard error of √(0.5 · 0.5 / 256) = 0.03."""
JACCARD_MARGIN = 0.125
"""Four standard errors: estimates further apart decide which similarity is higher."""
MINHASH_SEED = 1
_BATCH_HASHES = 1 << 12


def compare(
    texts: Sequence[Tokens],
    train: TokenizedSplit,
    text: Positions,
    document: Positions,
    check: StopCheck,
) -> tuple[npt.NDArray[np.float64], Positions]:
    """Find the most similar document of each text among given pairs.

    Args:
        texts: Tokens of each text.
        train: The documents.
        text: Index of the text of each pair.
        document: Index of the document of each pair, in order.
        check: Called before each document; may raise.

    Returns:
        For each text the highest similarity, 0 if nothing is shared, and the index of the first
        document that has it, -1 if there is none.
    """
    jaccard = np.zeros(len(texts))
    nearest = np.full(len(texts), -1, np.int64)
    if not len(text):
        return jaccard, nearest
    close = np.flatnonzero(_may_be_nearest(texts, train, text, document, check))
    for one in np.unique(text[close]).tolist():
        check()
        own = shingles(texts[one])
        for other in document[close[text[close] == one]].tolist():
            similarity = jaccard_of(own, shingles(train.document(other)))
            if similarity > jaccard[one]:
                jaccard[one], nearest[one] = similarity, other
    return jaccard, nearest


def shingles(ids: Tokens) -> npt.NDArray[np.uint64]:
    """The hashes of the distinct shingles of a document, sorted."""
    return distinct(rolling(ids, SHINGLE_TOKENS))


def jaccard_of(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> float:
    """The Jaccard similarity of two sets, each sorted and without duplicates."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _may_be_nearest(
    texts: Sequence[Tokens],
    train: TokenizedSplit,
    text: Positions,
    document: Positions,
    check: StopCheck,
) -> npt.NDArray[np.bool_]:
    """Whether the estimate of each pair is within the margin of the highest one of its text."""
    empty = _empty_sketch()
    sketches = {one: sketch(texts[one], empty) for one in np.unique(text).tolist()}
    estimates = np.empty(len(text))
    documents, begins = np.unique(document, return_index=True)
    groups = np.split(np.arange(len(text)), begins[1:])
    for index, pairs in zip(documents.tolist(), groups, strict=True):
        check()
        other = sketch(train.document(index), empty)
        estimates[pairs] = [sketches[one].jaccard(other) for one in text[pairs].tolist()]
    highest = np.zeros(len(texts))
    np.maximum.at(highest, text, estimates)
    return estimates >= highest[text] - JACCARD_MARGIN


def _empty_sketch() -> MinHash:
    """An empty sketch. Shingles are 64-bit hashes already, so `hashfunc` keeps them."""
    from datasketch import MinHash

    return MinHash(MINHASH_PERMUTATIONS, MINHASH_SEED, hashfunc=int, scheme="affine64")


def sketch(ids: Tokens, empty: MinHash) -> MinHash:
    """The MinHash of a document's shingles, with the permutations of `empty`."""
    found = empty.copy()
    hashes = rolling(ids, SHINGLE_TOKENS)
    for begin in range(0, len(hashes), _BATCH_HASHES):  # bounds its hashes × permutations matrix
        found.update_batch(hashes[begin : begin + _BATCH_HASHES].tolist())
    return found
