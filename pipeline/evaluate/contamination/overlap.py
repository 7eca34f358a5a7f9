"""How much of held-out texts stands in the training documents, and which of those is nearly one.

Two questions, one pass over the training documents. *Covered* is a token that lies in some 13-gram
which a training document holds, too. *Near-duplicates* are two documents of about the same 5-grams:
the Jaccard similarity of the two sets is 0.5 or more. A text that is quoted within a longer
document is not like it, but as well known: so *near* is also one of which 0.8 or more is covered.

Documents that share too few 13-grams to be near-duplicates are not compared (see
`pipeline.evaluate.contamination.candidates`, which also says what that can miss), of the others those that are most
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.candidates import Candidates
from pipeline.evaluate.contamination.ngrams import (
    BLOCK,
    Check,
    N,
    Needles,
    Progress,
    Tokens,
    nothing,
)
from pipeline.evaluate.contamination.similarity import SHINGLE, compare

THRESHOLD = 0.5
"""Jaccard similarity of 5-grams from which on two documents count as nearly one."""
QUOTED = 0.8
"""Share of a text's tokens from which on, if so many are covered, it counts as near, too."""

DEFINITIONS = {
    "near_duplicates": (
        f"held-out documents whose set of {SHINGLE}-grams of tokens has a Jaccard similarity of "
        f"{THRESHOLD:g} or more to that of a training document, or {100 * QUOTED:.0f} % of whose "
        f"tokens lie in {N}-grams that stand in training documents, such as one that is quoted"
    ),
    "covered_share": f"tokens that lie in a {N}-gram which stands in a training document, of all",
}
"""The measures in words, as they go into reports."""


@dataclass(frozen=True)
class Overlap:
    """What was found, an element a text.

    `covered`: tokens that lie in an n-gram of a training document. `near`: whether one is nearly
    the same, or so much of it is covered. `jaccard`: the highest similarity to one, 0 where none
    was compared. `nearest`: which one has it, -1 for none. `short`: whether it has no n-gram, so
    that nothing can be said.
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
    check: Check = nothing,
    progress: Progress = nothing,
    block: int = BLOCK,
) -> Overlap:
    """Compare texts with all documents of a corpus.

    Memory is that of the texts, whatever the corpus: some 130 bytes a token of theirs.

    Args:
        texts: Tokens of each.
        train: What may hold them.
        check: Called between blocks; it may raise.
        progress: Called with tokens of `train` done and in all.
        block: Tokens looked at in one go; decides nothing but speed and memory.
    """
    needles = Needles(texts)
    seen = np.zeros(needles.distinct, bool)
    candidates = Candidates(needles, train)
    for hits in needles.scan(train, check=check, progress=progress, block=block):
        seen[hits.grams] = True
        candidates.add(hits)
    text, document = candidates.best()
    jaccard, nearest = compare(texts, train, text, document, check)
    covered, lengths = _covered(needles, seen), np.diff(needles.offsets)
    return Overlap(
        covered=covered,
        near=(jaccard >= THRESHOLD) | ((covered > 0) & (covered >= QUOTED * lengths)),
        jaccard=jaccard,
        nearest=nearest,
        short=lengths < needles.n,
    )


def _covered(needles: Needles, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Tokens of each text that lie in an n-gram that was seen."""
    places = needles.places[seen[needles.grams]]
    change = np.zeros(len(needles.ids) + 1, np.int64)
    change[places] += 1  # no place comes twice
    change[places + needles.n] -= 1
    inside = np.cumsum(change[:-1]) > 0
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(inside)])
    return np.diff(sums[needles.offsets])
