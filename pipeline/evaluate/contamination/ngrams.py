"""Where the n-grams of a few texts stand in a corpus, found in one pass over it.

The texts are indexed and the corpus streams past them, block by block in numpy: so the memory it
takes is that of the texts, and a corpus of any size costs some tens of nanoseconds a token. Hashes
only choose what is looked at; what is reported was compared token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit

N = 13
"""Tokens of an n-gram; GPT-3 (Brown et al. 2020, appendix C) looked for leaks by as many."""
BLOCK = 1 << 16
"""Tokens looked at in one go: with its hashes about what a core's own cache holds."""

Tokens = npt.NDArray[Any]
Places = npt.NDArray[np.int64]
Check = Callable[[], None]
Progress = Callable[[int, int], None]

_SPREAD = 0x9E3779B97F4A7C15
_BASE = 0xD1342543DE82EF95
_BITS_A_GRAM = 64


def nothing(*args: object) -> None:
    """Stands in for `check` and `progress` where nobody looks."""


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The different ones among integers, in order; `np.unique` takes ten times as long."""
    values = np.sort(values)
    keep = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


def rolling(ids: Tokens, n: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hash of every run of n tokens: Σ s(ids[i + j]) · base^(n - 1 - j) modulo 2^64.

    Widths are doubled: 13 = 8 + 4 + 1 takes three doublings and two sums in place of 13.

    Args:
        ids: Tokens, (length,).
        n: Tokens of a run.
        seed: Another one gives other hashes.

    Returns:
        (length - n + 1,), none if there are fewer than n tokens.
    """
    if len(ids) < n:
        return np.empty(0, np.uint64)
    part = ids.astype(np.uint64)
    part += np.uint64(seed + 1)
    part *= np.uint64(_SPREAD)
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
    """Hashes of `width` tokens, each followed by one of `have`."""
    length = min(len(left), len(right) - width)
    joined = left[:length] * np.uint64(pow(_BASE, have, 1 << 64))
    joined += right[width : width + length]
    return joined


@dataclass(frozen=True)
class Hits:
    """Places of a corpus at which an n-gram of the texts stands, in order.

    `documents`: of the corpus. `places`: of the first token in `ids` of the corpus. `grams`: which
    n-gram of the texts it is. A document comes whole, with all its hits, in one `Hits`.
    """

    documents: Places
    places: Places
    grams: Places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice) -> Hits:
        return Hits(self.documents[rows], self.places[rows], self.grams[rows])

    @classmethod
    def joined(cls, parts: Sequence[Hits]) -> Hits:
        """Parts in order, as one."""
        named = ("documents", "places", "grams")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in named))


class Needles:
    """The n-grams of some texts, to be looked for.

    Args:
        texts: Tokens of each.
        n: Tokens of an n-gram.

    Attributes:
        ids: The texts end to end.
        offsets: Where each begins in `ids`, texts + 1.
        places: Where their n-grams begin in `ids`, in order; none crosses the end of a text.
        grams: Which of the distinct n-grams stands at each place.
        distinct: How many of those there are.
    """

    def __init__(self, texts: Sequence[Tokens], n: int = N) -> None:
        self.n = n
        lengths = np.array([len(text) for text in texts], np.int64)
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self.ids = np.concatenate([np.empty(0, np.uint32), *texts]).astype(np.uint32)
        text = np.repeat(np.arange(len(texts)), lengths)
        last = len(self.ids) - n + 1
        self.places = np.flatnonzero(text[: max(last, 0)] == text[n - 1 :])
        for self.seed in count():
            hashes = rolling(self.ids, n, self.seed)[self.places]
            self._hashes, firsts, grams = np.unique(hashes, return_index=True, return_inverse=True)
            self._firsts = self.places[firsts]
            if self._tells_apart(grams):
                break
        self.grams = grams.astype(np.int64)
        self.distinct = len(firsts)
        self._sieve = _Sieve(self._hashes)

    def _tells_apart(self, grams: Places) -> bool:
        """Whether n-grams of one hash are equal: then one comparison decides for all of them."""
        return all(
            np.array_equal(self.ids[self.places + j], self.ids[self._firsts[grams] + j])
            for j in range(self.n)
        )

    def owners(self) -> Places:
        """Which text the n-gram at each of `places` belongs to."""
        return np.searchsorted(self.offsets, self.places, side="right") - 1

    def scan(
        self,
        corpus: TokenizedSplit,
        *,
        block: int = BLOCK,
        check: Check = nothing,
        progress: Progress = nothing,
    ) -> Iterator[Hits]:
        """Every place of a corpus where one of the n-grams stands within a document.

        Args:
            corpus: What is searched.
            block: Tokens looked at in one go; decides nothing but speed.
            check: Called before each block; it may raise.
            progress: Called after each with tokens done and in all.
        """
        total = len(corpus.ids) if self.distinct else 0
        held: list[Hits] = []
        for begin in range(0, total, block):
            check()
            end = min(begin + block, total)
            hits = self._look(corpus, begin, min(end + self.n - 1, total))
            progress(end, total)
            held += [hits] if len(hits) else []
            if not held or not self._through(corpus, held[0].documents[:1], end).all():
                continue
            hits = Hits.joined(held)
            whole = int(np.count_nonzero(self._through(corpus, hits.documents, end)))
            yield hits[:whole]
            held = [hits[whole:]] if whole < len(hits) else []

    def _through(
        self, corpus: TokenizedSplit, documents: Places, end: int
    ) -> npt.NDArray[np.bool_]:
        """Whether every n-gram of a document begins before `end`."""
        return corpus.offsets[documents + 1] - self.n < end

    def _look(self, corpus: TokenizedSplit, begin: int, end: int) -> Hits:
        """The hits among the n-grams within `ids[begin:end]`."""
        ids = np.asarray(corpus.ids[begin:end])
        hashes = rolling(ids, self.n, self.seed)
        local = self._sieve.passed(hashes)
        grams = np.minimum(np.searchsorted(self._hashes, hashes[local]), self.distinct - 1)
        local, grams = _where(self._hashes[grams] == hashes[local], local, grams)
        firsts = self._firsts[grams]
        same = np.ones(len(local), bool)
        for j in range(self.n):
            same &= ids[local + j] == self.ids[firsts + j]
        local, grams = _where(same, local, grams)
        places = local + begin
        documents = np.searchsorted(corpus.offsets, places, side="right") - 1
        within = places + self.n <= corpus.offsets[documents + 1]
        return Hits(*_where(within, documents, places, grams))


def _where(keep: npt.NDArray[np.bool_], *columns: Places) -> tuple[Places, ...]:
    return tuple(column[keep] for column in columns)


class _Sieve:
    """Tells of most hashes, for a few nanoseconds, that they are none of those it was given.

    A bit for each value of the upper bits of a hash; so many of them that one in 64 of the
    others passes at most.
    """

    def __init__(self, hashes: npt.NDArray[np.uint64]) -> None:
        width = max(16, (_BITS_A_GRAM * len(hashes)).bit_length())
        self._shift = np.uint64(64 - width)
        self._bits = np.zeros(1 << (width - 3), np.uint8)
        index, bit = self._split(hashes)
        np.bitwise_or.at(self._bits, index, bit)

    def _split(self, hashes: npt.NDArray[np.uint64]) -> tuple[Places, npt.NDArray[np.uint8]]:
        upper = (hashes >> self._shift).view(np.int64)
        return upper >> 3, np.left_shift(np.uint8(1), (upper & 7).astype(np.uint8))

    def passed(self, hashes: npt.NDArray[np.uint64]) -> Places:
        """Which of them may be among those it was given."""
        index, bit = self._split(hashes)
        bit &= self._bits[index]
        return np.flatnonzero(bit)
