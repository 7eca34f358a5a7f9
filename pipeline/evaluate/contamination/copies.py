"""Whether texts say the training text by heart: the longest span of each that stands there.

A span of L tokens is a run of L - 12 13-grams, one after the other in both texts, so what the scan
for n-grams finds is all there is to look at. A passage that stands in a hundred thousand documents
is looked at once: another occurrence can say nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.ngrams import (
    BLOCK,
    Check,
    Needles,
    Places,
    Progress,
    Tokens,
    nothing,
)


@dataclass(frozen=True)
class Copies:
    """The longest verbatim span of each text, an element a text.

    `tokens`: its length, 0 where it is under 13. `document`, `start`: the first training document
    that holds it, and after how many tokens of that; -1 for none. `at`: after how many tokens of
    the text it begins, -1 for none.
    """

    tokens: npt.NDArray[np.int64]
    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]


def longest_copies(
    texts: Sequence[Tokens],
    train: TokenizedSplit,
    *,
    check: Check = nothing,
    progress: Progress = nothing,
    block: int = BLOCK,
) -> Copies:
    """Find the longest span of each text that stands verbatim within a training document.

    Args:
        texts: Tokens of each.
        train: What may hold them.
        check: Called between blocks; it may raise.
        progress: Called with tokens of `train` done and in all.
        block: Tokens looked at in one go; decides nothing but speed and memory.
    """
    needles = Needles(texts)
    longest = _Longest(needles)
    for hits in needles.scan(train, check=check, progress=progress, block=block):
        longest.add(hits.places, hits.grams)
    found = longest.tokens > 0
    document = np.searchsorted(train.offsets, longest.place, side="right") - 1
    return Copies(
        tokens=longest.tokens,
        document=np.where(found, document, -1),
        start=np.where(found, longest.place - train.offsets[document], -1),
        at=np.where(found, longest.at - needles.offsets[:-1], -1),
    )


class _Longest:
    """The longest span of each text so far: how long, and where in the corpus and the texts."""

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        texts = len(needles.offsets) - 1
        self.tokens, self.place, self.at = (np.zeros(texts, np.int64) for _ in range(3))
        # the places of each n-gram in the texts, in order
        order = np.argsort(needles.grams, kind="stable")
        self._at = needles.places[order]
        self._owners = needles.owners()[order]
        self._begins = np.searchsorted(needles.grams[order], np.arange(needles.distinct + 1))
        self._width = int(np.diff(needles.offsets).max(initial=1))
        self._known: set[int] = set()
        self._weigh()

    def _weigh(self) -> None:
        """What a run must exceed to be a longer span of some text that holds an n-gram of it."""
        if self._needles.distinct:
            so_far = self.tokens[self._owners]
            self._least = np.minimum.reduceat(so_far, self._begins[:-1])

    def add(self, places: Places, grams: Places) -> None:
        """Look at hits of whole documents, in order."""
        begins = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        ends = np.append(begins[1:], len(places))
        length = ends - begins + self._needles.n - 1
        longer = length > np.minimum.reduceat(self._least[grams], begins)
        for begin, end in zip(begins[longer].tolist(), ends[longer].tolist(), strict=True):
            run = grams[begin:end]
            key = xxhash.xxh3_64_intdigest(run.tobytes())
            if key in self._known:
                continue
            self._known.add(key)
            # a span is no longer than its text, so one of two windows that overlap holds it whole
            for first in range(0, max(1, len(run) - self._width), self._width):
                self._look(int(places[begin]) + first, run[first : first + 2 * self._width])

    def _look(self, place: int, run: Places) -> None:
        """Take what a run of n-grams, which stands at `place`, has in common with each text."""
        sizes = self._begins[run + 1] - self._begins[run]
        step = np.repeat(np.arange(len(run)), sizes)
        one = np.repeat(self._begins[run] - (np.cumsum(sizes) - sizes), sizes)
        one += np.arange(len(one))
        at = self._at[one]
        # along a span both texts go on by one, and the difference of the places stays
        order = np.lexsort((step, step - at))
        step, at, text = step[order], at[order], self._owners[one[order]]
        begins = np.flatnonzero((np.diff(step, prepend=-2) != 1) | (np.diff(at, prepend=-2) != 1))
        tokens = np.diff(begins, append=len(step)) + self._needles.n - 1
        step, at, text = step[begins], at[begins], text[begins]
        rank = np.lexsort((at, step, -tokens, text))
        rank = rank[tokens[rank] > self.tokens[text[rank]]]
        rank = rank[np.diff(text[rank], prepend=-1) > 0]  # the first of each text
        if len(rank):
            self.tokens[text[rank]] = tokens[rank]
            self.place[text[rank]] = place + step[rank]
            self.at[text[rank]] = at[rank]
            self._weigh()
