"""Packing of documents into windows.

`best-fit` needs almost no padding and drops no token. `pad` gives each document a window of its own
and truncates it. Documents never attend to one another.

A document of n text tokens is the sequence prefix, text, end: n + 1 (input, target) pairs. A
document longer than a window is cut into pieces, and each pair is in exactly one piece. Pieces then
share windows by best fit. A batch holds the segment of every position, and the mask lets a token
attend to its own segment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.dataset.token_cache import TokenizedSplit
from pipeline.modeling.packed_batch import IGNORE_INDEX, PackedBatch

PackingMethod = Literal["best-fit", "pad"]


@dataclass(frozen=True)
class Packing:
    """The pieces of each window.

    `pieces`: document, first pair and number of pairs, int32, (pieces, 3). `window_offsets`:
    int64, (windows + 1,); window w holds `pieces[window_offsets[w]:window_offsets[w + 1]]`.
    `length`: positions in a window.
    """

    pieces: npt.NDArray[np.int32]
    window_offsets: npt.NDArray[np.int64]
    length: int

    def __len__(self) -> int:
        return len(self.window_offsets) - 1

    @property
    def pairs(self) -> int:
        """Number of (input, target) pairs in all windows."""
        return int(self.pieces[:, 2].sum())

    def pieces_of(self, window: int) -> npt.NDArray[np.int32]:
        """The pieces of a window, (pieces, 3)."""
        return self.pieces[self.window_offsets[window] : self.window_offsets[window + 1]]


def pack(
    offsets: npt.NDArray[np.int64], length: int, method: PackingMethod = "best-fit"
) -> Packing:
    """Cut documents into pieces of at most `length` pairs and assign them to windows.

    Args:
        offsets: Document d has `offsets[d + 1] - offsets[d]` text tokens; int64, (documents + 1,).
        length: Positions in a window.
        method: `best-fit`, or `pad`: one window per document, truncated to `length`.
    """
    pairs = np.diff(offsets) + 1
    if method == "pad":
        count = len(pairs)
        pieces = np.stack([np.arange(count), np.zeros(count), np.minimum(pairs, length)], axis=1)
        return Packing(pieces.astype(np.int32), np.arange(count + 1, dtype=np.int64), length)
    pieces = _cut(pairs, length)
    order = np.argsort(-pieces[:, 2], kind="stable")
    window = _best_fit(pieces[order, 2], length)
    by_window = np.argsort(window, kind="stable")
    counts = np.bincount(window, minlength=int(window.max(initial=-1)) + 1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Packing(pieces[order[by_window]], starts, length)


def _cut(pairs: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int32]:
    """The pieces of documents of so many pairs each; see `Packing.pieces`."""
    counts = -(-pairs // length)
    document = np.repeat(np.arange(len(pairs)), counts)
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    start = (np.arange(len(document)) - np.repeat(first, counts)) * length
    size = np.minimum(length, pairs[document] - start)
    return np.stack([document, start, size], axis=1).astype(np.int32)


def _best_fit(sizes: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int64]:
    """Best-fit decreasing: the window of each piece. Sizes are given largest first."""
    window_of = np.empty(len(sizes), dtype=np.int64)
    by_space: list[list[int]] = [[] for _ in range(length + 1)]
    spaces = 0  # bit n is set while a window has n free positions
    windows = 0
    for index, size in enumerate(sizes.tolist()):
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            window = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, window = length, windows
            windows += 1
        window_of[index] = window
        if space > size:
            by_space[space - size].append(window)
            spaces |= 1 << (space - size)
    return window_of


def make_batch(
    documents: TokenizedSplit, packing: Packing, windows: Sequence[int], prefix: int, end: int
) -> PackedBatch:
    """Fill windows with tokens.

    Args:
        documents: The documents that were packed.
        packing: Their packing.
        windows: Indices of the windows.
        prefix: Id of the token before each document.
        end: Id of the token after each document.
    """
    import torch

    shape = (len(windows), packing.length)
    inputs = np.full(shape, end, dtype=np.int64)
    targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    for row, window in enumerate(windows):
        position = 0
        for number, (document, start, size) in enumerate(packing.pieces_of(window).tolist()):
            tokens = _sequence(documents, document, start, size, prefix, end)
            stop = position + size
            inputs[row, position:stop] = tokens[:-1]
            targets[row, position:stop] = tokens[1:]
            positions[row, position:stop] = np.arange(size)
            segments[row, position:stop] = number
            position = stop
    return PackedBatch(*(torch.from_numpy(a) for a in (inputs, targets, positions, segments)))


def _sequence(
    documents: TokenizedSplit, document: int, start: int, size: int, prefix: int, end: int
) -> npt.NDArray[np.int64]:
    """Tokens `start` to `start + size` (inclusive) of prefix + text + end.

    int64, (size + 1,): `size` inputs and the target of the last one.
    """
    first, last = documents.offsets[document], documents.offsets[document + 1]
    text = documents.ids[first + max(0, start - 1) : min(last, first + start + size)]
    before = [prefix] if start == 0 else []
    after = [end] if start + size == last - first + 1 else []
    return np.concatenate([before, text.astype(np.int64), after]).astype(np.int64)
