"""Compare held-out documents with the training documents, in one pass over the latter.

A token is *covered* if it lies in a 13-gram that occurs in a training document. Two documents are
*near-duplicates* if the Jaccard similarity of their sets of 5-grams is 0.5 or more. A text that is
quoted in a longer document is not similar to it but was seen in training all the same, so a text
also counts as *near* if 0.8 or more of its tokens are covered.

Only documents that share enough 13-grams are compared, and of those only the most similar ones;
`candidates` says what that can miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.candidates import Candidates
from pipeline.evaluate.contamination.ngrams import (
    NGRAM_TOKENS,
    SCAN_BLOCK_TOKENS,
    NgramIndex,
    ScanProgress,
    StopCheck,
    Tokens,
    do_nothing,
)
from pipeline.evaluate.contamination.similarity import SHINGLE_TOKENS, compare

NEAR_JACCARD = 0.5
"""Minimum Jaccard similarity of the 5-grams of near-duplicates."""
QUOTED_SHARE = 0.8
"""Minimum share of covered tokens of a text that counts as near because it is quoted."""

DEFINITIONS = {
    "near_duplicates": (
        f"held-out documents whose set of {SHINGLE_TOKENS}-grams of tokens has a Jaccard "
        f"similarity of {NEAR_JACCARD:g} or more to that of a training document, or of whose "
        f"tokens {100 * QUOTED_SHARE:.0f} % or more lie in {NGRAM_TOKENS}-grams that occur in "
        "training documents, e.g. because it is quoted"
    ),
    "covered_share": (
        f"share of tokens in a {NGRAM_TOKENS}-gram that occurs in a training document"
    ),
}
"""Definitions for reports."""


@dataclass(frozen=True)
class Overlap:
    """The result for each text, arrays of shape (texts,).

    `covered`: tokens that lie in an n-gram of a training document. `near`: whether it is a
    near-duplicate of a training document or quoted. `jaccard`: the highest similarity to a training
    document, 0 if none was compared. `nearest`: index of that document, -1 for none. `short`:
    whether the text is too short to have an n-gram, so that nothing is known.
    """

    covered: npt.NDArray[np.int64]
    near: npt.NDArray[np.bool_]
    jaccard: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.int64]
    short: npt.NDArray[np.bool_]


def find_overlap(
    texts: Sequence[Tokens],
    train: TokenizedSplit,
    *,
    check: StopCheck = do_nothing,
    progress: ScanProgress = do_nothing,
    block: int = SCAN_BLOCK_TOKENS,
) -> Overlap:
    """Compare texts with all documents of a corpus.

    Memory depends on the texts only: about 130 bytes per token of theirs.

    Args:
        texts: Tokens of each text.
        train: The training documents.
        check: Called between blocks; may raise.
        progress: Called with the number of tokens of `train` done and in total.
        block: Tokens per block; affects only speed and memory.
    """
    index = NgramIndex(texts)
    seen = np.zeros(index.distinct, bool)
    candidates = Candidates(index, train)
    for hits in index.scan(train, check=check, progress=progress, block=block):
        seen[hits.grams] = True
        candidates.add(hits)
    text, document = candidates.best()
    jaccard, nearest = compare(texts, train, text, document, check)
    covered, lengths = _covered(index, seen), np.diff(index.offsets)
    return Overlap(
        covered=covered,
        near=(jaccard >= NEAR_JACCARD) | ((covered > 0) & (covered >= QUOTED_SHARE * lengths)),
        jaccard=jaccard,
        nearest=nearest,
        short=lengths < index.n,
    )


def _covered(index: NgramIndex, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Tokens of each text that lie in an n-gram that was seen."""
    positions = index.positions[seen[index.grams]]
    change = np.zeros(len(index.ids) + 1, np.int64)
    change[positions] += 1  # each position occurs once
    change[positions + index.n] -= 1
    inside = np.cumsum(change[:-1]) > 0
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(inside)])
    return np.diff(sums[index.offsets])
