"""Which training documents may be nearly the same as a text, of the many that share something.

Only documents that share enough 13-grams are compared. How many is enough: let documents of N and M
tokens be equal but for edits, in k runs of R tokens in all, and no 5-gram come twice. They share
R - 4k 5-grams, at least R - 12k 13-grams, and between two runs stands a token of at least one of
them: 2R ≤ N + M - (k - 1). A similarity of 0.5 says 3 (R - 4k) ≥ N + M - 8. So they share at least
k - 9 13-grams by the former and (N + M - 8)/3 - 8k by the latter; (N + M - 224)/27, whatever k is.
From 113 tokens a document on that is positive, and no near-duplicate is lost, wherever its edits
are; nor need anything be compared that shares less, such as a footer that half a corpus has. What
may be lost: a shorter document of which no 13 tokens in a row are left; one whose pieces, of some
13 tokens or fewer, stand in another order; and one that is like another by phrases both repeat.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.ngrams import Hits, N, Needles, Places, distinct, rolling
from pipeline.evaluate.contamination.similarity import SHINGLE

MOST = 8
"""Training documents a text is compared with: of those that share enough, the most alike."""
_SAMPLED = np.uint64(62)
"""Shingles whose hash has none but zeros above so many bits, a quarter, tell how alike two are."""
_AT_ONCE = 1 << 19
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

    def __init__(self, needles: Needles, train: TokenizedSplit) -> None:
        self._needles, self._train = needles, train
        self._lengths = np.diff(needles.offsets).astype(np.int32)
        self._shortest = min((n for n in self._lengths.tolist() if n >= N), default=0)
        self._found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        self._held = 0
        self._least = np.full(len(self._lengths), -1, np.float32)  # what the last of MOST has

    @cached_property
    def _holders(self) -> tuple[Places, Any]:
        return holders(self._needles.grams, self._needles.owners(), len(self._lengths))

    @cached_property
    def _shingles(self) -> tuple[Hashes, Places, Any, npt.NDArray[np.float32]]:
        """Sampled shingles of the texts, their rows, which texts hold those, and how many each."""
        hashes, owner = sampled(self._needles.ids, self._needles.offsets)
        known, gram = np.unique(hashes, return_inverse=True)
        rows, texts = holders(gram, owner, len(self._lengths))
        counts = _counts(gram, owner, len(self._lengths))
        return known, rows, texts, counts.astype(np.float32)

    def add(self, hits: Hits) -> None:
        """Look at what the documents of these hits share with each text."""
        documents, row = np.unique(hits.documents, return_inverse=True)
        enough = np.bincount(row) >= needed(self._sizes(documents), self._shortest)
        documents, keep = documents[enough], enough[row]
        if not len(documents):
            return
        rows, texts = self._holders
        row = (np.cumsum(enough) - 1)[row[keep]]
        held = _incidence(row, rows[hits.grams[keep]], len(documents), texts)
        step = max(1, _AT_ONCE // len(self._lengths))
        for begin in range(0, len(documents), step):
            some = slice(begin, begin + step)
            self._keep(documents[some], (held[some] @ texts).toarray())

    def _sizes(self, documents: Places) -> Places:
        return self._train.offsets[documents + 1] - self._train.offsets[documents]

    def _keep(self, documents: Places, shared: npt.NDArray[np.int32]) -> None:
        """Take what shares enough 13-grams, (documents, texts), and is more alike than others."""
        # `needed`, without a division for each pair
        fits = 27 * shared - self._lengths >= (self._sizes(documents) - 224)[:, None]
        fits &= shared > 0
        some = fits.any(axis=1)
        if not some.any():
            return
        documents = documents[some]
        alike = self._alike(documents)
        # of equals the first are kept, and they have come before
        row, text = np.nonzero(fits[some] & (alike > self._least))
        self._found.append((text, documents[row], alike[row, text]))
        self._held += len(row)
        if self._held > 2 * MOST * len(self._lengths):
            self.best()

    def _alike(self, documents: Places) -> npt.NDArray[np.float32]:
        """The Jaccard similarity of the sampled shingles, (documents, texts)."""
        known, rows, texts, of_text = self._shingles
        count = len(documents)
        spans = [slice(*self._train.offsets[d : d + 2]) for d in documents.tolist()]
        ids = np.concatenate([self._train.ids[span] for span in spans])
        hashes, owner = sampled(ids, np.cumsum([0, *self._sizes(documents)]))
        hashes, gram = np.unique(hashes, return_inverse=True)
        gram, owner = np.divmod(distinct(gram * count + owner), count)
        of_document = np.bincount(owner, minlength=count).astype(np.float32)
        place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        there = (known[place] == hashes)[gram] if len(known) else np.zeros(len(gram), bool)
        shared = _incidence(owner[there], rows[place[gram[there]]], count, texts) @ texts
        shared = shared.toarray().astype(np.float32)
        return shared / np.maximum(1, of_document[:, None] + of_text - shared)

    def best(self) -> tuple[Places, Places]:
        """Texts, and a document to compare each with: a pair a row, in order of document."""
        text, document, alike = map(np.concatenate, zip(*self._found, strict=True))
        order = np.lexsort((document, -alike, text))
        text, document, alike = text[order], document[order], alike[order]
        rank = np.arange(len(text)) - np.searchsorted(text, text)
        last, keep = rank == MOST - 1, rank < MOST
        self._least[text[last]] = alike[last]
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


def _incidence(row: Places, column: Places, rows: int, texts: Any) -> Any:
    """How often each pair comes, a sparse (rows, rows of `texts`) of int32."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(row), np.int32), (row, column)), shape=(rows, texts.shape[0]))


def _counts(gram: Places, owner: Places, owners: int) -> Places:
    """How many different n-grams each owner has."""
    return np.bincount(distinct(gram * owners + owner) % owners, minlength=owners)


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

    gram, text = np.divmod(distinct(grams * texts + owners), texts)
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
