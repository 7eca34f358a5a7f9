"""Find the longest span of each text that occurs verbatim in the training documents.

A span of L tokens is L - 12 13-grams that follow each other in both texts, so the hits of the
n-gram scan are all there is to examine. A passage that occurs in a hundred thousand documents is
examined once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.evaluate.contamination.ngrams import (
    SCAN_BLOCK_TOKENS,
    NgramIndex,
    Positions,
    ScanProgress,
    StopCheck,
    Tokens,
    do_nothing,
)


@dataclass(frozen=True)
class Copies:
    """The longest verbatim span of each text, arrays of shape (texts,).

    `tokens`: its length, 0 if it is under 13. `document`: index of the first training document that
    contains it, -1 for none. `start`: its offset in that document, `at`: its offset in the text, in
    tokens; -1 for none.
    """

    tokens: npt.NDArray[np.int64]
    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]


def longest_copies(
    texts: Sequence[Tokens],
    train: TokenizedSplit,
    *,
    check: StopCheck = do_nothing,
    progress: ScanProgress = do_nothing,
    block: int = SCAN_BLOCK_TOKENS,
) -> Copies:
    """Find the longest span of each text that occurs verbatim in a training document.

    Args:
        texts: Tokens of each text.
        train: The training documents.
        check: Called between blocks; may raise.
        progress: Called with the number of tokens of `train` done and in total.
        block: Tokens per block; affects only speed and memory.
    """
    index = NgramIndex(texts)
    longest = _Longest(index)
    for hits in index.scan(train, check=check, progress=progress, block=block):
        longest.add(hits.positions, hits.grams)
    found = longest.tokens > 0
    document = np.searchsorted(train.offsets, longest.position, side="right") - 1
    return Copies(
        tokens=longest.tokens,
        document=np.where(found, document, -1),
        start=np.where(found, longest.position - train.offsets[document], -1),
        at=np.where(found, longest.at - index.offsets[:-1], -1),
    )


class _Longest:
    """The longest span of each text so far: its length, and where it is in corpus and text."""

    def __init__(self, index: NgramIndex) -> None:
        self._index = index
        texts = len(index.offsets) - 1
        self.tokens, self.position, self.at = (np.zeros(texts, np.int64) for _ in range(3))
        # positions in the texts, grouped by n-gram, in order
        order = np.argsort(index.grams, kind="stable")
        self._at = index.positions[order]
        self._owners = index.owners()[order]
        self._begins = np.searchsorted(index.grams[order], np.arange(index.distinct + 1))
        self._width = int(np.diff(index.offsets).max(initial=1))
        self._known: set[int] = set()
        self._update_thresholds()

    def _update_thresholds(self) -> None:
        """Update, for each n-gram, the length that a new span through it must exceed."""
        if self._index.distinct:
            so_far = self.tokens[self._owners]
            self._thresholds = np.minimum.reduceat(so_far, self._begins[:-1])

    def add(self, positions: Positions, grams: Positions) -> None:
        """Take hits of whole documents, in order."""
        begins = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
        ends = np.append(begins[1:], len(positions))
        length = ends - begins + self._index.n - 1
        longer = length > np.minimum.reduceat(self._thresholds[grams], begins)
        for begin, end in zip(begins[longer].tolist(), ends[longer].tolist(), strict=True):
            run = grams[begin:end]
            key = xxhash.xxh3_64_intdigest(run.tobytes())
            if key in self._known:
                continue
            self._known.add(key)
            # A span is at most as long as its text, so one of the overlapping windows contains it.
            for first in range(0, max(1, len(run) - self._width), self._width):
                self._compare(int(positions[begin]) + first, run[first : first + 2 * self._width])

    def _compare(self, position: int, run: Positions) -> None:
        """Compare consecutive n-grams, the first at `position` of the corpus, with each text."""
        sizes = self._begins[run + 1] - self._begins[run]
        step = np.repeat(np.arange(len(run)), sizes)
        one = np.repeat(self._begins[run] - (np.cumsum(sizes) - sizes), sizes)
        one += np.arange(len(one))
        at = self._at[one]
        # Along a span both positions grow by one, so their difference stays the same.
        order = np.lexsort((step, step - at))
        step, at, text = step[order], at[order], self._owners[one[order]]
        begins = np.flatnonzero((np.diff(step, prepend=-2) != 1) | (np.diff(at, prepend=-2) != 1))
        tokens = np.diff(begins, append=len(step)) + self._index.n - 1
        step, at, text = step[begins], at[begins], text[begins]
        rank = np.lexsort((at, step, -tokens, text))
        rank = rank[tokens[rank] > self.tokens[text[rank]]]
        rank = rank[np.diff(text[rank], prepend=-1) > 0]  # the first of each text
        if len(rank):
            self.tokens[text[rank]] = tokens[rank]
            self.position[text[rank]] = position + step[rank]
            self.at[text[rank]] = at[rank]
            self._update_thresholds()
