"""Which training documents may be near-duplicates of a text.

Only documents that share enough 13-grams are compared. The bound: let documents of N and M tokens
be equal except for edits, i.e. in k matching segments of R tokens in total, and let no 5-gram occur
twice. They share R - 4k 5-grams and at least R - 12k 13-grams. Between two segments at least one of
the documents has a token, so 2R ≤ N + M - (k - 1). A similarity of 0.5 means 3 (R - 4k) ≥ N + M -
8. Hence they share at least k - 9 13-grams by the former and (N + M - 8)/3 - 8k by the latter, so
at least (N + M - 224)/27 for any k. From 113 tokens per document on this is positive: no
near-duplicate is missed, wherever its edits are, and documents that share less, such as a footer
that half the corpus has, need no comparison. What may be missed: a shorter document without 13
unedited tokens in a row; one whose pieces, of about 13 tokens or fewer, are in another order; and
one that is similar because both repeat the same phrases.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.ngrams import (
    NGRAM_TOKENS,
    Hits,
    NgramIndex,
    Positions,
    distinct,
    rolling,
)
from pipeline.evaluate.contamination.similarity import SHINGLE_TOKENS

MAX_CANDIDATES = 8
"""Training documents that a text is compared with: the most similar of those that share enough."""
_SAMPLED_SHIFT_BITS = np.uint64(62)
"""Shingles whose hash is 0 above this many bits are sampled: one in four."""
_MAX_PAIRS = 1 << 19
"""Pairs of a document and a text per matrix product; bounds memory."""

Hashes = npt.NDArray[np.uint64]


def min_shared_ngrams(one: Any, other: Any) -> Any:
    """The minimum number of 13-grams that near-duplicates of these lengths (tokens) share.

    See the top of this module. Takes numbers or arrays; the result may be 0 or less.
    """
    return -((224 - one - other) // 27)


class Candidates:
    """The training documents that are most similar to each text, updated as hits come in.

    Shared n-grams are counted by a product of two sparse matrices: the n-grams of each document,
    and the texts of each n-gram. N-grams with the same texts share a row, so a footer adds one row
    to a document, not one per n-gram.

    Args:
        index: The 13-grams of the texts.
        train: The training documents.
    """

    def __init__(self, index: NgramIndex, train: TokenizedSplit) -> None:
        self._index, self._train = index, train
        self._lengths = np.diff(index.offsets).astype(np.int32)
        self._shortest = min((n for n in self._lengths.tolist() if n >= NGRAM_TOKENS), default=0)
        self._found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        self._num_found = 0
        # the similarity that a new candidate of each text must exceed
        self._thresholds = np.full(len(self._lengths), -1, np.float32)

    @cached_property
    def _texts_of_ngrams(self) -> tuple[Positions, Any]:
        return texts_of_ngrams(self._index.grams, self._index.owners(), len(self._lengths))

    @cached_property
    def _shingles(self) -> tuple[Hashes, Positions, Any, npt.NDArray[np.float32]]:
        """Sampled shingles of the texts, their rows, the texts of each row, and counts per text."""
        hashes, owner = sampled(self._index.ids, self._index.offsets)
        known, gram = np.unique(hashes, return_inverse=True)
        rows, texts = texts_of_ngrams(gram, owner, len(self._lengths))
        counts = _counts(gram, owner, len(self._lengths))
        return known, rows, texts, counts.astype(np.float32)

    def add(self, hits: Hits) -> None:
        """Take hits of whole documents."""
        documents, row = np.unique(hits.documents, return_inverse=True)
        enough = np.bincount(row) >= min_shared_ngrams(self._sizes(documents), self._shortest)
        documents, keep = documents[enough], enough[row]
        if not len(documents):
            return
        rows, texts = self._texts_of_ngrams
        row = (np.cumsum(enough) - 1)[row[keep]]
        held = _incidence(row, rows[hits.grams[keep]], len(documents), texts)
        step = max(1, _MAX_PAIRS // len(self._lengths))
        for begin in range(0, len(documents), step):
            chosen = slice(begin, begin + step)
            self._keep(documents[chosen], (held[chosen] @ texts).toarray())

    def _sizes(self, documents: Positions) -> Positions:
        return self._train.offsets[documents + 1] - self._train.offsets[documents]

    def _keep(self, documents: Positions, shared: npt.NDArray[np.int32]) -> None:
        """Keep pairs that share enough 13-grams and beat those kept before.

        `shared`: 13-grams in common, (documents, texts).
        """
        # as `min_shared_ngrams`, without a division per pair
        fits = 27 * shared - self._lengths >= (self._sizes(documents) - 224)[:, None]
        fits &= shared > 0
        chosen = fits.any(axis=1)
        if not chosen.any():
            return
        documents = documents[chosen]
        similarity = self._similarity(documents)
        # Of equal ones the first are kept; those came earlier.
        row, text = np.nonzero(fits[chosen] & (similarity > self._thresholds))
        self._found.append((text, documents[row], similarity[row, text]))
        self._num_found += len(row)
        if self._num_found > 2 * MAX_CANDIDATES * len(self._lengths):
            self.best()

    def _similarity(self, documents: Positions) -> npt.NDArray[np.float32]:
        """Jaccard similarity of the sampled shingles, (documents, texts)."""
        known, rows, texts, of_text = self._shingles
        count = len(documents)
        spans = [slice(*self._train.offsets[d : d + 2]) for d in documents.tolist()]
        ids = np.concatenate([self._train.ids[span] for span in spans])
        hashes, owner = sampled(ids, np.cumsum([0, *self._sizes(documents)]))
        hashes, gram = np.unique(hashes, return_inverse=True)
        gram, owner = np.divmod(distinct(gram * count + owner), count)
        of_document = np.bincount(owner, minlength=count).astype(np.float32)
        position = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        found = (known[position] == hashes)[gram] if len(known) else np.zeros(len(gram), bool)
        shared = _incidence(owner[found], rows[position[gram[found]]], count, texts) @ texts
        shared = shared.toarray().astype(np.float32)
        return shared / np.maximum(1, of_document[:, None] + of_text - shared)

    def best(self) -> tuple[Positions, Positions]:
        """The pairs to compare: indices of the text and of the document, in order of document."""
        text, document, similarity = map(np.concatenate, zip(*self._found, strict=True))
        order = np.lexsort((document, -similarity, text))
        text, document, similarity = text[order], document[order], similarity[order]
        rank = np.arange(len(text)) - np.searchsorted(text, text)
        last, keep = rank == MAX_CANDIDATES - 1, rank < MAX_CANDIDATES
        self._thresholds[text[last]] = similarity[last]
        self._found = [(text[keep], document[keep], similarity[keep])]
        self._num_found = 0
        order = np.lexsort((text[keep], document[keep]))
        return text[keep][order], document[keep][order]


def sampled(ids: npt.NDArray[Any], offsets: Positions) -> tuple[Hashes, Positions]:
    """The sampled shingles of documents, and the index of the document of each, in order."""
    hashes = rolling(ids, SHINGLE_TOKENS)
    positions = np.flatnonzero(hashes >> _SAMPLED_SHIFT_BITS == 0)
    owner = np.searchsorted(offsets, positions, side="right") - 1
    within = positions + SHINGLE_TOKENS <= offsets[owner + 1]
    return hashes[positions[within]], owner[within]


def _incidence(row: Positions, column: Positions, rows: int, texts: Any) -> Any:
    """Count each pair in a sparse int32 matrix, (rows, rows of `texts`)."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(row), np.int32), (row, column)), shape=(rows, texts.shape[0]))


def _counts(gram: Positions, owner: Positions, owners: int) -> Positions:
    """Number of distinct n-grams of each owner."""
    return np.bincount(distinct(gram * owners + owner) % owners, minlength=owners)


def texts_of_ngrams(grams: Positions, owners: Positions, texts: int) -> tuple[Positions, Any]:
    """Which texts contain each n-gram.

    Args:
        grams: Index of the n-gram of each occurrence; each index occurs.
        owners: Index of the text of each occurrence.
        texts: Number of texts.

    Returns:
        The row of each n-gram, int64, and a sparse int32 matrix (rows, texts) that is 1 where a
        text contains the n-grams of the row.
    """
    from scipy.sparse import csr_array

    gram, text = np.divmod(distinct(grams * texts + owners), texts)
    begins = np.flatnonzero(np.diff(gram, prepend=-1))
    sizes = np.diff(begins, append=len(gram))
    # A set of texts is identified by the sum of a random number for each.
    numbers = np.random.default_rng(0).integers(1 << 63, size=texts, dtype=np.uint64)
    sums = np.add.reduceat(numbers[text], begins) if len(begins) else np.empty(0, np.uint64)
    _, firsts, row = np.unique(sums, return_index=True, return_inverse=True)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[firsts])])
    index = text[np.repeat(begins[firsts] - ends[:-1], sizes[firsts]) + np.arange(ends[-1])]
    ones = np.ones(len(index), np.int32)
    return row, csr_array((ones, index, ends), shape=(len(firsts), texts))
