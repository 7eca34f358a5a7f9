"""How much of held-out texts stands in the training documents, and which of those is nearly one.

Two questions, one pass over the training documents. *Covered* is a token that lies in some 13-gram
which a training document holds, too. *Near-duplicates* are two documents of about the same 5-grams:
the Jaccard similarity of the two sets is 0.5 or more.

Only documents that share enough 13-grams are compared. How many is enough: let documents of N and M
tokens be equal but for edits, in k runs of R tokens in all, and no 5-gram come twice. They share
R - 4k 5-grams, at least R - 12k 13-grams, and between two runs stands a token of at least one of
them: 2R ≤ N + M - (k - 1). A similarity of 0.5 says 3 (R - 4k) ≥ N + M - 8. So they share at least
k - 9 13-grams by the former and (N + M - 8)/3 - 8k by the latter; (N + M - 224)/27, whatever k is.
From 113 tokens a document on that is positive, and no near-duplicate is lost, wherever its edits
are; nor need anything be compared that shares less, such as a footer that half a corpus has. What
may be lost: a shorter document of which no 13 tokens in a row are left, and one in which the same
sentences, each under 13 tokens, stand in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.corpus import Corpus
from pipeline.data.ngrams import BLOCK, Check, Hits, N, Needles, Places, Progress, Tokens, nothing
from pipeline.data.similarity import compare

THRESHOLD = 0.5
"""Jaccard similarity of 5-grams from which on two documents count as nearly one."""
MOST = 8
"""Training documents a text is compared with: those that share most 13-grams for their length."""
_AT_ONCE = 1 << 22
"""Pairs of a training document and a text that are counted in one go."""


@dataclass(frozen=True)
class Overlap:
    """What was found, an element a text.

    `covered`: tokens that lie in an n-gram of a training document. `near`: whether one is nearly
    the same. `jaccard`: the highest similarity to one, 0 where none was compared. `nearest`: which
    one has it, -1 for none. `short`: whether it has no n-gram, so that nothing can be said.
    """

    covered: npt.NDArray[np.int64]
    near: npt.NDArray[np.bool_]
    jaccard: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.int64]
    short: npt.NDArray[np.bool_]


def find_overlap(
    texts: Sequence[Tokens],
    train: Corpus,
    *,
    check: Check = nothing,
    progress: Progress = nothing,
    block: int = BLOCK,
) -> Overlap:
    """Compare texts with all documents of a corpus.

    Memory is that of the texts, whatever the corpus: some 60 bytes a token of theirs.

    Args:
        texts: Tokens of each.
        train: What may hold them.
        check: Called between blocks; it may raise.
        progress: Called with tokens of `train` done and in all.
        block: Tokens looked at in one go; decides nothing but speed and memory.
    """
    needles = Needles(texts)
    seen = np.zeros(needles.distinct, bool)
    candidates = _Candidates(needles, train)
    for hits in needles.scan(train, check=check, progress=progress, block=block):
        seen[hits.grams] = True
        candidates.add(hits)
    text, document = candidates.best()
    jaccard, nearest = compare(texts, train, text, document, check)
    return Overlap(
        covered=_covered(needles, seen),
        near=jaccard >= THRESHOLD,
        jaccard=jaccard,
        nearest=nearest,
        short=np.diff(needles.offsets) < needles.n,
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


def needed(one: Any, other: Any) -> Any:
    """How many 13-grams documents of so many tokens share if they are near-duplicates.

    At least; see the top of this module. Numbers or arrays; may be 0 or less.
    """
    return -((224 - one - other) // 27)


class _Candidates:
    """The few training documents that share most with each text, kept as hits come in.

    Counting is a product of two sparse matrices: how often a document holds an n-gram, and which
    texts do. N-grams of the same texts are one row, so that a footer costs a document that has it
    one row and not one for each of its n-grams.
    """

    def __init__(self, needles: Needles, train: Corpus) -> None:
        self._needles, self._train = needles, train
        self._lengths = np.diff(needles.offsets)
        self._shortest = min((n for n in self._lengths.tolist() if n >= N), default=0)
        self._found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))]
        self._held = 0

    @cached_property
    def _holders(self) -> tuple[Places, Any]:
        return holders(self._needles)

    def add(self, hits: Hits) -> None:
        """Count what the documents of these hits share with each text."""
        from scipy.sparse import csr_array

        documents, row = np.unique(hits.documents, return_inverse=True)
        enough = np.bincount(row) >= needed(self._sizes(documents), self._shortest)
        documents, keep = documents[enough], enough[row]
        if not len(documents):
            return
        rows, texts = self._holders
        where = (np.cumsum(enough) - 1)[row[keep]], rows[hits.grams[keep]]
        shape = len(documents), texts.shape[0]
        held = csr_array((np.ones(len(where[0]), np.int32), where), shape=shape)
        # documents are taken together as long as few pairs come out
        pairs = np.add.reduceat(np.diff(texts.indptr)[held.indices], held.indptr[:-1])
        cuts = np.flatnonzero(np.diff(np.cumsum(pairs, dtype=np.int64) // _AT_ONCE)) + 1
        for begin, end in pairwise([0, *cuts.tolist(), len(documents)]):
            shared = (held[begin:end] @ texts).tocoo()
            self._keep(shared.col.astype(np.int64), documents[begin:end][shared.row], shared.data)

    def _sizes(self, documents: Places) -> Places:
        return self._train.offsets[documents + 1] - self._train.offsets[documents]

    def _keep(self, text: Places, document: Places, shared: npt.NDArray[np.int32]) -> None:
        sizes = self._lengths[text], self._sizes(document)
        # of a document that repeats itself more may stand in the text than the text has
        most = np.minimum(shared, sizes[0] - N + 1)
        score = most / (sizes[0] + sizes[1] - 2 * (N - 1) - most)
        fits = shared >= needed(*sizes)
        self._found.append((text[fits], document[fits], score[fits]))
        self._held += int(fits.sum())
        if self._held > 4 * MOST * len(self._lengths):
            self.best()

    def best(self) -> tuple[Places, Places]:
        """Texts, and a document to compare each with: a pair a row, in order of document."""
        text, document, score = (
            np.concatenate(column) for column in zip(*self._found, strict=True)
        )
        order = np.lexsort((document, -score, text))
        text, document, score = text[order], document[order], score[order]
        keep = np.arange(len(text)) - np.searchsorted(text, text) < MOST
        self._found = [(text[keep], document[keep], score[keep])]
        self._held = 0
        order = np.lexsort((text[keep], document[keep]))
        return text[keep][order], document[keep][order]


def holders(needles: Needles) -> tuple[Places, Any]:
    """Which texts hold each n-gram.

    Returns:
        The row of each distinct n-gram, int64; and a matrix of these rows, 1 where a text holds its
        n-grams, a sparse (rows, texts) of int32.
    """
    from scipy.sparse import csr_array

    texts = len(needles.offsets) - 1
    pairs = np.unique(needles.grams * texts + needles.owners())
    gram, text = np.divmod(pairs, texts)
    begins = np.flatnonzero(np.diff(gram, prepend=-1))
    sizes = np.diff(begins, append=len(pairs))
    # the sum of a number for each text stands for the set of them
    numbers = np.random.default_rng(0).integers(1 << 63, size=texts, dtype=np.uint64)
    sums = np.add.reduceat(numbers[text], begins)
    _, firsts, row = np.unique(sums, return_index=True, return_inverse=True)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[firsts])])
    index = text[np.repeat(begins[firsts] - ends[:-1], sizes[firsts]) + np.arange(ends[-1])]
    ones = np.ones(len(index), np.int32)
    return row, csr_array((ones, index, ends), shape=(len(firsts), texts))
