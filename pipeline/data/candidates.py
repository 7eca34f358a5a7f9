"""Which training documents may be nearly the same as a text, of the many that share something.

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

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.corpus import Corpus
from pipeline.data.ngrams import Hits, N, Needles, Places, rolling
from pipeline.data.similarity import SHINGLE

MOST = 8
"""Training documents a text is compared with: of those that share enough, the most alike."""
_SAMPLED = np.uint64(62)
"""Shingles whose hash has none but zeros above so many bits, a quarter, tell how alike two are."""
_AT_ONCE = 1 << 21
"""Pairs of a training document and a text that are looked at in one go."""

Hashes = npt.NDArray[np.uint64]


def needed(one: Any, other: Any) -> Any:
    """How many 13-grams documents of so many tokens share if they are near-duplicates.

    At least; see the top of this module. Numbers or arrays; may be 0 or less.
    """
    return -((224 - one - other) // 27)


class Candidates:
    """The few training documents that are most like each text, kept as hits come in.

    Counting is a product of two sparse matrices: which n-grams a document holds, and which texts
    do. N-grams of the same texts are one row, so that a footer costs a document that has it one row
    and not one for each of its n-grams.

    Args:
        needles: The 13-grams of the texts.
        train: Where they are looked for.
    """

    def __init__(self, needles: Needles, train: Corpus) -> None:
        self._needles, self._train = needles, train
        self._lengths = np.diff(needles.offsets)
        self._shortest = min((n for n in self._lengths.tolist() if n >= N), default=0)
        self._found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))]
        self._held = 0

    @cached_property
    def _holders(self) -> tuple[Places, Any]:
        return holders(self._needles.grams, self._needles.owners(), len(self._lengths))

    @cached_property
    def _shingles(self) -> tuple[Hashes, Places, Any, Places]:
        """Sampled shingles of the texts, their rows, which texts hold those, and how many each."""
        hashes, owner = sampled(self._needles.ids, self._needles.offsets)
        distinct, gram = np.unique(hashes, return_inverse=True)
        rows, texts = holders(gram, owner, len(self._lengths))
        return distinct, rows, texts, _counts(gram, owner, len(self._lengths))

    def add(self, hits: Hits) -> None:
        """Look at what the documents of these hits share with each text."""
        from scipy.sparse import csr_array

        documents, row = np.unique(hits.documents, return_inverse=True)
        enough = np.bincount(row) >= needed(self._sizes(documents), self._shortest)
        documents, keep = documents[enough], enough[row]
        if not len(documents):
            return
        rows, texts = self._holders
        where = (np.cumsum(enough) - 1)[row[keep]], rows[hits.grams[keep]]
        ones = np.ones(len(where[0]), np.int32)
        held = csr_array((ones, where), shape=(len(documents), texts.shape[0]))
        step = max(1, _AT_ONCE // len(self._lengths))
        for begin in range(0, len(documents), step):
            some = slice(begin, begin + step)
            self._keep(documents[some], (held[some] @ texts).toarray())

    def _sizes(self, documents: Places) -> Places:
        return self._train.offsets[documents + 1] - self._train.offsets[documents]

    def _keep(self, documents: Places, shared: npt.NDArray[np.int32]) -> None:
        """Take what shares enough 13-grams, (documents, texts)."""
        least = needed(self._sizes(documents)[:, None], self._lengths)
        row, text = np.nonzero(shared >= np.maximum(1, least))
        if not len(row):
            return
        alike = self._alike(documents, row, text)
        self._found.append((text, documents[row], alike))
        self._held += len(row)
        if self._held > 4 * MOST * len(self._lengths):
            self.best()

    def _alike(self, documents: Places, row: Places, text: Places) -> npt.NDArray[np.float64]:
        """How alike the pairs are: the Jaccard similarity of their sampled shingles."""
        from scipy.sparse import csr_array

        distinct, rows, texts, of_text = self._shingles
        used, row = np.unique(row, return_inverse=True)
        spans = [slice(*self._train.offsets[d : d + 2]) for d in documents[used].tolist()]
        ids = np.concatenate([self._train.ids[span] for span in spans])
        offsets = np.cumsum([0, *self._sizes(documents[used])])
        hashes, owner = sampled(ids, offsets)
        hashes, gram = np.unique(hashes, return_inverse=True)
        of_document = _counts(gram, owner, len(used))
        pairs = np.unique(gram * len(used) + owner)
        gram, owner = np.divmod(pairs, len(used))
        place = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
        known = (distinct[place] == hashes)[gram] if len(distinct) else np.zeros(len(gram), bool)
        where = owner[known], rows[place[gram[known]]]
        ones = np.ones(len(where[0]), np.int32)
        held = csr_array((ones, where), shape=(len(used), texts.shape[0]))
        shared = (held @ texts).toarray()[row, text]
        return shared / np.maximum(1, of_document[row] + of_text[text] - shared)

    def best(self) -> tuple[Places, Places]:
        """Texts, and a document to compare each with: a pair a row, in order of document."""
        text, document, alike = map(np.concatenate, zip(*self._found, strict=True))
        order = np.lexsort((document, -alike, text))
        text, document, alike = text[order], document[order], alike[order]
        keep = np.arange(len(text)) - np.searchsorted(text, text) < MOST
        self._found = [(text[keep], document[keep], alike[keep])]
        self._held = 0
        order = np.lexsort((text[keep], document[keep]))
        return text[keep][order], document[keep][order]


def sampled(ids: npt.NDArray[Any], offsets: Places) -> tuple[Hashes, Places]:
    """The sampled shingles of documents, and the document of each, in order."""
    hashes = rolling(ids, SHINGLE)
    places = np.flatnonzero(hashes >> _SAMPLED == 0)
    owner = np.searchsorted(offsets, places, side="right") - 1
    within = places + SHINGLE <= offsets[owner + 1]
    return hashes[places[within]], owner[within]


def _counts(gram: Places, owner: Places, owners: int) -> Places:
    """How many different n-grams each owner has."""
    return np.bincount(np.unique(gram * owners + owner) % owners, minlength=owners)


def holders(grams: Places, owners: Places, texts: int) -> tuple[Places, Any]:
    """Which texts hold each n-gram.

    Args:
        grams: Which n-gram, by occurrence; each number from 0 on occurs.
        owners: In which text that is.
        texts: How many there are.

    Returns:
        The row of each n-gram, int64; and a matrix of these rows, 1 where a text holds the n-grams
        of the row, a sparse (rows, texts) of int32.
    """
    from scipy.sparse import csr_array

    gram, text = np.divmod(np.unique(grams * texts + owners), texts)
    begins = np.flatnonzero(np.diff(gram, prepend=-1))
    sizes = np.diff(begins, append=len(gram))
    # the sum of a number for each text stands for the set of them
    numbers = np.random.default_rng(0).integers(1 << 63, size=texts, dtype=np.uint64)
    sums = np.add.reduceat(numbers[text], begins) if len(begins) else np.empty(0, np.uint64)
    _, firsts, row = np.unique(sums, return_index=True, return_inverse=True)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[firsts])])
    index = text[np.repeat(begins[firsts] - ends[:-1], sizes[firsts]) + np.arange(ends[-1])]
    ones = np.ones(len(index), np.int32)
    return row, csr_array((ones, index, ends), shape=(len(firsts), texts))
