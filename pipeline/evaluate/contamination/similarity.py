"""How like documents are: the Jaccard similarity of their sets of 5-grams.

MinHash (datasketch) estimates it for every pair; for those that may be the nearest, the sets
themselves are compared, so that no document is called near or not by the chance of an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.ngrams import Check, Places, Tokens, distinct, rolling

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5
"""Tokens of a shingle."""
PERMUTATIONS = 256
"""Of a sketch: an estimate near 0.5 has a standard error of √(0.5 · 0.5 / 256) = 0.03."""
MARGIN = 0.125
"""Four of them: estimates further apart leave little doubt which similarity is higher."""
SEED = 1
_AT_ONCE = 1 << 12


def compare(
    texts: Sequence[Tokens], train: TokenizedSplit, text: Places, document: Places, check: Check
) -> tuple[npt.NDArray[np.float64], Places]:
    """The nearest of the documents that each text is to be compared with.

    Args:
        texts: Tokens of each.
        train: Holds the documents.
        text: Which text, by pair.
        document: Which document, by pair, in order.
        check: Called before each document; it may raise.

    Returns:
        By text: the highest similarity, 0 where nothing is shared; and the document that has it,
        the first of several, -1 where there is none.
    """
    jaccard = np.zeros(len(texts))
    nearest = np.full(len(texts), -1, np.int64)
    if not len(text):
        return jaccard, nearest
    close = np.flatnonzero(_may_be_nearest(texts, train, text, document, check))
    for one in np.unique(text[close]).tolist():
        check()
        mine = shingles(texts[one])
        for there in document[close[text[close] == one]].tolist():
            similarity = jaccard_of(mine, shingles(train.document(there)))
            if similarity > jaccard[one]:
                jaccard[one], nearest[one] = similarity, there
    return jaccard, nearest


def shingles(ids: Tokens) -> npt.NDArray[np.uint64]:
    """The set of a document's shingles, as hashes, in order."""
    return distinct(rolling(ids, SHINGLE))


def jaccard_of(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> float:
    """Elements that two sets share, of all that either has."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _may_be_nearest(
    texts: Sequence[Tokens], train: TokenizedSplit, text: Places, document: Places, check: Check
) -> npt.NDArray[np.bool_]:
    """Of which pairs the estimate is the highest of the text, or not far from it."""
    blank = _blank()
    sketches = {one: sketch(texts[one], blank) for one in np.unique(text).tolist()}
    estimates = np.empty(len(text))
    found, begins = np.unique(document, return_index=True)
    for there, pairs in zip(
        found.tolist(), np.split(np.arange(len(text)), begins[1:]), strict=True
    ):
        check()
        other = sketch(train.document(there), blank)
        estimates[pairs] = [sketches[one].jaccard(other) for one in text[pairs].tolist()]
    highest = np.zeros(len(texts))
    np.maximum.at(highest, text, estimates)
    return estimates >= highest[text] - MARGIN


def _blank() -> MinHash:
    """A sketch of nothing. Shingles come to it as hashes of 64 bits, so it need not hash them."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, SEED, hashfunc=int, scheme="affine64")


def sketch(ids: Tokens, blank: MinHash) -> MinHash:
    """The MinHash of a document's shingles, under the permutations of `blank`."""
    found = blank.copy()
    hashes = rolling(ids, SHINGLE)
    for begin in range(0, len(hashes), _AT_ONCE):  # it multiplies every hash by every permutation
        found.update_batch(hashes[begin : begin + _AT_ONCE].tolist())
    return found
