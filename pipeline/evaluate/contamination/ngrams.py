"""Find where the n-grams of a few texts occur in a corpus, in one pass over the corpus.

The texts are indexed and the corpus is read block by block in numpy. Memory depends on the texts
only, and a corpus costs some tens of nanoseconds per token. Hashes select candidates; each hit is
confirmed token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit

NGRAM_TOKENS = 13
"""Tokens of an n-gram, as in GPT-3's contamination check (Brown et al. 2020, appendix C)."""
SCAN_BLOCK_TOKENS = 1 << 16
"""Tokens per block: with their hashes about as much as the L2 cache of a core holds."""

Tokens = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
StopCheck = Callable[[], None]
ScanProgress = Callable[[int, int], None]

_TOKEN_MULTIPLIER = 0x9E3779B97F4A7C15
_HASH_BASE = 0xD1342543DE82EF95
_SIEVE_BITS_PER_NGRAM = 64


def do_nothing(*args: object) -> None:
    """Do nothing; the default of `check` and `progress`."""


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The distinct integers, sorted; ten times as fast as `np.unique`."""
    values = np.sort(values)
    keep = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


def rolling(ids: Tokens, n: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hash every sequence of n tokens: Σ s(ids[i + j]) · base^(n - 1 - j) modulo 2^64.

    Widths are doubled: 13 = 8 + 4 + 1 takes three doublings and two sums instead of 13 steps.

    Args:
        ids: Tokens, (length,).
        n: Tokens of a sequence.
        seed: Selects the hash function.

    Returns:
        Hashes, (length - n + 1,); empty if there are fewer than n tokens.
    """
    if len(ids) < n:
        return np.empty(0, np.uint64)
    part = ids.astype(np.uint64)
    part += np.uint64(seed + 1)
    part *= np.uint64(_TOKEN_MULTIPLIER)
    part ^= part >> np.uint64(32)
    width, have, found = 1, 0, part
    while True:
        if n & width:
            found = _join(part, found, width, have) if have else part
            have += width
        if have == n:
            return found
        part = _join(part, part, width, width)
        width *= 2


def _join(
    left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64], width: int, have: int
) -> npt.NDArray[np.uint64]:
    """Hashes of sequences of `width + have` tokens, from those of `width` and of `have` tokens."""
    length = min(len(left), len(right) - width)
    joined = left[:length] * np.uint64(pow(_HASH_BASE, have, 1 << 64))
    joined += right[width : width + length]
    return joined


@dataclass(frozen=True)
class Hits:
    """Occurrences of n-grams of the texts in a corpus, in order of position.

    `documents`: index of the document. `positions`: of the first token, in `ids` of the corpus.
    `grams`: index of the n-gram. All hits of a document are in the same `Hits`.
    """

    documents: Positions
    positions: Positions
    grams: Positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> Hits:
        return Hits(self.documents[rows], self.positions[rows], self.grams[rows])

    @classmethod
    def joined(cls, parts: Sequence[Hits]) -> Hits:
        """Concatenate."""
        named = ("documents", "positions", "grams")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in named))


class NgramIndex:
    """The n-grams of some texts, indexed for search.

    Args:
        texts: Tokens of each.
        n: Tokens of an n-gram.

    Attributes:
        ids: The texts, concatenated.
        offsets: Where each text begins in `ids`, (texts + 1,).
        positions: Where each n-gram begins in `ids`, in order; none crosses the end of a text.
        grams: Index of the distinct n-gram at each position.
        distinct: Number of distinct n-grams.
    """

    def __init__(self, texts: Sequence[Tokens], n: int = NGRAM_TOKENS) -> None:
        self.n = n
        lengths = np.array([len(text) for text in texts], np.int64)
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self.ids = np.concatenate([np.empty(0, np.uint32), *texts]).astype(np.uint32)
        text = np.repeat(np.arange(len(texts)), lengths)
        last = len(self.ids) - n + 1
        self.positions = np.flatnonzero(text[: max(last, 0)] == text[n - 1 :])
        for self.seed in count():
            hashes = rolling(self.ids, n, self.seed)[self.positions]
            self._hashes, firsts, grams = np.unique(hashes, return_index=True, return_inverse=True)
            self._firsts = self.positions[firsts]
            if self._collision_free(grams):
                break
        self.grams = grams.astype(np.int64)
        self.distinct = len(firsts)
        self._sieve = _Sieve(self._hashes)

    def _collision_free(self, grams: Positions) -> bool:
        """Whether n-grams with equal hashes are equal, so that comparing with one suffices."""
        return all(
            np.array_equal(self.ids[self.positions + j], self.ids[self._firsts[grams] + j])
            for j in range(self.n)
        )

    def owners(self) -> Positions:
        """Index of the text of the n-gram at each of `positions`."""
        return np.searchsorted(self.offsets, self.positions, side="right") - 1

    def scan(
        self,
        corpus: TokenizedSplit,
        *,
        block: int = SCAN_BLOCK_TOKENS,
        check: StopCheck = do_nothing,
        progress: ScanProgress = do_nothing,
    ) -> Iterator[Hits]:
        """Find every occurrence of the n-grams within a document of a corpus.

        Args:
            corpus: The corpus to search.
            block: Tokens per block; affects only speed.
            check: Called before each block; may raise.
            progress: Called after each block with the number of tokens done and in total.
        """
        total = len(corpus.ids) if self.distinct else 0
        held: list[Hits] = []
        for begin in range(0, total, block):
            check()
            end = min(begin + block, total)
            hits = self._hits(corpus, begin, min(end + self.n - 1, total))
            progress(end, total)
            held += [hits] if len(hits) else []
            if not held or not self._finished(corpus, held[0].documents[:1], end).all():
                continue
            hits = Hits.joined(held)
            whole = int(np.count_nonzero(self._finished(corpus, hits.documents, end)))
            yield hits[:whole]
            held = [hits[whole:]] if whole < len(hits) else []

    def _finished(
        self, corpus: TokenizedSplit, documents: Positions, end: int
    ) -> npt.NDArray[np.bool_]:
        """Whether every n-gram of each document begins before `end`."""
        return corpus.offsets[documents + 1] - self.n < end

    def _hits(self, corpus: TokenizedSplit, begin: int, end: int) -> Hits:
        """The hits among the n-grams within `ids[begin:end]`."""
        ids = np.asarray(corpus.ids[begin:end])
        hashes = rolling(ids, self.n, self.seed)
        local = self._sieve.candidates(hashes)
        grams = np.minimum(np.searchsorted(self._hashes, hashes[local]), self.distinct - 1)
        local, grams = _select(self._hashes[grams] == hashes[local], local, grams)
        firsts = self._firsts[grams]
        same = np.ones(len(local), bool)
        for j in range(self.n):
            same &= ids[local + j] == self.ids[firsts + j]
        local, grams = _select(same, local, grams)
        positions = local + begin
        documents = np.searchsorted(corpus.offsets, positions, side="right") - 1
        within = positions + self.n <= corpus.offsets[documents + 1]
        return Hits(*_select(within, documents, positions, grams))


def _select(keep: npt.NDArray[np.bool_], *columns: Positions) -> tuple[Positions, ...]:
    """The rows of each column where `keep` is true."""
    return tuple(column[keep] for column in columns)


class _Sieve:
    """Rules out most hashes in a few nanoseconds each, as a Bloom filter with one hash function.

    It has one bit for each value of the upper bits of a hash, enough that at most one in 64 of the
    other hashes passes.
    """

    def __init__(self, hashes: npt.NDArray[np.uint64]) -> None:
        width = max(16, (_SIEVE_BITS_PER_NGRAM * len(hashes)).bit_length())
        self._shift = np.uint64(64 - width)
        self._bits = np.zeros(1 << (width - 3), np.uint8)
        index, bit = self._split(hashes)
        np.bitwise_or.at(self._bits, index, bit)

    def _split(self, hashes: npt.NDArray[np.uint64]) -> tuple[Positions, npt.NDArray[np.uint8]]:
        upper = (hashes >> self._shift).view(np.int64)
        return upper >> 3, np.left_shift(np.uint8(1), (upper & 7).astype(np.uint8))

    def candidates(self, hashes: npt.NDArray[np.uint64]) -> Positions:
        """Indices of the hashes that may be among the given ones."""
        index, bit = self._split(hashes)
        bit &= self._bits[index]
        return np.flatnonzero(bit)
